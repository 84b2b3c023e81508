"""Handwritten digits that ship with scikit-learn."""

from typing import ClassVar

import numpy as np

from compress.data.assemble import assemble
from compress.data.base import Data, Preprocessing, Split
from compress.data.pictures import in_memory
from compress.data.split import stratified


class Digits(Preprocessing):
    """1,797 handwritten digits, 8 × 8 pixels (Alpaydin and Kaynak 1998, doi:10.24432/C50P49).

    The test half of the UCI set "Optical Recognition of Handwritten Digits", shipped with scikit-learn. Grey
    values 0..16 become 0..255; the images are split by the seed into 60 % training, 10 % validation and 30 %
    test images, classes in proportion.
    """

    name: ClassVar[str] = "digits"

    def __call__(self, seed: int) -> Data:
        """The digits, split by `seed`."""
        from sklearn.datasets import load_digits  # takes a second to import, and few commands need it

        raw = load_digits()
        images = np.rint(raw.images * (255 / 16)).astype(np.uint8)
        labels = raw.target.astype(np.int64)
        splits = [
            Split(in_memory(images[part], self), labels[part]) for part in stratified(labels, seed, val=0.1, test=0.3)
        ]
        return assemble(self, self.name, splits, [str(n) for n in range(10)], mirror=False, embedded=True)
