"""Made-up images, for tests."""

from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from compress.data.assemble import assemble
from compress.data.base import Data, Preprocessing, Split
from compress.data.pictures import in_memory


class Synthetic(Preprocessing):
    """Images made from the seed, for tests: each class is a smooth pattern of its own, under noise.

    A class's pattern is a sum of plane waves of random direction and phase with at most two periods across
    the image (random Fourier features, Rahimi and Recht 2007, NeurIPS 20). `samples` is the number of
    training images; there are as many validation and as many test images, and each split has every class.
    """

    name: ClassVar[str] = "synthetic"

    classes: Annotated[int, Field(ge=2)] = 10
    samples: Annotated[int, Field(ge=2)] = 1000

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.samples < self.classes:
            raise ValueError(
                f"samples ({self.samples}) should be at least classes ({self.classes}): each split has all"
            )
        return self

    def __call__(self, seed: int) -> Data:
        """Images made from `seed`: the same patterns in every split, other noise."""
        # One stream for the patterns and one a split: the splits share the classes and nothing else.
        patterns, *streams = (np.random.default_rng([seed, stream]) for stream in range(4))
        means = np.stack([_pattern(self.size, patterns) for _ in range(self.classes)])
        splits = []
        for rng in streams:
            labels = rng.permutation(np.arange(self.samples) % self.classes)
            splits.append(Split(in_memory(_noisy(means, labels, rng), self), labels))
        return assemble(self, self.name, splits, [str(n) for n in range(self.classes)], mirror=False, embedded=True)


def _pattern(size: int, rng: np.random.Generator) -> np.ndarray:
    """Four plane waves a colour, (size, size, 3) float32 around grey."""
    y, x = np.mgrid[:size, :size] / size
    fx, fy = rng.uniform(-2, 2, (2, 4, 3))
    phase = rng.uniform(0, 2 * np.pi, (4, 3))
    waves = np.cos(2 * np.pi * (x[..., None, None] * fx + y[..., None, None] * fy) + phase)
    pattern: np.ndarray = 127.5 + 30 * waves.sum(axis=2)
    return pattern.astype(np.float32)


def _noisy(means: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each label's pattern with Gaussian noise of 30 grey levels, uint8 (n, size, size, 3)."""
    images = np.empty((len(labels), *means.shape[1:]), dtype=np.uint8)
    for slot, label in zip(images, labels, strict=True):
        noise = rng.standard_normal(means.shape[1:], dtype=np.float32)
        slot[:] = np.clip(np.rint(means[label] + 30 * noise), 0, 255)
    return images
