"""Random changes of a batch of training images, in one vectorised call."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Literal["auto", "none", "shift", "shift_flip", "crop_flip"]
LARGE = 96  # from this many pixels on, objects are seen at all sizes and crops are resized
SCALE = (0.35, 1.0)
RATIO = (3 / 4, 4 / 3)


def augmented(images: Tensor, kind: Augment, mirror: bool, random: torch.Generator) -> Tensor:
    """Augment uint8 images (n, C, H, W), given back in the same form.

    `shift` pads by an eighth of the side with zeros and cuts at random (He et al. 2016, arXiv:1512.03385,
    sec. 4.2), `shift_flip` also mirrors half of them, `crop_flip` cuts a random 35 to 100 % of the area, resizes it
    (Szegedy et al. 2015, arXiv:1409.4842, sec. 6) and mirrors. `auto` chooses, see `Training`. All random
    numbers come from `random`, a generator on the CPU.
    """
    kind = chosen(kind, mirror, images.shape[-1])
    if kind == "none":
        return images
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
    transform = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(transform.to(images.device), list(images.shape), align_corners=False)
    crops = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return crops.round().clamp(0, 255).to(torch.uint8)
