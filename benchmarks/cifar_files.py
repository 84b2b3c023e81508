"""CIFAR-100 for the benchmarks: an .npz archive in MedMNIST's layout, or the folder that torchvision's files are in."""

from pathlib import Path

import numpy as np


class NoData(Exception):
    """Why CIFAR-100 cannot be read, for a person."""


def arrays(path: Path) -> dict[str, np.ndarray]:
    """`train_images` (n, 32, 32, 3) uint8, `train_labels` (n,), `test_images`, `test_labels`; raises NoData."""
    try:
        found = _archive(path) if path.is_file() else _of_torchvision(path)
        wanted = [f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")]
        return {name: found[name].reshape(-1) if name.endswith("labels") else found[name] for name in wanted}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise NoData(f"CIFAR-100 cannot be read from {path}: {error}") from None


def _archive(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files if key.endswith(("images", "labels"))}


def _of_torchvision(folder: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR100

    splits = {split: CIFAR100(folder, train=split == "train", download=False) for split in ("train", "test")}
    images = {f"{split}_images": given.data for split, given in splits.items()}
    return images | {f"{split}_labels": np.array(given.targets) for split, given in splits.items()}
