"""What all data sets share once their images are at hand: checks, mean and std, fingerprint, warnings."""

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from compress.config import fingerprint
from compress.data.base import Data, Images, InMemory, Preprocessing, Split
from compress.errors import DataError

CHUNK = 64  # images looked at together
SAMPLE = 2048  # images that stand for all where each would have to be decoded for it


def assemble(
    prep: Preprocessing,
    where: str,
    splits: Sequence[Split],
    names: Sequence[str],
    *,
    mirror: bool,
    embedded: bool = False,
    content: str | None = None,
    warnings: Sequence[str] = (),
) -> Data:
    """The `Data` of three splits (train, val, test).

    `where` is what messages call the data. `names` are the classes'; `content` is what the fingerprint takes
    for images that are not in memory.

    Raises DataError where a split is empty, a label has no name or no training image, or `mean`, `std` or
    `class_names` have the wrong length.
    """
    train, val, test = splits
    _check_labels(where, splits, len(names))
    names = _names(prep, where, names)
    mean = _per_channel(where, "mean", prep.mean, prep.channels)
    std = _per_channel(where, "std", prep.std, prep.channels)
    if mean is None or std is None:
        own_mean, own_std = statistics(train.images)
        mean, std = mean or own_mean, std or own_std
    image = (prep.channels, prep.size, prep.size)
    return Data(
        train=train,
        val=val,
        test=test,
        image=image,
        class_names=tuple(names),
        mean=mean,
        std=std,
        fingerprint=fingerprint(content or _content(splits), image, names, mean, std, mirror),
        mirror=mirror,
        embedded=embedded,
        warnings=tuple(warnings),
    )


def _names(prep: Preprocessing, where: str, names: Sequence[str]) -> Sequence[str]:
    given = names if prep.class_names is None else prep.class_names
    if len(given) != len(names):
        raise DataError(f"{where}: class_names has {len(given)} names; the data have {len(names)} classes.")
    if len(set(given)) != len(given):
        twice = sorted({name for name in given if list(given).count(name) > 1})
        raise DataError(f"{where}: two classes are called {twice[0]!r}; give each a name of its own.")
    if len(given) < 2:
        raise DataError(f"{where}: there is only one class, {given[0]!r}; a classifier needs two or more.")
    return given


def _check_labels(where: str, splits: Sequence[Split], classes: int) -> None:
    for name, split in zip(("training", "validation", "test"), splits, strict=True):
        if len(split) == 0:
            raise DataError(
                f"{where}: there are no {name} images; give some, or three or more training images "
                "of each class to split them off."
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0:
            raise DataError(f"{where}: the {name} labels hold {low}; number the classes from 0.")
        if high >= classes:
            raise DataError(
                f"{where}: the {name} labels hold {high}, but the classes of the training images are 0 to "
                f"{classes - 1}; number them without gaps."
            )
    absent = np.setdiff1d(np.arange(classes), splits[0].labels)
    if len(absent):
        shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        raise DataError(
            f"{where}: no training image has label {shown}; each of 0 to {classes - 1} must occur. "
            "Number the classes without gaps."
        )


def _per_channel(where: str, key: str, given: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    if given is None or len(given) == channels:
        return given
    if len(given) != 1:
        raise DataError(f"{where}: {key} has {len(given)} numbers for {channels} channels; give one, or one a channel.")
    return given * channels


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in units of 0..1; a std of 0 becomes 1.

    Images in memory all count; of others an evenly spread sample does. The sums are of integers, so the
    result does not depend on their order.
    """
    count = 0
    sums = torch.zeros(2, 1, dtype=torch.int64)
    for chunk in _chunks(images, _evenly(images)):
        planes = chunk.transpose(0, 1).flatten(1).long()
        sums = sums + torch.stack([planes.sum(1), planes.square().sum(1)])
        count += planes.shape[1]
    totals, squares = sums.tolist()
    mean = tuple(total / count / 255 for total in totals)
    spread = (math.sqrt(square * count - total**2) for total, square in zip(totals, squares, strict=True))
    return mean, tuple(root / count / 255 or 1.0 for root in spread)


def _evenly(images: Images) -> np.ndarray:
    """The indices of all images in memory, else of an evenly spread sample."""
    if isinstance(images, InMemory) or len(images) <= SAMPLE:
        return np.arange(len(images))
    return np.linspace(0, len(images) - 1, SAMPLE).round().astype(np.int64)


def _chunks(images: Images, indices: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(indices), CHUNK):
        yield images[indices[start : start + CHUNK]]


def _content(splits: Sequence[Split]) -> str:
    """A hash of all pixels and labels."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{len(split)};".encode())
        digest.update(split.labels.astype("<i8").tobytes())
        for chunk in _chunks(split.images, np.arange(len(split))):
            digest.update(chunk.numpy().tobytes())
    return digest.hexdigest()
