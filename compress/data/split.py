"""Splitting examples by seed, with every class in its proportion."""

from collections.abc import Mapping

import numpy as np

VAL_SHARE = 0.1  # of CIFAR's 50,000 training images the 5,000 of He et al. 2016 (arXiv:1512.03385, sec. 4.2)
TEST_SHARE = 0.2

Labelled = tuple[np.ndarray, np.ndarray]  # pixels or paths, and their labels, both of length n


def complete(given: Mapping[str, Labelled], seed: int) -> list[Labelled]:
    """Training, validation and test examples: `val` and `test` as given, else split off `train` by `seed`."""
    items, labels = given["train"]
    parts = stratified(
        labels,
        seed,
        val=0 if "val" in given else VAL_SHARE,
        test=0 if "test" in given else TEST_SHARE,
    )
    train, val, test = ((items[part], labels[part]) for part in parts)
    return [train, given.get("val", val), given.get("test", test)]


def stratified(labels: np.ndarray, seed: int, val: float, test: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint indices (train, val, test), each ascending, drawn by `seed`, every class in its proportion.

    `val` and `test` are shares of all examples; 0 gives no indices. Every class keeps at least one training
    example, then has one test and one validation example as far as its examples reach.
    """
    rng = np.random.default_rng(seed)
    everything = np.arange(len(labels))
    rest, tested = _taken(everything, labels, test, rng)
    train, validated = _taken(rest, labels, val / (1 - test), rng)
    return train, validated, tested


def _taken(
    indices: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Divide `indices` into those left and those drawn, about `share` of each class."""
    if share == 0:
        return indices, indices[:0]
    classes, sizes = np.unique(labels[indices], return_counts=True)
    drawn = [
        rng.permutation(indices[labels[indices] == label])[:count]
        for label, count in zip(classes, _quota(sizes, share), strict=True)
    ]
    taken = np.sort(np.concatenate(drawn))
    return np.setdiff1d(indices, taken, assume_unique=True), taken


def _quota(sizes: np.ndarray, share: float) -> np.ndarray:
    """How many of each class to take: the largest-remainder method, at least 1, and never the whole class."""
    exact = share * sizes
    count = np.floor(exact).astype(np.int64)
    short = round(float(exact.sum())) - int(count.sum())
    count[np.argsort(count - exact, kind="stable")[:short]] += 1
    quota: np.ndarray = np.minimum(np.maximum(count, 1), sizes - 1)
    return quota
