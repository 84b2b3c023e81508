"""Random changes of a batch of training images, in one vectorised call."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Literal["auto", "none", "shift", "affine", "shift_flip", "crop_flip"]
LARGE = 96  # from this many pixels on, objects are seen at all sizes and crops are resized
SCALE = (0.35, 1.0)
RATIO = (3 / 4, 4 / 3)
TURN_DEGREES, ZOOM, MOVE = 10, 0.1, 1 / 16  # of affine: at most so much, either way


def augmented(images: Tensor, kind: Augment, mirror: bool, random: torch.Generator) -> Tensor:
    """Augment uint8 images (n, C, H, W), given back in the same form.

    `shift` pads by an eighth of the side with zeros and cuts at random (He et al. 2016, arXiv:1512.03385,
    sec. 4.2), `shift_flip` also mirrors half of them, `crop_flip` cuts a random 35 to 100 % of the area, resizes it
    (Szegedy et al. 2015, arXiv:1409.4842, sec. 6) and mirrors, `affine` moves, turns and scales a little
    (Simard et al. 2003, ICDAR, sec. 2) and never mirrors. `auto` chooses, see `Training`. All random
    numbers come from `random`, a generator on the CPU.
    """
    kind = chosen(kind, mirror, images.shape[-1])
    if kind == "none":
        return images
    if kind == "affine":
        return turned(images, random)
    images = resized_crops(images, random) if kind == "crop_flip" else shifted(images, images.shape[-1] // 8, random)
    return images if kind == "shift" or not mirror else mirrored(images, random)


def chosen(kind: Augment, mirror: bool, size: int) -> Augment:
    """What `auto` stands for, given whether images may be mirrored and their size in pixels."""
    if kind != "auto":
        return kind
    if size >= LARGE:
        return "crop_flip"
    return "shift_flip" if mirror else "shift"


def shifted(images: Tensor, pad: int, random: torch.Generator) -> Tensor:
    """Each image (C, H, W) moved by up to `pad` pixels either way in both directions, black coming in."""
    n, _, height, width = images.shape
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=random).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    which = torch.arange(n, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mirrored(images: Tensor, random: torch.Generator) -> Tensor:
    """Half of the images, at random, mirrored left to right."""
    chosen_ones = (torch.rand(len(images), generator=random) < 0.5).to(images.device)
    return torch.where(chosen_ones[:, None, None, None], images.flip(-1), images)


def turned(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image moved by up to 1/16 of its side, turned by up to 10 degrees and scaled by up to 10 % (bilinear)."""
    angle, zoom, x, y = 2 * torch.rand(4, len(images), generator=random) - 1
    angle, zoom = angle * math.radians(TURN_DEGREES), 1 + ZOOM * zoom
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    # The grid runs from -1 to 1, so a shift by a part of the side is twice that.
    return _resampled(images, [[cosine, -sine, 2 * MOVE * x], [sine, cosine, 2 * MOVE * y]], "border")


def resized_crops(images: Tensor, random: torch.Generator) -> Tensor:
    """A random part of each image, of random aspect ratio, at the full size again (bilinear)."""
    n = len(images)
    area = SCALE[0] + (SCALE[1] - SCALE[0]) * torch.rand(n, generator=random)
    low, high = torch.tensor(RATIO).log()
    ratio = (low + (high - low) * torch.rand(n, generator=random)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x = (1 - width) * (2 * torch.rand(n, generator=random) - 1)
    y = (1 - height) * (2 * torch.rand(n, generator=random) - 1)
    zero = torch.zeros(n)
    return _resampled(images, [[width, zero, x], [zero, height, y]], "reflection")


def _resampled(images: Tensor, rows: Sequence[Sequence[Tensor]], outside: str) -> Tensor:
    """Images seen through an affine map, its two rows of three numbers an image given as tensors (n,)."""
    transform = torch.stack([torch.stack(list(row), 1) for row in rows], 1)
    grid = F.affine_grid(transform.to(images.device), list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode=outside, align_corners=False)
    return seen.round().clamp(0, 255).to(torch.uint8)
