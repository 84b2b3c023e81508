"""Disks that fail: the n-th call that writes below a folder, and all after it, end with an error of the system.

For tests and for `make faults`; knows no pytest. A run is made with a fault at one of its writes, then made again
without: it should end as one that nothing happened to.
"""

import builtins
import errno
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tiny import tiny_pipeline

from compress.console import explain
from compress.running.runner import run

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
CHECKPOINT = re.compile("-[0-9a-f]{32}")  # the end of its name, with the seconds that it took
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TRAINING = {"epochs": 1, "batch_size": 64, "lr": 0.01}
PIPELINE: dict[str, Any] = {
    "teacher": None,
    "student": {"tiny": {"width": 8}},
    "baseline": {"training": TRAINING},
    "stages": [{"quantize": {"training": TRAINING}}],
    "benchmark": {"rounds": 1},
}


@dataclass
class Disk:
    """Counts the calls that write below a folder, and fails from a chosen one on, if one is chosen.

    Chosen is the `number`-th, counted from 0, or the first at the site `at`. `sites` has what each call was: its kind
    and the file's name.
    """

    folder: Path
    number: int | None = None
    at: str | None = None
    error: int = errno.ENOSPC
    sites: list[str] = field(default_factory=list)

    def touch(self, kind: str, path: object) -> None:
        """A call that writes: raises OSError from the chosen one on."""
        place = Path(os.path.abspath(os.fsdecode(path)))  # type: ignore[call-overload]
        if not place.is_relative_to(self.folder):
            return
        self.sites.append(f"{kind} {CHECKPOINT.sub('-*', str(place.relative_to(self.folder)))}")
        chosen = self.at in self.sites if self.at else self.number is not None and len(self.sites) > self.number
        if chosen:
            # As the system does: what knows only a handle names no file.
            known = () if kind in ("write", "pwrite", "fsync") else (str(path),)
            raise OSError(self.error, os.strerror(self.error), *known)

    @contextmanager
    def watched(self) -> Iterator["Disk"]:
        """Count, and fail, in this block."""
        with ExitStack() as stack:
            opened = functools.partial(self._open, io.open)
            for module in (io, builtins):
                stack.enter_context(patch.object(module, "open", opened))
            for name, place in (("replace", 1), ("rename", 1), ("mkdir", 0), ("fsync", 0), ("pwrite", 0)):
                stack.enter_context(patch.object(os, name, self._watched(name, place)))
            stack.enter_context(patch.object(os, "open", functools.partial(self._handle, os.open)))
            yield self

    def _watched(self, name: str, place: int) -> Callable[..., Any]:
        plain = getattr(os, name)

        def call(*words: Any, **more: Any) -> Any:
            where = words[place]
            self.touch(name, os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else where)
            return plain(*words, **more)

        return call

    def _handle(self, plain: Callable[..., int], path: Any, flags: int, *words: Any, **more: Any) -> int:
        if flags & WRITING:
            self.touch("open", path)
        return plain(path, flags, *words, **more)

    def _open(self, plain: Callable[..., Any], path: Any, mode: str = "r", *words: Any, **more: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return plain(path, mode, *words, **more)
        if more.get("opener") is None:
            self.touch("open", path)
        return _File(plain(path, mode, *words, **more), path, self)


class _File:
    """A file of which half of what is written arrives before the disk is full."""

    def __init__(self, inner: Any, path: Any, disk: Disk) -> None:
        self.inner, self.path, self.disk = inner, path, disk

    def write(self, content: Any) -> int:
        try:
            self.disk.touch("write", self.path)
        except OSError:
            self.inner.write(content[: len(content) // 2])
            raise
        written: int = self.inner.write(content)
        return written

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass(frozen=True)
class Fault:
    """What came of a run whose writes failed from a site on: its exit code and its sentence."""

    site: str
    error: str
    code: int
    said: str

    @property
    def problems(self) -> list[str]:
        """What is not as it should be."""
        full = self.error in ("ENOSPC", "EDQUOT")
        found = {
            f"exit code {self.code} where 6 is due": self.code != 6,
            "not one sentence": "\n" in self.said or "Traceback" in self.said,
            "no free bytes": full and "bytes are free" not in self.said,
        }
        return [name for name, wrong in found.items() if wrong]


@contextmanager
def quick() -> Iterator[None]:
    """Leave out what takes time and writes nothing: the rehearsal before a run, and the length of a measurement."""
    with (
        patch("compress.running.runner.preflight", lambda *_, **__: None),
        patch("compress.measure.latency.TURN_S", 0.002),
    ):
        yield


def ended(folder: Path) -> tuple[int, str]:
    """The exit code of the pipeline's run in a folder, and what it said where that is not 0."""
    try:
        run(tiny_pipeline(**PIPELINE), folder, checkpoint_every=0)
    except Exception as error:
        text, code = explain(error)
        return code, text
    return 0, ""


def result(folder: Path) -> dict[str, Any]:
    """What a run must come to in any case: the bytes of nets and files, and the figures that are no times."""
    kinds = ("*.safetensors", "*.onnx", "*.csv", "test.npz", "net.json")
    files = sorted(path for kind in kinds for path in folder.rglob(kind))
    rows = json.loads((folder / "report.json").read_text())["rows"]
    times = ("latency_ms", "throughput", "seconds")
    return {
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "rows": [{key: value for key, value in row.items() if key not in times} for row in rows],
        "half": [str(path) for path in folder.rglob("*.unfinished")],
    }


def undisturbed(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The sites of a run that nothing happens to, and what it comes to."""
    with quick(), Disk(folder).watched() as disk:
        code, said = ended(folder)
    assert code == 0, said
    return disk.sites, result(folder)


def disturbed(folder: Path, sites: Sequence[str]) -> Iterator[Fault]:
    """Runs in one folder, one after the other, each with a fault at one of the sites; the kinds of errors take turns.

    Each goes on from what the last one could write, so that all of them take little longer than one.
    """
    for i, site in enumerate(sites):
        error = ERRORS[i % len(ERRORS)]
        with quick(), Disk(folder, at=site, error=error).watched():
            code, said = ended(folder)
        yield Fault(site, errno.errorcode[error], code, said)


def mended(folder: Path, wanted: dict[str, Any]) -> list[str]:
    """What is wrong with a run without faults after those with: it should come to what an undisturbed one did."""
    with quick():
        code, said = ended(folder)
    if code:
        return [said]
    found = result(folder)
    return [f"{part} differ: {found[part]}, not {wanted[part]}" for part in wanted if found[part] != wanted[part]]


def spread(sites: Sequence[str], count: int | None) -> list[str]:
    """Sites far from each other, about `count`, or each of them once."""
    each = [*dict.fromkeys(sites)]
    return each if count is None else [each[i * len(each) // count] for i in range(min(count, len(each)))]
