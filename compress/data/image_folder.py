"""Image files in class folders."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NoReturn

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress.data.assemble import SAMPLE, assemble
from compress.data.base import Data, InMemory, MissingData, Preprocessing, Split
from compress.data.files import Damage, Files, broken, decoded, listed, refuse, without
from compress.data.pictures import UNREADABLE, reason, require_file, suffixes
from compress.data.split import Labelled, complete
from compress.errors import DataError
from compress.spelling import nearest_file

IN_MEMORY_BYTES = 2**30  # data sets up to this size, at the net's resolution, are decoded once and kept
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class ImageFolder(Damage, Preprocessing):
    """Image files in class folders, `train/<class>/*.jpg`, as ImageNet has them (arXiv:1409.0575).

    Splits are `train/`, `val/` (or `valid/`, `validation/`) and `test/`; where validation or test images are
    missing they are split off the training images by the seed: a tenth, a fifth. Class folders that stand
    directly in `path` are split three ways. Images in folders inside a class folder count as that class's.
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
        folders = _layout(root)
        names = _class_names(folders)
        given, warnings = _index(folders, names)
        splits, content, damaged = self._splits(root, complete(given, seed))
        warnings += damaged
        return assemble(self, str(root), splits, names, mirror=self.mirror, content=content, warnings=warnings)

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


def _layout(root: Path) -> dict[str, Path]:
    """The folder of each split that there is; class folders without splits are all `train`."""
    if not os.path.exists(root):
        near = nearest_file(root, folder=True)
        raise MissingData(f"there is no folder {root}; give `path` a folder with train/<class>/<images>.{near}")
    if not root.is_dir():
        raise DataError(f"{root} is a file; give `path` a folder with train/<class>/<images>.")
    found: dict[str, Path] = {}
    for folder in _folders(root):
        # Case is ignored: were Train/ and Test/ taken for two classes, all would run and mean nothing.
        split = next((split for split, names in SPLITS.items() if folder.name.lower() in names), None)
        if split in found:
            raise DataError(f"{root} has both {found[split].name}/ and {folder.name}/; keep one of them.")
        if split is not None:
            found[split] = folder
    if found and "train" not in found:
        there = next(iter(found.values())).name
        raise DataError(f"{root} has {there}/ but no train/; put the training images into train/<class>/.")
    return {split: found[split] for split in SPLITS if split in found} or {"train": root}


def _folders(folder: Path) -> list[Path]:
    """The folders inside by name, without hidden ones and what operating systems and Python leave behind."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        _stop(error)
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]


def _stop(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {reason(error)}.") from None


def _class_names(folders: Mapping[str, Path]) -> list[str]:
    """The class folders' names, which must be the same in every split."""
    names = {split: [folder.name for folder in _folders(path)] for split, path in folders.items()}
    train = names["train"]
    if not train:
        raise DataError(f"{folders['train']} has no class folders; put each class's images into its own.")
    for split, own in names.items():
        odd = sorted(set(own) ^ set(train))
        if odd:
            here, there = ("train", split) if odd[0] in train else (split, "train")
            raise DataError(
                f"{folders[here] / odd[0]} has no counterpart in {folders[there]}; "
                f"every split must have the same class folders ({len(odd)} differ)."
            )
    return train


def _index(folders: Mapping[str, Path], names: Sequence[str]) -> tuple[dict[str, Labelled], list[str]]:
    """Paths and labels of every split, sorted, and a warning about files that are no images."""
    given: dict[str, Labelled] = {}
    empty: list[str] = []
    others: list[str] = []
    for split, folder in folders.items():
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            images, rest = image_files(folder / name)
            paths += images
            labels += [label] * len(images)
            others += rest
            if not images:
                empty.append(str(folder / name))
        given[split] = np.array(paths, dtype=object), np.array(labels, dtype=np.int64)
    if empty:
        count = "1 class folder has" if len(empty) == 1 else f"{len(empty)} class folders have"
        raise DataError(f"{count} no images; add some, or remove the class everywhere:\n{listed(empty)}")
    return given, _left_out(others)


def _left_out(others: Sequence[str]) -> list[str]:
    if not others:
        return []
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return [f"Left out, being no images by their suffix: {os.path.basename(others[0])}{more}."]


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Image files and other files under a class folder, sorted, links followed, hidden files left out."""
    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for here, inside, files in os.walk(folder, onerror=_stop, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back to a folder above
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__")))
        for name in sorted(name for name in files if not name.startswith(".")):
            known = os.path.splitext(name)[1].lower() in suffixes()
            (images if known else others).append(os.path.join(here, name))
    return images, others


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
