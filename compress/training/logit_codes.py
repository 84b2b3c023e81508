"""Logits in one or two bytes each, such that the largest of an image stays the largest.

A plain rounding makes equals of what was close, and then the predicted class is a matter of its place in the list. Here
the numbers that were rounded to the largest give way by one step.
"""

import torch
from torch import Tensor

LARGEST = 60_000.0  # below float16's 65,504, with room for a step
SCALE_BYTES = 8  # step and lowest value of an image, float32


def as_halves(logits: Tensor) -> Tensor:
    """Float32 logits (n, classes) of less than `LARGEST` as float16, its bytes: uint8 (n, 2·classes).

    Off by at most 2⁻¹⁰ of a logit's size, less than 0.008 below 16, and by half of that where no others are as large.
    """
    half = logits.half()
    codes = _in_order(half.view(torch.int16))
    top = logits.argmax(1, keepdim=True)
    highest = codes.gather(1, top)
    others = (codes == highest).scatter(1, top, False)
    # Whichever was rounded the wrong way, the largest down or the others up, goes one step back.
    up = others.any(1, keepdim=True) & (logits.gather(1, top) >= half.gather(1, top))
    codes = (codes - (others & ~up).short()).scatter(1, top, highest + up.short())
    return _in_order(codes).view(torch.uint8)


def from_halves(records: Tensor) -> Tensor:
    """The logits (n, classes), float32, of `as_halves`."""
    return records.view(torch.float16).float()


def as_bytes(logits: Tensor) -> Tensor:
    """Float32 logits (n, classes) as 256 even steps between an image's smallest and largest: uint8 (n, 8 + classes).

    Off by at most half a step, a 255th of that distance, and by a whole one where others are about as large as the
    largest. The first eight bytes are step and smallest logit.
    """
    lowest, highest = logits.aminmax(dim=1, keepdim=True)
    step = ((highest - lowest) / 255).clamp(min=1e-12)  # where all are equal they are 0 steps above the lowest
    codes = ((logits - lowest) / step).round().clamp(0, 255)
    top = logits.argmax(1, keepdim=True)
    others = (codes == codes.gather(1, top)).scatter(1, top, False) & (highest > lowest)
    scale = torch.cat([step, lowest], 1).view(torch.uint8)
    return torch.cat([scale, (codes - others.float()).to(torch.uint8)], 1)


def from_bytes(records: Tensor) -> Tensor:
    """The logits (n, classes), float32, of `as_bytes`."""
    # A copy in any case: where these bytes lie need not be a place for a float.
    scale = records[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return records[:, SCALE_BYTES:].float() * scale[:, :1] + scale[:, 1:]


def _in_order(bits: Tensor) -> Tensor:
    """The bits of float16 as int16 that grow with the number; the way back is the same."""
    return torch.where(bits < 0, -32768 - bits, bits)
