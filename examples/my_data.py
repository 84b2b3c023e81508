"""A data set of your own: which of two bars is brighter."""

from typing import ClassVar

import numpy as np
import torch

from compress.data import DATASETS
from compress.data.assemble import assemble
from compress.data.base import InMemory, Preprocessing, Split


class Bars(Preprocessing):
    """Two bars of random brightness under noise; the class is the brighter one."""

    name: ClassVar[str] = "bars"
    samples: int = 64

    def __call__(self, seed):
        splits = [self.split(np.random.default_rng([seed, i])) for i in range(3)]
        return assemble(self, self.name, splits, ["left", "right"], mirror=False, embedded=True)

    def split(self, random):
        bars = random.integers(0, 200, (self.samples, 2))
        pixels = np.repeat(bars, self.size // 2, axis=1)[:, None, None] + random.integers(
            0, 56, (self.samples, self.channels, self.size, self.size)
        )
        return Split(InMemory(torch.from_numpy(pixels.astype(np.uint8))), bars.argmax(1))


DATASETS[Bars.name] = Bars
