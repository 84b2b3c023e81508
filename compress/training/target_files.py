"""The file of a teacher's logits: written whole or not at all, read only where every bit is as it was written.

`<key>.targets` holds first, where not all views of the images are in it, which ones are (int32, images × views), then a
record for each view of each image, see `logit_codes`. `<key>.targets.json` beside it describes it and has the SHA-256
of description and file together.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.environment import free_bytes
from compress.errors import ArtifactError, ResourceError
from compress.files import durable
from compress.training.logit_codes import SCALE_BYTES

FORMAT = 1


@dataclass(frozen=True)
class Layout:
    """What lies where in a file of `images` × `views` × `classes` logits; `partial` where those are not all views."""

    images: int
    views: int
    classes: int
    partial: bool

    @property
    def records(self) -> int:
        """How many records there are."""
        return self.images * self.views

    @property
    def record_bytes(self) -> int:
        """Bytes of the logits of one view."""
        return self.classes + SCALE_BYTES if self.partial else 2 * self.classes

    @property
    def head_bytes(self) -> int:
        """Bytes before the first record."""
        return 4 * self.records if self.partial else 0

    @property
    def bytes(self) -> int:
        """Bytes of the whole file."""
        return self.head_bytes + self.records * self.record_bytes


@dataclass(frozen=True)
class TargetFile:
    """Where the logits of a key are, or will be."""

    folder: Path
    key: str

    @property
    def content(self) -> Path:
        """The logits."""
        return self.folder / f"{self.key}.targets"

    @property
    def description(self) -> Path:
        """What they are; without it they count for nothing."""
        return self.folder / f"{self.key}.targets.json"

    def exists(self) -> bool:
        """Whether there is anything under this key, whole or not."""
        return self.content.exists() or self.description.exists()

    def prepare(self, layout: Layout) -> None:
        """Remove what is there, and raise ResourceError where the disk has no room for the new file."""
        with _advising():
            durable.folder(self.folder)
            for path in (self.description, self.content):
                durable.remove(path)
                durable.remove(path.with_name(path.name + durable.UNFINISHED))
        require_room(self.folder, layout, free_bytes(self.folder))

    def write(self, layout: Layout, kept: Tensor | None, records: Iterable[Tensor]) -> None:
        """Write the views `kept` (images, views) of a partial layout and the records (n, bytes) in parts, or nothing.

        Raises ResourceError where the disk refuses, and what `records` raises.
        """
        digest = _digest(self.key, layout)
        with _advising():
            with durable.writing(self.content, layout.bytes) as file:
                for part in itertools.chain([] if kept is None else [kept.int()], records):
                    content = part.numpy().data
                    file.write(content)
                    digest.update(content)
            known = {"format": FORMAT, "key": self.key, "layout": vars(layout), "sha256": digest.hexdigest()}
            try:
                durable.write(self.description, json.dumps(known, indent=1) + "\n")
            except BaseException:
                durable.remove(self.description)
                durable.remove(self.content)
                raise

    def checked(self) -> Layout:
        """What lies where in the file; reads it all. Raises ArtifactError saying why it cannot be trusted."""
        try:
            known = json.loads(self.description.read_bytes())
            layout = Layout(**known["layout"])
            size = self.content.stat().st_size
            if known["format"] != FORMAT or known["key"] != self.key:
                reason = "was made by another teacher, on other images or by another version"
            elif size != layout.bytes:
                reason = f"has {size:,} bytes where {layout.bytes:,} are due"
            elif self._sha256(layout) != known["sha256"]:
                reason = "is damaged: its SHA-256 is not the one that it was written with"
            else:
                return layout
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"or its description {self.description.name} is missing or damaged ({type(error).__name__})"
        raise ArtifactError(f"{self.content} {reason}")

    def opened(self, layout: Layout) -> tuple[Tensor, Tensor | None]:
        """The records (n, bytes) uint8, mapped into memory, and of a partial layout the views (images, views)."""
        # A private mapping: torch wants to be able to write, and nothing written would ever reach the file.
        content = np.memmap(self.content, np.uint8, "c")
        records = torch.from_numpy(content[layout.head_bytes :]).view(layout.records, layout.record_bytes)
        if not layout.partial:
            return records, None
        head = torch.from_numpy(content[: layout.head_bytes]).view(torch.int32)
        return records, head.view(layout.images, layout.views).long()

    def _sha256(self, layout: Layout) -> str:
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, lambda: _digest(self.key, layout)).hexdigest()


def require_room(folder: Path, layout: Layout, free: int, files: int = 1) -> None:
    """See that so many files fit into the `free` bytes of a folder's disk; raises ResourceError."""
    needed = files * layout.bytes
    if needed <= free:
        return
    fewer = min(free // (files * Layout(layout.images, 1, layout.classes, True).bytes), layout.views - 1)
    # Of one view there can be no fewer.
    advice = f"set `views` to at most {fewer}" if fewer > 0 else "give the run a folder on a larger disk"
    whose = "the teacher's logits" if files == 1 else f"{files} teachers' logits"
    raise ResourceError(
        f"{whose} on {layout.views} views of each of {layout.images:,} images need {needed:,} bytes, and {free:,} are "
        f"free in {folder}. Free some, {advice}, or ask the teacher in every step: `targets: online`"
    )


def _digest(key: str, layout: Layout) -> "hashlib._Hash":
    """A SHA-256 that has taken in the description already, so that a change of it is found out as well."""
    return hashlib.sha256(json.dumps([FORMAT, key, vars(layout)]).encode())


@contextmanager
def _advising() -> Iterator[None]:
    """Say with an error of the disk what else there is to do."""
    try:
        yield
    except ResourceError as error:
        raise ResourceError(
            f"{error}. Or set `views` to a smaller number, or ask the teacher in every step: `targets: online`"
        ) from error
