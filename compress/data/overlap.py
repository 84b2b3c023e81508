"""What is wrong with a data set as a whole: images in several splits or under several labels, classes left out."""

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compress.data.base import Data, Images, InMemory, Split, Subset
from compress.data.files import Files

CHUNK = 64  # images hashed together
SAMPLE = 2048  # test images in files that are looked for in the other splits
TAIL_BYTES = 4096  # of a compressed image hardly two are alike
BUDGET_S = 10.0  # for files, which may lie on a slow disk
UNEVEN = 10  # times as many images in one class as in another
SHOWN = 3  # class names in a warning


def remarks(data: Data, budget_s: float = BUDGET_S) -> Iterator[str]:
    """Warnings about a data set: one for each kind of trouble, with the count.

    Images in memory are compared pixel for pixel, all with all; of images in files up to 2,048 test images are
    compared byte for byte with the files of the same size in the other splits, for `budget_s` seconds. Images that are
    neither are not compared.
    """
    yield from uneven(data)
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    known = pixels(splits) or files(splits, budget_s)
    if known is not None:
        yield from repeated(known)
        yield from contradicted(known, data.class_names)


def uneven(data: Data) -> Iterator[str]:
    """Classes that a split lacks, and numbers of training images that are far apart."""
    for name, split in (("validation", data.val), ("test", data.test)):
        absent = np.setdiff1d(np.arange(data.classes), split.labels)
        if len(absent):
            shown = ", ".join(data.class_names[i] for i in absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
            yield f"{len(absent)} of {data.classes} classes have no {name} image ({shown}): accuracy leaves them out."
    counts = np.bincount(data.train.labels, minlength=data.classes)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= UNEVEN * counts[least]:
        yield (
            f"The classes are uneven: {data.class_names[most]} has {counts[most]:,} training images, "
            f"{data.class_names[least]} {counts[least]:,}; rare classes will hardly be learnt."
        )


@dataclass(frozen=True)
class Known:
    """The images of a split that could be compared: what stands for their content, and their labels.

    `total` is how many were looked at, `how` says in what sense two are the same; `complete` is off where there may be
    more of them.
    """

    content: Sequence[bytes]
    labels: Sequence[int]
    total: int
    how: str
    complete: bool = True


def repeated(known: Mapping[str, Known]) -> Iterator[str]:
    """Test images that stand in the training set, and validation images that do."""
    train = set(known["training"].content)
    for name, effect in (("test", "the accuracy is flattered"), ("validation", "the best epoch is chosen by them")):
        split = known[name]
        count = sum(content in train for content in split.content)
        if count:
            least = "" if split.complete else "at least "
            yield (
                f"{least}{count} of {split.total} {name} images stand in the training set too, {split.how}; {effect}."
            )


def contradicted(known: Mapping[str, Known], names: Sequence[str]) -> Iterator[str]:
    """Images that stand in the data under more than one label, in one split or in several."""
    labels: dict[bytes, set[int]] = defaultdict(set)
    for split in known.values():
        for content, label in zip(split.content, split.labels, strict=True):
            labels[content].add(label)
    odd = [sorted(found) for found in labels.values() if len(found) > 1]
    if odd:
        one, other = (names[label] for label in odd[0][:2])
        count = "1 image stands" if len(odd) == 1 else f"{len(odd)} images stand"
        least = "" if all(split.complete for split in known.values()) else "at least "
        yield f"{least}{count} in the data under different labels, such as {one} and {other}: one of them is wrong."


def pixels(splits: Mapping[str, Split]) -> dict[str, Known] | None:
    """All images by their pixels, None where some are not in memory."""
    if not all(_in_memory(split.images) for split in splits.values()):
        return None
    return {
        name: Known([*_digests(split.images)], split.labels.tolist(), len(split), "pixel for pixel")
        for name, split in splits.items()
    }


def _in_memory(images: Images) -> bool:
    return _in_memory(images.images) if isinstance(images, Subset) else isinstance(images, InMemory)


def _digests(images: Images) -> Iterator[bytes]:
    for start in range(0, len(images), CHUNK):
        for image in images[np.arange(start, min(start + CHUNK, len(images)))].numpy():
            yield hashlib.blake2b(image, digest_size=16).digest()


def files(splits: Mapping[str, Split], budget_s: float) -> dict[str, Known] | None:
    """Test images in files, and whatever has the size of one of them; None where images are not in files."""
    if not all(isinstance(split.images, Files) for split in splits.values()):
        return None
    paths = {name: split.images.paths for name, split in splits.items()}  # type: ignore[attr-defined]
    asked = np.unique(np.linspace(0, len(paths["test"]) - 1, min(SAMPLE, len(paths["test"]))).round().astype(int))
    chosen = {name: range(len(each)) for name, each in paths.items()} | {"test": asked.tolist()}
    wanted = {_size(paths["test"][i]) for i in asked} - {None}
    until = time.monotonic() + budget_s
    ends: dict[str, dict[int, bytes]] = {}
    for name in ("test", "training", "validation"):
        ends[name] = {}
        for i in chosen[name]:
            if time.monotonic() > until:
                break
            size = _size(paths[name][i])
            if size is not None and size in wanted:
                ends[name][i] = str(size).encode() + _digest(paths[name][i], max(0, size - TAIL_BYTES))
    often = Counter(end for each in ends.values() for end in each.values())
    found = {}
    for name, each in ends.items():
        alike = [i for i, end in each.items() if often[end] > 1 and time.monotonic() <= until]
        content = [_digest(paths[name][i], 0) for i in alike]
        found[name] = Known(content, splits[name].labels[alike].tolist(), len(chosen[name]), "byte for byte")
    in_time = time.monotonic() <= until
    # Images of the other two are looked at only where they have the size of a test image.
    return {name: replace(known, complete=in_time and name == "test") for name, known in found.items()}


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None  # whoever reads the image says so


def _digest(path: str, start: int) -> bytes:
    """A hash of a file's bytes from `start` on; of one that cannot be read, of its name."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return os.fsencode(path)
