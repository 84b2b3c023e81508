"""CIFAR-100 for distillation: a part of it as an archive, or all of it to train on."""

from pathlib import Path
from typing import Any

import numpy as np
from cifar_files import NoData, arrays

from compress.data import DATASETS
from compress.data.assemble import assemble
from compress.data.base import Data, Preprocessing, Split
from compress.data.pictures import in_memory
from compress.errors import CompressError

SIDE = 32
SEEN = 1000  # training images that stand in for a validation split where all are trained on


def subset(path: Path, target: Path, count: int) -> Path:
    """`count` training images, every class alike, and all test images, as an archive at `target`."""
    found = arrays(path)
    labels = found["train_labels"]
    classes = int(labels.max()) + 1
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == each)[: count // classes] for each in range(classes)]))
    few = found | {"train_images": found["train_images"][chosen], "train_labels": labels[chosen]}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **few)  # type: ignore[arg-type]
    return target


def everything(path: Path) -> Data:
    """All training images to train on, as the papers do it.

    What stands as validation split are some of the training images: it shows that something is learnt, and nothing is
    chosen by it. Raises NoData.
    """
    found = arrays(path)
    prep: Any = DATASETS["npz"].model_validate({"path": str(path), "size": SIDE})  # type: ignore[attr-defined]
    try:
        train = _split(prep, found["train_images"], found["train_labels"])
        test = _split(prep, found["test_images"], found["test_labels"])
        names = [str(i) for i in range(int(train.labels.max()) + 1)]
        return assemble(prep, str(path), [train, train.first(SEEN), test], names, mirror=True)
    except (CompressError, ValueError, TypeError) as error:
        raise NoData(f"CIFAR-100 in {path} does not fit: {error}") from None


def _split(prep: Preprocessing, images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(in_memory(images, prep), labels.astype(np.int64))
