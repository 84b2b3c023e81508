"""Checkpoints inside a stage: what a training is made of at the end of a step, on disk, and found again.

Each is one safetensors file; what is no tensor stands as JSON in its metadata. Its name says which training of the
stage it belongs to, after how many steps, and the SHA-256 of its content: a file that has its name is whole, one whose
content does not hash to it is damaged. The last two of a running training are kept, and of a finished one its result.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from compress.distributed.group import current
from compress.errors import ResourceError
from compress.files import durable

EVERY_S = 60.0
KEPT = 2
UNNAMED = "next.safetensors"
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DIGITS = 32  # of the SHA-256, in the name
NAME = re.compile(r"(\d{4})-(\d{9}|done)-([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What a training is made of: tensors by name, and facts that JSON can say. `done` where it is its result."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    done: bool = False

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


@dataclass
class Checkpoints:
    """The checkpoints of a stage, which may train several times; without a folder nothing is kept.

    `every_s` seconds after the last one another is due; 0 for one after each step. `warn` hears of damaged files.
    `earlier_s` is how long the stage had been at work, in earlier processes, when the one it goes on from was written.
    """

    folder: Path | None = None
    every_s: float = EVERY_S
    warn: Callable[[str], None] = lambda text: None
    earlier_s: float = 0.0
    trainings: int = 0
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for _, path in self._files("*"):
            seconds = _facts(path).get("seconds", 0.0)
            self.earlier_s = max(self.earlier_s, seconds)

    @property
    def seconds(self) -> float:
        """How long the stage has been at work, all processes together."""
        return self.earlier_s + time.perf_counter() - self.began

    def next(self) -> "Keeper":
        """The keeper of the stage's next training; the order of trainings is the same each time a stage runs."""
        self.trainings += 1
        return Keeper(self, self.trainings - 1)

    def _files(self, training: str) -> Iterator[tuple[str, Path]]:
        """What is there of a training: the number of steps, or `done`, and the file; the last first."""
        if self.folder is None or not self.folder.is_dir():
            return
        found = [(match, path) for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))]
        for match, path in sorted(found, key=lambda each: each[0][2], reverse=True):
            if training in (match[1], "*"):
                yield match[2], path


@dataclass
class Keeper:
    """Keeps and finds the checkpoints of one training of a stage, the `number`-th from 0."""

    store: Checkpoints
    number: int
    last: float = field(default_factory=time.perf_counter)

    @property
    def due(self) -> bool:
        """Whether it is time for another; of several processes the first one says so."""
        late = time.perf_counter() - self.last >= self.store.every_s
        return late and self.store.folder is not None and current().leads

    def find(self, made_of: str) -> Checkpoint | None:
        """The training's result or its last whole checkpoint; None where it has to start.

        `made_of` is a key of all that determines the training: a file with another is as good as none. Damaged files
        are said aloud and removed. Several processes read the one that the first chooses; raises ResourceError where
        another cannot.
        """
        chosen: list[Checkpoint] = []
        path = current().first(partial(self._choose, made_of, chosen))
        if path is None or chosen:
            return next(iter(chosen), None)
        found = self._read(Path(path))
        if found is None:
            raise ResourceError(f"{path} cannot be read here: all processes need the same run folder, on a shared disk")
        return found

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep what there is after `step` steps, and nothing older than the one before it. Raises ResourceError."""
        self._write(f"{step:09d}", tensors, facts)
        for _, old in list(self._own())[KEPT:]:
            durable.remove(old)

    def finish(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the result; how it came about is no longer needed. Raises ResourceError."""
        self._write("done", tensors, facts)
        for step, old in list(self._own()):
            if step != "done":
                durable.remove(old)

    def _choose(self, made_of: str, chosen: list[Checkpoint]) -> str | None:
        """Put the result or the last whole checkpoint into `chosen`; gives its path."""
        for _, path in list(self._own()):
            found = self._read(path)
            if found is not None and found.facts.get("made_of") == made_of:
                chosen.append(found)
                return str(path)
            why = "belongs to another training" if found else "is damaged"
            self.store.warn(f"{path.name} {why} and is not used; the training goes on from what was kept before it")
            durable.remove(path)
        return None

    def _own(self) -> Iterator[tuple[str, Path]]:
        return self.store._files(f"{self.number:04d}")

    def _write(self, step: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        if self.store.folder is None or not current().leads:
            return
        known = {**facts, "seconds": self.store.seconds}
        # Its name is known when all is written; until it has that, nothing takes it for a checkpoint.
        unnamed = self.store.folder / UNNAMED
        digest = _stream(unnamed, tensors, {"facts": json.dumps(known)})
        path = self.store.folder / f"{self.number:04d}-{step}-{digest[:DIGITS]}.safetensors"
        durable.rename_file(unnamed, path)
        self.last = time.perf_counter()

    def _read(self, path: Path) -> Checkpoint | None:
        match = NAME.fullmatch(path.name)
        assert match is not None, path
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:DIGITS] != match[3]:
                return None
            return Checkpoint(load(content), _facts(path), match[2] == "done")
        except (OSError, SafetensorError, ValueError):
            return None


def _facts(path: Path) -> dict[str, Any]:
    """The facts of a file, none where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {}).get("facts", "{}"))
            return facts
    except (OSError, SafetensorError, ValueError):
        return {}


def _stream(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file tensor by tensor, so that memory holds one at a time; gives its SHA-256.

    The format: the header's length in 8 bytes, the header as JSON, then the tensors, wider types first.
    """
    ordered = sorted(tensors.items(), key=lambda each: (-each[1].element_size(), each[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, value in ordered:
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with durable.writing(path, 8 + len(text) + end) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for _, value in ordered:
            flat = value.detach().cpu().contiguous().reshape(-1)
            content = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
            file.write(content)
            digest.update(content)
    return digest.hexdigest()
