"""Images that stay in their files until they are asked for, and what becomes of files that cannot be read."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.data.base import Preprocessing
from compress.data.pictures import UNREADABLE, read, reason, try_out
from compress.errors import DataError

SHOWN = 10
_broken: dict[int, dict[int, str]] = {}  # what was found out of the files with this hash of names, sizes and times


class Damage(Config):
    """What becomes of images that cannot be decoded: `damaged: stop` ends the run with their names, `skip` leaves them
    out with a warning, up to `max_damaged` of all (a share, 0.01 is one in a hundred).
    """

    newer: ClassVar[tuple[str, ...]] = ("damaged", "max_damaged")

    damaged: Literal["stop", "skip"] = "stop"
    max_damaged: Annotated[float, Field(ge=0, lt=1)] = 0.01

    def left_out(self, problems: Sequence[str], count: int) -> list[str]:
        """A warning that lists the files with a problem, of `count` in all; raises DataError where they end the run."""
        if not problems:
            return []
        if self.damaged == "stop":
            refuse(problems, count)
        share = f"{_files(len(problems))} of {count:,}"
        if len(problems) > self.max_damaged * count:
            raise DataError(
                f"{share} cannot be read ({100 * len(problems) / count:.2g} %), and `max_damaged` allows "
                f"{100 * self.max_damaged:.2g} %; repair or remove them, or allow more, "
                f"`max_damaged: {_enough(len(problems), count)}`:\n{listed(problems)}"
            )
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        left_out = "is left out" if len(problems) == 1 else "are left out"
        return [f"{share} cannot be read and {left_out}: {'; '.join(problems[:SHOWN])}{more}"]


@dataclass(frozen=True)
class Files:
    """Images decoded on demand by a few threads (Pillow decodes and resizes outside Python's lock).

    Raises DataError, naming the files, at the moment that one of them cannot be decoded.
    """

    paths: tuple[str, ...]
    prep: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        images, problems = decoded([self.paths[index] for index in indices], self.prep)
        refuse(problems.values())
        return images


def decoded(paths: Sequence[str], prep: Preprocessing) -> tuple[Tensor, dict[int, str]]:
    """The images in the order of `paths`, uint8 (n, channels, size, size), and why some could not be read, by index.

    What stands in the place of those is arbitrary.
    """
    images = np.zeros((len(paths), prep.channels, prep.size, prep.size), dtype=np.uint8)

    def fill(index: int) -> None:
        images[index] = read(paths[index], prep)

    problems = _each(paths, fill)
    return torch.from_numpy(images), problems


def broken(paths: Sequence[str]) -> dict[int, str]:
    """Why files cannot be decoded, by index; each is decoded once, and for the same files only once in a process."""
    key = hash(tuple((path, *_stamp(path)) for path in paths))
    if key not in _broken:
        _broken[key] = _each(paths, lambda index: try_out(paths[index]))
    return _broken[key]


def _stamp(path: str) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def _each(paths: Sequence[str], look: Callable[[int], None]) -> dict[int, str]:
    """Look at all files by a few threads; the problems by index."""

    def problem(index: int) -> str | None:
        try:
            look(index)
        except UNREADABLE as error:
            return f"{paths[index]}: {reason(error)}"
        return None

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = enumerate(pool.map(problem, range(len(paths))))
        return {index: said for index, said in found if said is not None}


def without(problems: Mapping[int, str], sizes: Sequence[int]) -> list[np.ndarray]:
    """The indices of what is left of each of several groups, counted through all of them."""
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [np.setdiff1d(part, [*problems], assume_unique=True) for part in parts]


def refuse(problems: Iterable[str], count: int | None = None) -> None:
    """Raise DataError that lists the files with a problem, if there are any; `count` is of all files, where known."""
    bad = [*problems]
    if bad:
        more = ""
        if count is not None and len(bad) > Damage().max_damaged * count:
            more = f" and `max_damaged: {_enough(len(bad), count)}` beside `path`"
        which = f"{listed(bad)}\nor leave out with `damaged: skip`{more}"
        raise DataError(f"{_files(len(bad))} cannot be read; repair or remove:\n{which}")


def _enough(bad: int, count: int) -> str:
    """The share that just allows so many, in whole per cent."""
    shares = (percent / 100 for percent in range(1, 100))
    return f"{next((share for share in shares if bad <= share * count), 0.999):g}"


def _files(count: int) -> str:
    return "1 image file" if count == 1 else f"{count:,} image files"


def listed(lines: Sequence[str], most: int = SHOWN) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])
