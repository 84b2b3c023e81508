"""Scales that are trained together with the weights.

A learner hangs in a quantizer or layer while the net is trained, rounds in its place, and keeps the buffers up to date
that everything else reads; `bake` takes all of them out again. The parameter of a learner is its scale in units of the
calibrated one, 1 at the start, and its gradient is that of the scale divided by the unit. So plain SGD moves the scale
exactly as if it were the parameter itself, and Adam, which does not look at a gradient's size, moves it by a share of
its own size instead of by the learning rate, beside which a scale of 0.001 is nothing.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.distributed.group import current
from compress.edits.quantizers import (
    ActivationQuantizer,
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
    weight_scale,
)
from compress.edits.ranges import within_bounds
from compress.edits.rounding import SMALLEST_SCALE, inside, number, rounded, rounded_by_channel

PENALTY = 1e-4  # PACT's λ; the paper takes that of the weights
LEAST = 0.01  # of the calibrated scale: one long step must not make a scale 0 or negative
DEAD = 1e-6  # of a layer's largest scale: a channel below it has no scale to start from


class LearnedScale(nn.Module):
    """LSQ for activations (Esser et al. 2020, arXiv:1902.08153, eq. 1-3 and sec. 2.2); the zero point stays.

    The scale's gradient is multiplied by 1/√(N·Q_P): N values in an image, Q_P integers to the further side of the
    zero point.
    """

    unit: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.register_buffer("unit", quantizer.scale.detach().clone())
        self.factor = nn.Parameter(torch.ones_like(quantizer.scale))
        zero_point = int(quantizer.zero_point)
        sides = quantizer.largest - zero_point, 0 if quantizer.symmetric else zero_point - quantizer.smallest
        self.largest = max(sides)

    def forward(self, x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        """Round x (n, …), and let the quantizer's own scale follow."""
        self.settle(quantizer)
        scale = _in_units(self.factor, quantizer.scale, self.unit)
        gain = (x[:1].numel() * self.largest if x.dim() else self.largest) ** -0.5
        return rounded(x, scale, quantizer.zero_point, quantizer.smallest, quantizer.largest, gain)

    @torch.no_grad()
    def settle(self, quantizer: ActivationQuantizer) -> None:
        """Write the learnt scale into the quantizer, both cut to what its bounds allow."""
        _settle(self.factor, self.unit, quantizer)


class LearnedBound(nn.Module):
    """PACT: the upper end α of a range that starts at 0 (Choi et al. 2018, arXiv:1805.06085, eq. 1-3).

    α has the gradient of all that it clips, plus λ·α of the penalty that draws it down.
    """

    unit: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.register_buffer("unit", quantizer.scale.detach().clone())
        self.factor = nn.Parameter(torch.ones_like(quantizer.scale))

    def forward(self, x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        """Round x, of any shape, and let the quantizer's own scale follow."""
        self.settle(quantizer)
        steps = quantizer.largest - quantizer.zero_point
        alpha = _in_units(self.factor, quantizer.scale * steps, self.unit * steps)
        clipped: Tensor = _ClipAbove.apply(x, alpha)
        return rounded(clipped, quantizer.scale, quantizer.zero_point, quantizer.smallest, quantizer.largest)

    @torch.no_grad()
    def settle(self, quantizer: ActivationQuantizer) -> None:
        """Write α over the number of steps into the quantizer, both cut to what its bounds allow."""
        _settle(self.factor, self.unit, quantizer)


class LearnedWeightScale(nn.Module):
    """LSQ for weights (Esser et al. 2020, eq. 1-3): one scale an output channel, or one a layer.

    The gradient is multiplied by 1/√(N·Q_P), N being the number of weights that share the scale.
    """

    unit: Tensor

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        scale = weight_scale(layer, None).detach().clone()
        scale = scale.clamp_min(DEAD * float(scale.max())) if layer.per_channel else scale[:1].clone()
        self.register_buffer("unit", scale)
        self.factor = nn.Parameter(torch.ones_like(scale))

    def forward(self, weight: Tensor, layer: QuantizedLayer) -> Tensor:
        """Round the weight (out, …), and let the layer's own clip follow."""
        self.settle(layer)
        scale = _in_units(self.factor, self.factor.detach() * self.unit, self.unit)
        gain = (weight.numel() // len(scale) * layer.largest) ** -0.5
        return rounded_by_channel(weight, scale.expand(len(weight)), layer.largest, gain)

    @torch.no_grad()
    def settle(self, layer: QuantizedLayer) -> None:
        """Write the learnt scale into the layer, as the share of its largest weight that is not clipped."""
        self.factor.clamp_(min=LEAST)
        largest = layer.weight.abs().flatten(1).amax(1)
        if not layer.per_channel:
            largest = largest.amax().expand_as(largest)
        clip = self.factor * self.unit * layer.largest / largest
        layer.clip.copy_(torch.where(largest > 0, clip, 1.0))


LEARNERS = (LearnedScale, LearnedBound, LearnedWeightScale)


def learn_scales(module: nn.Module, method: Literal["lsq", "pact"]) -> None:
    """Let the scales of a calibrated network be trained, until `bake`.

    `lsq` learns those of activations and weights; `pact` the upper ends of the ranges that start at 0, and the others
    stay as they are. So do those of activations that were all 0.
    """
    for _, quantizer in list(activation_quantizers(module)):
        if quantizer.scale > 2 * SMALLEST_SCALE:
            if method == "lsq":
                quantizer.learner = LearnedScale(quantizer)
            elif quantizer.low == 0:
                quantizer.learner = LearnedBound(quantizer)
    if method == "lsq":
        for _, layer in list(quantized_layers(module)):
            layer.learner = LearnedWeightScale(layer)


def bake(module: nn.Module) -> None:
    """Leave what was learnt in the buffers of quantizers and layers, and take out all that was there for training."""
    for _, quantizer in list(activation_quantizers(module)):
        if isinstance(quantizer.learner, LearnedScale | LearnedBound):
            quantizer.learner.settle(quantizer)
        quantizer.learner = quantizer.moving = None
    for _, layer in list(quantized_layers(module)):
        if isinstance(layer.learner, LearnedWeightScale):
            layer.learner.settle(layer)
        layer.learner = None


def scale_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What learners train: to be given a rate of its own, and no weight decay."""
    return [layer.factor for layer in learners(module)]


def learners(module: nn.Module) -> Iterator[LearnedScale | LearnedBound | LearnedWeightScale]:
    """All that hang in a network."""
    for layer in module.modules():
        if isinstance(layer, LEARNERS):
            yield layer


def _settle(factor: nn.Parameter, unit: Tensor, quantizer: ActivationQuantizer) -> None:
    factor.clamp_(min=LEAST)
    scale = factor * unit
    allowed = within_bounds(scale, quantizer.zero_point, quantizer)
    # Kept at its bound, so that the way back is not long.
    factor.copy_(torch.where(allowed < scale, allowed / unit, factor))
    quantizer.scale.copy_(allowed)


def _in_units(factor: nn.Parameter, value: Tensor, unit: Tensor) -> Tensor:
    """`value`, which is factor·unit, with the gradient of the value over the unit for the factor."""
    result: Tensor = _InUnits.apply(factor, value, unit)
    return result


class _InUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, value: Tensor, unit: Tensor) -> Tensor:
        ctx.save_for_backward(unit)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (unit,) = ctx.saved_tensors
        return gradients[0] / unit, None, None


class _ClipAbove(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return x.clamp(max=number(alpha))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, alpha = ctx.saved_tensors
        of_x = inside(gradient, x, float("-inf"), number(alpha))
        return of_x, (gradient - of_x).sum() + PENALTY / current().size * alpha
