"""A teacher's logits on the views of every training image, asked for once and kept on disk.

Where augmentation has a finite number of views (162 for crops and mirror images of 32 pixels), the logits on all of
them are the teacher's whole function on the training images: a student learns from them what it would learn from the
teacher itself. Fewer views an image, in fewer bytes, serve where the teacher is too slow to be asked for all.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress import augment
from compress.augment import Augment, Change
from compress.data.base import Images
from compress.errors import ArtifactError, ModelError
from compress.events import Listener, ignore
from compress.training.logit_codes import LARGEST, as_bytes, as_halves, from_bytes, from_halves
from compress.training.target_files import Layout, TargetFile

EVENT_EVERY_S = 0.5
CPU = torch.device("cpu")

Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Targets:
    """A teacher's logits on views of the training images: those of a file, mapped into memory, or on a GPU.

    `views_of` (images, views) int64 on the CPU has the views that are there of each image, None where all are.
    """

    layout: Layout
    records: Tensor
    views_of: Tensor | None
    device: torch.device = CPU

    def logits(self, rows: Tensor, views: Tensor) -> Tensor:
        """The logits (n, classes), float32 on `device`, of view `views[i]` of image `rows[i]`; both int64 on the CPU.

        They differ from the teacher's by what `as_halves` rounds where all views are kept, else by what `as_bytes`
        does. Raises ValueError for a view that is not there.
        """
        if self.views_of is not None:
            here = self.views_of[rows] == views[:, None]
            views = torch.where(here.any(1), here.int().argmax(1), -1)
        if len(views) and not 0 <= int(views.min()) <= int(views.max()) < self.layout.views:
            raise ValueError("not all of these views are kept: draw among `views_of`")
        where = (rows * self.layout.views + views).to(self.records.device, non_blocking=True)
        found = self.records.index_select(0, where).to(self.device, non_blocking=True)
        return from_bytes(found) if self.layout.partial else from_halves(found)

    def to(self, device: torch.device) -> "Targets":
        """The same with answers on a device, and all records there where they take at most half of what is free."""
        if device.type != "cuda":
            return replace(self, device=device)
        fits = 2 * self.records.numel() <= torch.cuda.mem_get_info(device)[0]
        return replace(self, device=device, records=self.records.to(device) if fits else self.records)


def layout_for(images: int, classes: int, kind: Augment, mirror: bool, size: int, views: int | None) -> Layout:
    """What the targets of so many images would take on disk, see `compute`.

    Raises ValueError where images have no finite number of views.
    """
    every = augment.views(kind, mirror, size)
    if every is None:
        raise ValueError(f"there is no end to the views that {kind} makes of an image: ask the teacher in every step")
    partial = views is not None and views < every
    return Layout(images, min(views or every, every), classes, partial)


def compute(
    folder: Path,
    key: str,
    ask: Ask,
    images: Images,
    classes: int,
    *,
    kind: Augment,
    mirror: bool,
    size: int,
    views: int | None = None,
    seed: int = 0,
    batch: int = 512,
    device: torch.device = CPU,
    emit: Listener = ignore,
) -> Targets:
    """Ask a teacher for its logits on all views of all images, or on `views` each, drawn by `seed`, and keep them.

    `ask` gets at most `batch` uint8 images (n, C, H, W) on `device`, changed already, and gives logits (n, classes).
    `kind`, `mirror` and `size` are those of the student's augmentation: images of another size are changed in
    proportion. What there is under this key is replaced. Emits `targets` events with `done` and `total` in views and
    the file's `bytes`.

    Raises ValueError where images have no finite number of views; ResourceError, before the first question, where the
    disk is too small, and where it cannot be written; ModelError where the logits are not what can be kept.
    """
    layout = layout_for(len(images), classes, kind, mirror, size, views)
    file = TargetFile(folder, key)
    file.prepare(layout)
    kept = _drawn(layout, augment.views(kind, mirror, size) or 1, seed) if layout.partial else None

    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        """The records of each batch of views as they are stored, with the largest |logit| in them."""
        for index in torch.split(torch.arange(layout.records), batch):
            rows, which = index // layout.views, index % layout.views
            if kept is not None:
                which = kept[rows, which]
            # An image is loaded once for all its views and changed where the teacher is: little goes to a GPU.
            loaded = images[np.arange(int(rows[0]), int(rows[-1]) + 1)].to(device, non_blocking=True)
            picked = loaded.index_select(0, (rows - rows[0]).to(device))
            logits = _asked(ask, Change.of_views(kind, mirror, size, which).applied(picked), classes)
            yield (as_bytes if layout.partial else as_halves)(logits), logits.abs().amax()

    file.write(layout, kept, _told(answers(), layout, emit))
    return Targets(layout, *file.opened(layout))


def find(folder: Path, key: str) -> tuple[Targets | None, str | None]:
    """The targets under a key, or None and why what is there cannot be trusted (no reason where nothing is there).

    Reads the whole file once: neither a truncated one, nor one of another teacher or other images, nor one with a
    flipped bit is ever given.
    """
    file = TargetFile(folder, key)
    if not file.exists():
        return None, None
    try:
        layout = file.checked()
        return Targets(layout, *file.opened(layout)), None
    except ArtifactError as error:
        return None, str(error)


def _drawn(layout: Layout, every: int, seed: int) -> Tensor:
    """Different views of each image, drawn out of `every`: (images, views) int64."""
    random = torch.Generator().manual_seed(seed)
    parts = torch.split(torch.arange(layout.images), 4096)  # so that little is held at once
    return torch.cat([torch.rand(len(part), every, generator=random).topk(layout.views).indices for part in parts])


def _asked(ask: Ask, images: Tensor, classes: int) -> Tensor:
    with torch.no_grad():
        logits = ask(images).float()
    if logits.shape != (len(images), classes):
        raise ModelError(f"the teacher's logits are {tuple(logits.shape)} where {(len(images), classes)} are due")
    return logits


def _told(answers: Iterator[tuple[Tensor, Tensor]], layout: Layout, emit: Listener) -> Iterator[Tensor]:
    """The records on the CPU, while events say how far they are; `answers` has each batch's largest logit with it."""
    done, said = 0, time.perf_counter()
    for records, largest in _one_behind(answers):
        if not largest.item() < LARGEST:  # nor where it is NaN
            first, last = done // layout.views, (done + len(records) - 1) // layout.views
            raise ModelError(
                f"the teacher's largest logit on training images {first} to {last} is {largest.item():g}, and below "
                f"{LARGEST:g} is what can be kept. Train this teacher again with a lower training.lr, or give it "
                "other weights"
            )
        yield records.cpu()
        done += len(records)
        if time.perf_counter() - said > EVENT_EVERY_S or done == layout.records:
            said = time.perf_counter()
            emit({"event": "targets", "done": done, "total": layout.records, "bytes": layout.bytes})


def _one_behind(answers: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, each when the next is under way: a GPU works on it while this one is fetched and written."""
    previous = next(answers)
    for answer in answers:
        yield previous
        previous = answer
    yield previous
