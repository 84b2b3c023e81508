"""Images that stay in their files until they are asked for."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.data.base import Preprocessing
from compress.data.pictures import UNREADABLE, read, reason
from compress.errors import DataError


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
        return decoded([self.paths[index] for index in indices], self.prep)


def decoded(paths: Sequence[str], prep: Preprocessing) -> Tensor:
    """The images in the order of `paths`, uint8 (n, channels, size, size).

    Raises DataError with the path of every file that cannot be read.
    """
    images = np.empty((len(paths), prep.channels, prep.size, prep.size), dtype=np.uint8)

    def fill(index: int) -> str | None:
        try:
            images[index] = read(paths[index], prep)
        except UNREADABLE as error:
            return f"{paths[index]}: {reason(error)}"
        return None

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        refuse(pool.map(fill, range(len(paths))))
    return torch.from_numpy(images)


def refuse(problems: Iterable[str | None]) -> None:
    """Raise DataError that lists the files with a problem; None stands for a good file."""
    bad = [problem for problem in problems if problem is not None]
    if bad:
        count = "1 image file" if len(bad) == 1 else f"{len(bad)} image files"
        raise DataError(f"{count} cannot be read; repair or remove:\n{listed(bad)}")


def listed(lines: Sequence[str], most: int = 10) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])
