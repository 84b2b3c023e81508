"""Class folders on disk: which folder is which split, what the classes are, what lies beside.

Names alone are looked at, and PyTorch is not imported: `compress init` asks the same and answers in half a second.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from compress.errors import DataError
from compress.files.image_files import (
    a_few,
    directly_in,
    files_in,
    folders,
    holds_images,
    how_to_read,
    image_files,
    is_unread,
    left_out,
)

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".parquet", ".txt"}
DETECTION = {"images", "labels", "annotations", "masks"}  # side by side where boxes or outlines are learnt
SHOWN = 10
SPLITS = {
    split: re.compile(rf"{words}([ _-]?(set|data|images))?", re.IGNORECASE)
    for split, words in {"train": "train(ing)?", "val": "val(id(ation)?)?", "test": "test(ing)?"}.items()
}


@dataclass(frozen=True)
class ClassFolders:
    """The folder of every class, by split and by name, in one order; `warnings` are of what is left out beside them."""

    splits: dict[str, dict[str, Path]]
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The classes; composed (NFC), so that a name that one system has taken apart is the same as another's."""
        return list(self.splits["train"])


def class_folders(root: Path) -> ClassFolders:
    """The class folders of a folder that is there, in splits or not; looks at names alone.

    Raises DataError where they cannot be told, or where they differ from split to split.
    """
    if not root.is_dir():
        what = "an archive; unpack it, and" if root.name.lower().endswith(ARCHIVES) else "a file;"
        raise DataError(f"{root} is {what} give a folder with a folder of images for each class.")
    inside = folders(root)
    found = _splits(root, inside)
    if found and "train" not in found:
        there = next(iter(found.values())).name
        raise DataError(f"{root} has {there}/ but no train/; put the training images into train/<class>/.")
    where = found or {"train": root}
    splits = {split: _by_name(folder) for split, folder in where.items()}
    _require_classes(root, where["train"], splits["train"])
    _require_the_same(where, splits)
    beside = [f"{folder.name}/" for folder in inside if found and folder not in found.values() and holds_images(folder)]
    loose = [path for folder in {root, *where.values()} for path in directly_in(folder)]
    return ClassFolders(splits, tuple(_of_beside(beside, loose)))


def class_images(found: ClassFolders) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """The images of every class, by split and by name, and warnings of what is left out.

    Raises DataError for class folders without any.
    """
    images: dict[str, dict[str, list[str]]] = {}
    others: list[str] = []
    empty: dict[Path, list[str]] = {}
    for split, named in found.splits.items():
        images[split] = {}
        for name in found.names:
            images[split][name], rest = image_files(named[name])
            others += rest
            if not images[split][name]:
                empty[named[name]] = rest
    if empty:
        _refuse(empty)
    return images, [*found.warnings, *left_out(others)]


def _refuse(empty: Mapping[Path, Sequence[str]]) -> NoReturn:
    """Raise DataError for class folders without images, with the other files in each."""
    if {folder.name.lower() for folder in empty} <= DETECTION:
        folder = next(iter(empty))
        raise DataError(
            f"{folder.parent} has the layout of object detection or segmentation, with {folder.name}/ for a class; "
            "a classifier learns from a folder for each class, such as train/cat/1.jpg."
        )
    lines = []
    for folder, others in empty.items():
        unread = [path for path in others if is_unread(path)]
        why = f": {a_few(unread)} cannot be read; {how_to_read(unread)}" if unread else ""
        lines.append(f"  {folder}{why}")
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    count = "1 class folder has" if len(empty) == 1 else f"{len(empty)} class folders have"
    raise DataError("\n".join([f"{count} no images; add some, or remove the class everywhere:", *lines[:SHOWN], *more]))


def _splits(root: Path, inside: Sequence[Path]) -> dict[str, Path]:
    """The folder of each split, by names; none where folders of such a name are classes, as a train among vehicles."""
    found: dict[str, Path] = {}
    for folder in inside:
        # Case is ignored: were Train/ and Test/ taken for two classes, all would run and mean nothing.
        split = next((split for split, words in SPLITS.items() if words.fullmatch(folder.name)), None)
        if split in found:
            raise DataError(f"{root} has both {found[split].name}/ and {folder.name}/; keep one of them.")
        if split is not None:
            found[split] = folder
    others = [folder for folder in inside if folder not in found.values()]
    if any(holds_images(folder) for folder in others) and not any(folders(folder) for folder in found.values()):
        return {}
    return {split: found[split] for split in SPLITS if split in found}


def _by_name(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in folders(folder):
        name = unicodedata.normalize("NFC", path.name)
        if name in named:
            raise DataError(f"{folder} has two folders called {name}, in different encodings; make them one.")
        named[name] = path
    return named


def _require_classes(root: Path, train: Path, named: Mapping[str, Path]) -> None:
    """Raise DataError for fewer than two classes, with what the folder may be instead."""
    if len(named) > 1:
        return
    if deeper := _deeper(named):
        raise DataError(f"{train} holds one folder, {next(iter(named))}/. Did you mean {str(deeper)!r}?")
    own = f"put each class's images into its own, such as {train / 'cat' / '1.jpg'}"
    table = next((path.name for path in files_in(root) if path.suffix.lower() in TABLES), None)
    if table is not None and holds_images(root):
        raise DataError(f"{root} has no folder for each class, and {table} is not read; {own}.")
    if not named:
        raise DataError(f"{train} has no class folders; {own}.")
    raise DataError(f"{train}: there is only one class, {next(iter(named))!r}; a classifier needs two or more.")


def _deeper(named: Mapping[str, Path]) -> Path | None:
    """The first folder below a lone one that has class folders itself, as where an archive was unpacked twice."""
    while len(named) == 1:
        (folder,) = named.values()
        if directly_in(folder):
            return None
        named = {path.name: path for path in folders(folder)}
        if sum(map(holds_images, named.values())) > 1:
            return folder
    return None


def _require_the_same(where: Mapping[str, Path], splits: Mapping[str, Mapping[str, Path]]) -> None:
    train = splits["train"]
    for split, own in splits.items():
        odd = sorted(set(own) ^ set(train))
        if not odd:
            continue
        if not own and directly_in(where[split]):
            raise DataError(
                f"{where[split]} has images but no class folders, so nobody can tell what is right; sort them into "
                f"classes, or move the folder away: {split} images are then split off the training images."
            )
        here, there = ("train", split) if odd[0] in train else (split, "train")
        twin = next((name for name in splits[there] if name.strip().casefold() == odd[0].strip().casefold()), None)
        instead = f" but {twin!r}, differently written" if twin else ""
        raise DataError(
            f"{splits[here][odd[0]]} has no counterpart in {where[there]}{instead}; "
            f"every split must have the same class folders ({len(odd)} differ)."
        )


def _of_beside(beside: Sequence[str], loose: Sequence[Path]) -> list[str]:
    """Warnings of folders beside the splits, and of images beside the class folders."""
    said = []
    if beside:
        said.append(f"Left out, being no split by their name: {a_few(beside)}; known: train, val and test.")
    if loose:
        count = "1 image" if len(loose) == 1 else f"{len(loose):,} images"
        said.append(f"Left out {count} beside the class folders: {a_few([str(path) for path in sorted(loose)])}.")
    return said
