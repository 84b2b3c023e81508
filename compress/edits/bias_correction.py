"""Empirical bias correction: what rounding adds to the mean of each channel is taken out of the layer's bias.

Nagel et al. 2019, arXiv:1906.04721, sec. 4.2 and eq. 17: E[ỹ] = E[y] + E[ε·x], so b ← b - (E[ỹ] - E[y]); the means are
taken over images here (their appendix D) instead of from batch-norms.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from compress.edits.graph import evaluating
from compress.edits.quantizers import QuantizedConv2d, QuantizedLinear, quantized_layers
from compress.errors import ModelError

IMAGES = 128
FEWEST = 32
PIXELS = IMAGES * 96**2  # larger images are fewer: all values of one layer are in memory at a time


@torch.no_grad()
def correct_bias(quantized: fx.GraphModule, reference: nn.Module, inputs: Tensor) -> int:
    """Correct the biases of a network with calibrated quantizers, in place; returns how many layers were corrected.

    `reference` is the float network that it was made from, folded, with the same names of layers. `inputs` (n, C, H, W)
    are images as fed to both; at most 128 of them are used, 32 where they are large. Layers are corrected in the order
    of the data, each with the corrected ones before it. A layer without a bias stays as it is. Raises ModelError
    where the reference lacks a layer.
    """
    inputs = inputs[: min(max(PIXELS // inputs[0, 0].numel(), FEWEST), IMAGES)]
    correction = _Correction(quantized, _means(reference, {name for name, _ in quantized_layers(quantized)}, inputs))
    with evaluating(quantized):
        correction.run(inputs)
    return correction.corrected


class _Correction(fx.Interpreter):
    """Runs a network with quantizers; whatever is used no more is freed."""

    def __init__(self, quantized: fx.GraphModule, means: dict[str, Tensor]) -> None:
        super().__init__(quantized)
        self.means, self.corrected = means, 0

    def call_module(self, target: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call a layer; one with rounded weights is corrected, and called again for what it gives from now on."""
        layer = self.fetch_attr(str(target))
        if isinstance(layer, QuantizedConv2d | QuantizedLinear) and layer.bias is not None:
            layer.training = True  # leaves the bias unrounded: it is about to change
            output = super().call_module(target, args, kwargs)  # type: ignore[arg-type]
            layer.training = False
            layer.bias.sub_(channel_means(layer, output) - self.means[str(target)])
            self.corrected += 1
        return super().call_module(target, args, kwargs)  # type: ignore[arg-type]


def channel_means(layer: nn.Module, output: Tensor) -> Tensor:
    """The mean of each channel of what a convolution (n, C, H, W) or linear layer (n, …, C) gives, (C,)."""
    axes = tuple(range(output.dim() - 1)) if isinstance(layer, nn.Linear) else (0, 2, 3)
    return output.mean(dim=axes)


def _means(reference: nn.Module, names: set[str], inputs: Tensor) -> dict[str, Tensor]:
    """The channel means of these layers of the float network."""
    means: dict[str, Tensor] = {}
    with evaluating(reference), _watching(reference, names, means):
        reference(inputs)
    missing = sorted(names - set(means))
    if missing:
        raise ModelError(f"the float net has no layer {missing[0]}, so the bias of that layer cannot be corrected")
    return means


@contextmanager
def _watching(reference: nn.Module, names: set[str], means: dict[str, Tensor]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda layer, _, output: means.update({name: channel_means(layer, output)})

    layers = [(name, layer) for name, layer in reference.named_modules() if name in names]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
