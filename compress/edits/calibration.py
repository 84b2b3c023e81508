"""Choosing the ranges of activation quantizers, and the clips of coarse weights, before any training."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.edits.graph import evaluating
from compress.edits.quantizers import (
    ActivationQuantizer,
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
)
from compress.edits.ranges import BINS, FRACTIONS, Estimator, Mse, Seen
from compress.edits.rounding import in_memory_order, rounded_by_channel
from compress.errors import DataError, ModelError

INT8_MAX = 127
NAMED = 3  # how many layers a remark names; it counts the rest


def calibrate(
    module: nn.Module, batches: Callable[[], Iterable[Tensor]], estimator: Estimator | None = None
) -> list[str]:
    """Set every activation quantizer's range from what passes it; by default that of least squared error.

    `batches()` gives the same float32 inputs (n, C, H, W) each time it is called; it is called twice, first for
    the extremes, then for histograms of 2,048 bins between them. Activations and biases are unrounded meanwhile,
    weights are not. Returns remarks for the report: activations that are constant, which take the range between 0 and
    that constant and so are written exactly, and channels whose weights are all 0. Raises DataError without any
    image or for images that are not finite, and ModelError naming the first layer or quantizer that is not.
    """
    estimator = estimator or Mse()
    require_finite_weights(module)
    watched = {name: _Watched(name, quantizer) for name, quantizer in activation_quantizers(module)}
    images = 0
    with torch.no_grad(), _observed(module, watched, _Watched.see_extremes):
        for batch in batches():
            if not bool(torch.isfinite(batch).all()):
                raise DataError("a calibration image holds NaN or infinite values as fed to the net; see data.std")
            images += len(batch)
            if len(batch):
                module(batch)
    if not images:
        raise DataError("there are no images to take activation ranges from; calibration needs at least one")
    with torch.no_grad(), _observed(module, watched, _Watched.see_histogram):
        for batch in batches():
            module(batch)
    for each in watched.values():
        each.quantizer.set_range(*each.chosen(estimator))
    return [*_of_constants(watched.values()), *_of_dead_channels(module)]


def require_finite_weights(module: nn.Module) -> None:
    """Raises ModelError naming the first parameter or buffer that holds a NaN or an infinity."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} holds {bad} NaN or infinite value{'s' if bad > 1 else ''} of {tensor.numel()}, so it cannot "
                "be rounded; train this net again, with a lower training.lr, or give it other weights"
            )


def fit_weight_clips(module: nn.Module) -> None:
    """Cut the largest weights of layers coarser than 8 bits where that lessens the squared error of rounding.

    Sets the `clip` of each output channel (of the layer, where it has one scale) to the best of 1.00, 0.99 … 0.30
    (Banner et al. 2019, arXiv:1810.05723, sec. 3, searched instead of fitted). At 8 bits all clips stay 1.
    """
    for _, layer in quantized_layers(module):
        if layer.largest < INT8_MAX:
            layer.clip.copy_(_best_clip(layer))


@torch.no_grad()
def _best_clip(layer: QuantizedLayer) -> Tensor:
    weight = layer.weight.detach()
    largest = weight.abs().flatten(1).amax(1)
    if not layer.per_channel:
        largest = largest.amax().expand_as(largest)
    errors = []
    for fraction in FRACTIONS:
        scale = (float(fraction) * largest / layer.largest).clamp_min(torch.finfo(weight.dtype).tiny)
        errors.append((rounded_by_channel(weight, scale, layer.largest) - weight).square().flatten(1).sum(1))
    error = torch.stack(errors)
    if not layer.per_channel:
        error = error.sum(1, keepdim=True).expand_as(error)
    return torch.from_numpy(FRACTIONS).to(weight)[error.argmin(0)]


@dataclass
class _Watched:
    """One quantizer during calibration, and what passed it."""

    name: str
    quantizer: ActivationQuantizer
    batches: list[tuple[float, float]] = field(default_factory=list)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    count: int = 0

    @property
    def extremes(self) -> tuple[float, float]:
        lows, highs = zip(*self.batches, strict=True) if self.batches else ((0.0,), (0.0,))
        return min(lows), max(highs)

    def see_extremes(self, x: Tensor) -> None:
        """Keep the extremes of a batch; raises ModelError where they are not finite."""
        low, high = (end.item() for end in in_memory_order(x).aminmax())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(
                f"the activations that {self.name} rounds are not finite (from {low:g} to {high:g}) during "
                "calibration; the net's weights are too large there: train it again, or give it other weights"
            )
        # Beyond these bounds a value means the same as on them.
        low, high = (min(max(end, self.quantizer.low), self.quantizer.high) for end in (low, high))
        self.batches.append((low, high))
        self.count += x.numel()

    def see_histogram(self, x: Tensor) -> None:
        low, high = min(self.extremes[0], 0.0), max(self.extremes[1], 0.0)
        if high > low:
            # A zero is written exactly at any scale; behind a ReLU half of all values are, and would count as errors.
            values = x[x != 0].float().clamp_(low, high)
            self.histogram += torch.histc(values, BINS, low, high).double().cpu().numpy()

    def chosen(self, estimator: Estimator) -> tuple[float, float]:
        """The range, (minimum, maximum)."""
        low, high = self.extremes
        zero_low, zero_high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return zero_low, zero_high
        q = self.quantizer
        return estimator(
            Seen(
                self.histogram, zero_low, zero_high, self.count, tuple(self.batches), q.symmetric, q.smallest, q.largest
            )
        )


@contextmanager
def _observed(
    module: nn.Module, watched: dict[str, _Watched], see: Callable[[_Watched, Tensor], None]
) -> Iterator[None]:
    """Evaluation mode, rounding of activations and biases off, `see` called with each quantizer's input."""

    def hook(each: _Watched) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: see(each, inputs[0])

    with ExitStack() as undo:
        undo.enter_context(evaluating(module))
        for _, layer in quantized_layers(module):
            layer.training = True  # leaves the bias unrounded: the grid that it lies on is only being chosen
        for each in watched.values():
            quantizer = each.quantizer
            handle: AbstractContextManager[Any] = quantizer.register_forward_pre_hook(hook(each))
            undo.enter_context(handle)
            undo.callback(setattr, quantizer, "enabled", quantizer.enabled)
            quantizer.enabled = False
        yield


def _of_constants(watched: Iterable[_Watched]) -> Iterator[str]:
    constants = [(each.name, each.extremes[0]) for each in watched if each.extremes[0] == each.extremes[1]]
    if constants:
        shown = [f"{name} ({value:g})" for name, value in constants]
        yield (
            f"activations are the same in every calibration image and place at {_listed(shown)}; "
            "the range is taken from 0 to that value"
        )


def _of_dead_channels(module: nn.Module) -> Iterator[str]:
    counts = {
        name: int((layer.weight.detach().flatten(1) == 0).all(1).sum()) for name, layer in quantized_layers(module)
    }
    dead = [f"{name} ({count})" for name, count in counts.items() if count]
    if dead:
        yield f"channels whose weights are all 0, and which therefore give only their bias, are in {_listed(dead)}"


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
