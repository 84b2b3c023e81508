"""Choosing the ranges of activation quantizers from a few hundred images."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.edits.graph import evaluating
from compress.edits.quantizers import (
    ACTIVATION_MAX,
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLinear,
    activation_quantizers,
)

BINS = 2048
FRACTIONS = np.linspace(1.0, 0.3, 71)


def calibrate(module: nn.Module, batches: Callable[[], Iterable[Tensor]]) -> None:
    """Set every activation quantizer's range to the one of least mean squared rounding error.

    `batches()` gives the same float32 inputs (n, C, H, W) each time it is called; it is called twice, first for
    the extremes, then for histograms of 2,048 bins between them. The range is searched among the extremes
    scaled by 1.00, 0.99 … 0.30 (Krishnamoorthi 2018, arXiv:1806.08342, sec. 3.3; the criterion of Banner et al.
    2019, arXiv:1810.05723, eq. 2, evaluated on the histogram instead of a fitted density). Activations
    and biases are unrounded meanwhile, weights are not. A constant zero gets a range without width, see `set_range`.
    """
    quantizers = dict(activation_quantizers(module))
    extremes = dict.fromkeys(quantizers, (0.0, 0.0))
    histograms = {name: np.zeros(BINS) for name in quantizers}

    def see_extremes(name: str, x: Tensor) -> None:
        low, high = extremes[name]
        smallest, largest = x.aminmax()
        extremes[name] = min(low, smallest.item()), max(high, largest.item())

    def see_histogram(name: str, x: Tensor) -> None:
        low, high = extremes[name]
        if high > low:
            # A zero is written exactly at any scale; behind a ReLU half of all values are, and would count as errors.
            histograms[name] += torch.histc(x[x != 0].float(), BINS, low, high).double().cpu().numpy()

    for see in (see_extremes, see_histogram):
        with torch.no_grad(), _observed(module, quantizers, see):
            for batch in batches():
                module(batch)
    for name, quantizer in quantizers.items():
        quantizer.set_range(*best_range(histograms[name], *extremes[name]))


def best_range(histogram: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The part of [low, high] that rounds the counted values with the least squared error, as (minimum, maximum).

    `histogram` counts values other than 0 in equal bins between `low` ≤ 0 and `high` ≥ 0.
    """
    if high <= low or not histogram.any():
        return low, high
    width = (high - low) / len(histogram)
    values = low + width * (np.arange(len(histogram)) + 0.5)
    errors = []
    for fraction in FRACTIONS:
        scale = fraction * (high - low) / ACTIVATION_MAX
        zero_point = round(-fraction * low / scale)
        rounded = (np.clip(np.round(values / scale) + zero_point, 0, ACTIVATION_MAX) - zero_point) * scale
        # Inside a bin as wide as a step the centre tells nothing; step²/12 is the error of an even spread.
        inside = np.clip(values, fraction * low, fraction * high) == values
        errors.append(histogram @ np.where(inside, scale**2 / 12, (values - rounded) ** 2))
    fraction = FRACTIONS[int(np.argmin(errors))]
    return float(fraction * low), float(fraction * high)


@contextmanager
def _observed(
    module: nn.Module, quantizers: dict[str, ActivationQuantizer], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Evaluation mode, rounding of activations and biases off, `see` called with each quantizer's name and input."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: see(name, inputs[0])

    with ExitStack() as undo:
        undo.enter_context(evaluating(module))
        for layer in module.modules():
            if isinstance(layer, QuantizedConv2d | QuantizedLinear):
                layer.training = True  # leaves the bias unrounded: the grid that it lies on is only being chosen
        for name, quantizer in quantizers.items():
            handle: AbstractContextManager[Any] = quantizer.register_forward_pre_hook(hook(name))
            undo.enter_context(handle)
            undo.callback(setattr, quantizer, "enabled", quantizer.enabled)
            quantizer.enabled = False
        yield
