"""Rounding to the points of a grid, with a straight-through gradient: PyTorch's fake-quantize, vectorised.

On a CPU PyTorch's own kernels handle one number at a time and cost as much as a convolution. The four elementary
operations used here give the same bits several times faster; on other devices PyTorch's kernels are used.
"""

from typing import Any

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-12


def rounded(x: Tensor, scale: Tensor, zero_point: Tensor, smallest: int, largest: int, gain: float = 1.0) -> Tensor:
    """Round to s·(clip(round(x/s) + z, smallest, largest) - z), any shape, with one grid for the whole tensor.

    The gradient passes where nothing was clipped (Bengio et al. 2013, arXiv:1308.3432). Where `scale` (rank 0) wants a
    gradient it gets that of LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3 and 5) times `gain`: round(x/s) - x/s
    inside the grid, the integer that was written minus z outside. The zero point (rank 0, integer) stays as it is.
    """
    if not on_cpu(x) and not scale.requires_grad:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, smallest, largest)
    result: Tensor = _RoundTensor.apply(x, scale, zero_point, smallest, largest, gain)
    return result


def rounded_by_channel(weight: Tensor, scale: Tensor, largest: int, gain: float = 1.0) -> Tensor:
    """Round a weight (out, …) to s·clip(round(w/s), -largest, largest) with one scale an output channel, (out,).

    Gradients as in `rounded`.
    """
    if not on_cpu(weight) and not scale.requires_grad:
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest, largest)
    result: Tensor = _RoundChannels.apply(weight, scale, largest, gain)
    return result


def in_memory_order(x: Tensor) -> Tensor:
    """The same numbers as one row, without copying where they lie close together in either layout of images.

    Reductions over a channels-last tensor as a whole are several times faster on this view.
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1)


def on_cpu(x: Tensor) -> bool:
    """Whether reading a number back makes nothing wait."""
    return x.device.type == "cpu"


def number(x: Tensor) -> Any:
    """The value of a rank-0 tensor where reading it costs nothing; elsewhere the tensor, to not make a GPU wait."""
    return x.item() if on_cpu(x) else x


def inside(values: Tensor, x: Tensor, low: Any, high: Any) -> Tensor:
    """`values` where low < x < high, elsewhere 0; the bounds are numbers on a CPU."""
    if on_cpu(x):  # one vectorised pass
        return torch.ops.aten.hardtanh_backward(values, x, low, high)  # type: ignore[no-any-return]
    return torch.where((x > low) & (x < high), values, 0.0)


class _RoundTensor(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, smallest: int, largest: int, gain: float
    ) -> Tensor:
        """Round x, of any shape; see `rounded`."""
        step, zero = number(scale), number(zero_point)
        lowest, highest = smallest - zero, largest - zero
        result = torch.mul(x, 1 / step).round_().clamp_(lowest, highest).mul_(step)
        learning = ctx.needs_input_grad[1]
        # A scale that is not learnt may be changed in place before the gradient comes.
        ctx.save_for_backward(x, scale if learning else None, result if learning else None)
        margin = _margin(learning)
        ctx.bounds, ctx.gain = ((lowest - margin) * step, (highest + margin) * step), gain
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, result = ctx.saved_tensors
        of_x = inside(gradient, x, *ctx.bounds)
        if result is None:
            return of_x, None, None, None, None, None
        error = result - inside(x, x, *ctx.bounds)
        return of_x, (gradient * error).sum() * (ctx.gain / scale), None, None, None, None


class _RoundChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, largest: int, gain: float) -> Tensor:
        shape = (-1, *(1,) * (weight.dim() - 1))
        ctx.save_for_backward(weight, scale)
        ctx.largest, ctx.shape, ctx.gain = largest, shape, gain
        steps = weight * scale.reciprocal().view(shape)
        return steps.round_().clamp_(-largest, largest).mul_(scale.view(shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the weight and, where it wants one, of the scale."""
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        steps = weight * scale.reciprocal().view(ctx.shape)
        bound = ctx.largest + _margin(ctx.needs_input_grad[1])
        of_weight = inside(gradient, steps, -bound, bound)
        if not ctx.needs_input_grad[1]:
            return of_weight, None, None, None
        error = steps.round().clamp_(-ctx.largest, ctx.largest) - inside(steps, steps, -bound, bound)
        of_scale = (gradient * error).flatten(1).sum(1)
        return of_weight, of_scale * ctx.gain, None, None


def _margin(learning: bool) -> float:
    """How many steps beyond the last point a value counts as clipped: half of one still rounds to it; LSQ has none."""
    return 0.0 if learning else 0.5
