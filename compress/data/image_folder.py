"""Image files in class folders."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress.data.assemble import SAMPLE, assemble
from compress.data.base import Data, InMemory, MissingData, Preprocessing, Split
from compress.data.files import Damage, Files, broken, decoded, refuse, without
from compress.data.pictures import UNREADABLE, reason, require_file
from compress.data.split import Labelled, complete
from compress.files.class_folders import ClassFolders, class_folders, class_images
from compress.spelling import nearest_file

IN_MEMORY_BYTES = 2**30  # data sets up to this size, at the net's resolution, are decoded once and kept


class ImageFolder(Damage, Preprocessing):
    """Image files in class folders, `train/<class>/*.jpg`, as ImageNet has them (arXiv:1409.0575).

    Splits are `train/` (or `training/`, `train_set/`), `val/` (or `valid/`, `validation/`) and `test/`; where
    validation or test images are missing they are split off the training images by the seed: a tenth, a fifth.
    Class folders that stand directly in `path` are split three ways. Images in folders inside a class folder count
    as that class's.
    `mirror` says whether a mirrored image still shows its class.

    All images stay in memory if they fit 1 GiB at the net's size; otherwise each is decoded when asked for,
    and `mean` and `std` come from 2,048 training images. With `damaged: skip` those are all decoded once
    beforehand, since training has to know how many there are.
    """

    name: ClassVar[str] = "image_folder"

    path: Path
    size: Annotated[int, Field(ge=8, le=1024)] = 224
    mirror: bool = True

    def __call__(self, seed: int) -> Data:
        """The folder's splits; those that it lacks are drawn by `seed`."""
        root = Path(os.path.expanduser(self.path))
        folders = class_folders(_there(root))
        given, warnings = _index(folders)
        splits, content, damaged = self._splits(root, complete(given, seed))
        warnings += damaged
        return assemble(self, str(root), splits, folders.names, mirror=self.mirror, content=content, warnings=warnings)

    def _splits(self, root: Path, files: Sequence[Labelled]) -> tuple[list[Split], str | None, list[str]]:
        """The splits, decoded if they fit; if not, what stands for their content in the fingerprint; warnings.

        Files are left out of a split after it is drawn, so that one more does not move all others.
        """
        everything = [path for paths, _ in files for path in paths]
        labels = np.concatenate([numbers for _, numbers in files])
        if len(everything) * self.channels * self.size**2 > IN_MEMORY_BYTES:
            pixels, problems = None, broken(everything) if self.damaged == "skip" else {}
        else:
            pixels, problems = decoded(everything, self)
        warnings = self.left_out([*problems.values()], len(everything))
        kept = without(problems, [len(numbers) for _, numbers in files])
        if pixels is not None:
            return [Split(InMemory(_some(pixels, part)), labels[part]) for part in kept], None, warnings
        paths = [tuple(everything[i] for i in part) for part in kept]
        content = _cheap_hash(root, self, paths, [labels[part] for part in kept])
        return [Split(Files(p, self), labels[part]) for p, part in zip(paths, kept, strict=True)], content, warnings


def _some(pixels: Tensor, part: np.ndarray) -> Tensor:
    """The images at ascending indices, without a copy where they stand side by side."""
    if len(part) and part[-1] - part[0] + 1 == len(part):
        return pixels[part[0] : part[-1] + 1]
    return pixels[torch.from_numpy(part)]


def _there(root: Path) -> Path:
    """The folder; raises MissingData where there is none."""
    if not os.path.exists(root):
        from_here = "" if root.is_absolute() else f", seen from {Path.cwd()}"
        near = nearest_file(root, folder=True)
        raise MissingData(
            f"there is no folder {root}; give `path` a folder with train/<class>/<images>{from_here}.{near}"
        )
    return root


def _index(folders: ClassFolders) -> tuple[dict[str, Labelled], list[str]]:
    """Paths and labels of every split, sorted, and warnings about what is left out."""
    images, warnings = class_images(folders)
    given: dict[str, Labelled] = {}
    for split, named in images.items():
        labels = np.repeat(np.arange(len(named)), [len(paths) for paths in named.values()]).astype(np.int64)
        given[split] = np.array([path for paths in named.values() for path in paths], dtype=object), labels
    return given, warnings


def _cheap_hash(root: Path, prep: Preprocessing, paths: Sequence[Sequence[str]], labels: Sequence[np.ndarray]) -> str:
    """What stands for the content of too many files to read: paths, sizes, labels, 2,048 files' bytes.

    Reading all of ImageNet takes minutes to hours. Times of change are left out: a copy of the data is the
    same data. Raises DataError for files that are gone, empty or none, so that they are found before any training.
    """
    digest = hashlib.sha256(repr(prep.model_dump(exclude={"path", "damaged", "max_damaged"})).encode())
    everything = [path for split in paths for path in split]
    problems: list[str] = []
    sample = set(np.linspace(0, len(everything) - 1, min(SAMPLE, len(everything))).round().astype(int).tolist())
    for index, path in enumerate(everything):
        try:
            size = require_file(path)
            digest.update(f"{path.removeprefix(f'{root}/')}\0{size}\0".encode(errors="surrogateescape"))
            if index in sample:
                digest.update(Path(path).read_bytes())
        except UNREADABLE as error:
            problems.append(f"{path}: {reason(error)}")
    refuse(problems)
    for split in labels:
        digest.update(split.astype("<i8").tobytes())
    return digest.hexdigest()
