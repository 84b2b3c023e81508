"""Random changes of a batch of training images: first drawn, then made in one vectorised call.

What is drawn (`Change`) can be made of several versions of the same images, and where an image has a finite number of
views, each has an index, under which a teacher's outputs can be kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Literal["auto", "none", "shift", "affine", "shift_flip", "crop_flip"]
LARGE = 96  # from this many pixels on, objects are seen at all sizes and crops are resized
SCALE = (0.35, 1.0)
RATIO = (3 / 4, 4 / 3)
TURN_DEGREES, ZOOM, MOVE = 10, 0.1, 1 / 16  # of affine: at most so much, either way


@dataclass(frozen=True)
class Change:
    """What happens to each of `count` images, drawn for images of `size` pixels; all tensors are on the CPU.

    `offsets` (2, count) int64 says for the shifts where in the padded image rows and columns are cut, from 0 to twice
    the padding; `mirrored` (count,) bool which images are mirrored; `transform` (count, 2, 3) float32 the affine map of
    `affine` and `crop_flip`, in coordinates from -1 to 1. None where a kind has none of it.
    """

    kind: Augment
    size: int
    count: int
    offsets: Tensor | None = None
    mirrored: Tensor | None = None
    transform: Tensor | None = None

    @classmethod
    def of_views(cls, kind: Augment, mirror: bool, size: int, views: Tensor) -> "Change":
        """The change that makes of image i its view `views[i]` (count,), int64 on the CPU.

        Raises ValueError where images have no finite number of views, or fewer than an index says.
        """
        kind, known, side = chosen(kind, mirror, size), _views(kind, mirror, size), 2 * (size // 8) + 1
        if len(views) and not 0 <= int(views.min()) <= int(views.max()) < known:
            raise ValueError(f"views are counted from 0 to {known - 1}, got {views.min()} to {views.max()}")
        if kind == "none":
            return cls(kind, size, len(views))
        offsets = torch.stack([views // side % side, views % side])
        return cls(kind, size, len(views), offsets, views >= side**2 if _mirrors(kind, mirror) else None)

    def part(self, rows: Tensor) -> "Change":
        """What happens to some of the images."""
        return Change(
            self.kind,
            self.size,
            len(rows),
            None if self.offsets is None else self.offsets[:, rows],
            None if self.mirrored is None else self.mirrored[rows],
            None if self.transform is None else self.transform[rows],
        )

    def views(self) -> Tensor:
        """Which view of itself each image becomes: (count,) int64, see `views`. ValueError where they are endless."""
        if self.transform is not None:
            raise ValueError(f"there is no end to the views that {self.kind} makes of an image")
        if self.offsets is None:
            return torch.zeros(self.count, dtype=torch.int64)
        side = 2 * (self.size // 8) + 1
        found = self.offsets[0] * side + self.offsets[1]
        return found if self.mirrored is None else found + side**2 * self.mirrored

    def applied(self, images: Tensor) -> Tensor:
        """The changed images: uint8 (count, C, H, W) in, the same form out, on the device they are on.

        Images of another size than the change was drawn for, such as a teacher's view of the same examples, move by the
        same part of their side, rounded to pixels. Shifted images lie channels-last in memory.
        """
        if self.offsets is not None:
            # All in one: each transfer costs a GPU as much.
            drawn = self.offsets if self.mirrored is None else torch.cat([self.offsets, self.mirrored[None]])
            return _shifted(images, drawn.to(images.device, non_blocking=True), self.size)
        if self.transform is None:
            return images
        images = _resampled(images, self.transform, "border" if self.kind == "affine" else "reflection")
        if self.mirrored is None:
            return images
        mask = self.mirrored.to(images.device, non_blocking=True)
        return torch.where(mask[:, None, None, None], images.flip(-1), images)


def augmented(images: Tensor, kind: Augment, mirror: bool, random: torch.Generator) -> Tensor:
    """Augment uint8 images (n, C, H, W), given back in the same form.

    `shift` pads by an eighth of the side with zeros and cuts at random (He et al. 2016, arXiv:1512.03385,
    sec. 4.2), `shift_flip` also mirrors half of them, `crop_flip` cuts a random 35 to 100 % of the area, resizes it
    (Szegedy et al. 2015, arXiv:1409.4842, sec. 6) and mirrors, `affine` moves, turns and scales a little
    (Simard et al. 2003, ICDAR, sec. 2) and never mirrors. `auto` chooses, see `Training`. All random
    numbers come from `random`, a generator on the CPU.
    """
    return draw(kind, mirror, images.shape[-1], len(images), random).applied(images)


def draw(
    kind: Augment, mirror: bool, size: int, count: int, random: torch.Generator, among: Tensor | None = None
) -> Change:
    """What happens to `count` images of `size` pixels, see `augmented`; nothing is mirrored unless `mirror`.

    With `among` (count, n) int64 image i becomes one of the views `among[i]`, each as likely; raises ValueError where
    images have no finite number of views.
    """
    if among is not None:
        picked = torch.randint(0, among.shape[1], (count, 1), generator=random)
        return Change.of_views(kind, mirror, size, among.gather(1, picked)[:, 0])
    kind = chosen(kind, mirror, size)
    offsets = transform = None
    if kind in ("shift", "shift_flip"):
        offsets = torch.randint(0, 2 * (size // 8) + 1, (2, count, 1), generator=random)[..., 0]
    elif kind == "affine":
        transform = _turns(count, random)
    elif kind == "crop_flip":
        transform = _crops(count, random)
    mirrored = torch.rand(count, generator=random) < 0.5 if _mirrors(kind, mirror) else None
    return Change(kind, size, count, offsets, mirrored, transform)


def views(kind: Augment, mirror: bool, size: int) -> int | None:
    """How many different views there are of an image of `size` pixels, None where there is no end to them.

    They are counted from the upper left cut to the lower right, row by row, then the mirrored ones in the same order:
    9·9·2 = 162 for `shift_flip` at 32 pixels.
    """
    kind = chosen(kind, mirror, size)
    if kind == "none":
        return 1
    if kind not in ("shift", "shift_flip"):
        return None
    return (2 * (size // 8) + 1) ** 2 * (2 if _mirrors(kind, mirror) else 1)


def chosen(kind: Augment, mirror: bool, size: int) -> Augment:
    """What `auto` stands for, given whether images may be mirrored and their size in pixels."""
    if kind != "auto":
        return kind
    if size >= LARGE:
        return "crop_flip"
    return "shift_flip" if mirror else "shift"


def _views(kind: Augment, mirror: bool, size: int) -> int:
    known = views(kind, mirror, size)
    if known is None:
        raise ValueError(f"there is no end to the views that {chosen(kind, mirror, size)} makes of an image")
    return known


def _mirrors(kind: Augment, mirror: bool) -> bool:
    return mirror and kind in ("shift_flip", "crop_flip")


def _shifted(images: Tensor, drawn: Tensor, size: int) -> Tensor:
    """Each image cut from a black frame, its first row and column given by `drawn` (2, n) for images of `size` pixels.

    With a third row in `drawn`, the images that have a 1 there are mirrored. The result lies channels-last in memory.
    """
    n, channels, height, width = images.shape
    pad, offsets = size // 8, drawn[:2]
    if width != size:
        offsets = ((offsets - pad) * (width / size)).round().long()
        pad = round(pad * (width / size))
        offsets = offsets + pad
    wide, high = width + 2 * pad, height + 2 * pad
    framed = images.new_zeros(n, high, wide, channels)
    framed[:, pad : pad + height, pad : pad + width] = images.permute(0, 2, 3, 1)
    # A row of a cut is `width` pixels on end in the frame: whole rows are copied, never single bytes.
    top = torch.arange(0, n * high, high, device=images.device) + offsets[0]
    rows = top[:, None] + torch.arange(height, device=images.device)
    starts = rows * wide + offsets[1][:, None]
    runs = framed.as_strided((n * high * wide - width + 1, width * channels), (channels, 1))
    cut = runs.index_select(0, starts.flatten()).view(n, height, width, channels).permute(0, 3, 1, 2)
    return cut if len(drawn) == 2 else _mirrored(cut, drawn[2])


def _mirrored(images: Tensor, mask: Tensor) -> Tensor:
    """Of channels-last images (n, C, H, W) those with a 1 in `mask` (n,) mirrored left to right.

    Both forms of all images are made and whole ones chosen: on a CPU half the time of choosing byte by byte.
    """
    n, channels, height, width = images.shape
    both = torch.cat([images, images.flip(-1)]).permute(0, 2, 3, 1).reshape(2 * n, -1)
    which = torch.arange(n, device=images.device) + n * mask
    return both.index_select(0, which).view(n, height, width, channels).permute(0, 3, 1, 2)


def _turns(count: int, random: torch.Generator) -> Tensor:
    """Moves by up to 1/16 of the side, turns by up to 10 degrees, scales by up to 10 %: maps (count, 2, 3)."""
    angle, zoom, x, y = 2 * torch.rand(4, count, generator=random) - 1
    angle, zoom = angle * math.radians(TURN_DEGREES), 1 + ZOOM * zoom
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    # The grid runs from -1 to 1, so a shift by a part of the side is twice that.
    return _maps([[cosine, -sine, 2 * MOVE * x], [sine, cosine, 2 * MOVE * y]])


def _crops(count: int, random: torch.Generator) -> Tensor:
    """A random part of each image, of random aspect ratio, at the full size again: maps (count, 2, 3)."""
    area = SCALE[0] + (SCALE[1] - SCALE[0]) * torch.rand(count, generator=random)
    low, high = torch.tensor(RATIO).log()
    ratio = (low + (high - low) * torch.rand(count, generator=random)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x = (1 - width) * (2 * torch.rand(count, generator=random) - 1)
    y = (1 - height) * (2 * torch.rand(count, generator=random) - 1)
    zero = torch.zeros(count)
    return _maps([[width, zero, x], [zero, height, y]])


def _maps(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """The two rows of three numbers a map, given as tensors (n,), as one tensor (n, 2, 3)."""
    return torch.stack([torch.stack(list(row), 1) for row in rows], 1)


def _resampled(images: Tensor, transform: Tensor, outside: str) -> Tensor:
    """Images seen through an affine map each (n, 2, 3), bilinear."""
    grid = F.affine_grid(transform.to(images.device, non_blocking=True), list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode=outside, align_corners=False)
    return seen.round().clamp(0, 255).to(torch.uint8)
