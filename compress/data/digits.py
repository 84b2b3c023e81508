"""Handwritten digits that ship with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compress.data.assemble import assemble
from compress.data.base import Data, Preprocessing, Split
from compress.data.pictures import in_memory
from compress.data.split import stratified

FILE = "datasets/data/digits.csv.gz"


class Digits(Preprocessing):
    """1,797 handwritten digits, 8 × 8 pixels (Alpaydin and Kaynak 1998, doi:10.24432/C50P49).

    The test half of the UCI set "Optical Recognition of Handwritten Digits", shipped with scikit-learn. Grey
    values 0..16 become 0..255; the images are split by the seed into 60 % training, 10 % validation and 30 %
    test images, classes in proportion.
    """

    name: ClassVar[str] = "digits"

    def __call__(self, seed: int) -> Data:
        """The digits, split by `seed`."""
        table = _table()
        images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        labels = table[:, -1].astype(np.int64)
        splits = [
            Split(in_memory(images[part], self), labels[part]) for part in stratified(labels, seed, val=0.1, test=0.3)
        ]
        return assemble(self, self.name, splits, [str(n) for n in range(10)], mirror=False, embedded=True)


def _table() -> NDArray[Any]:
    """One row an image: 64 grey values 0..16, and the digit."""
    # From scikit-learn's file where it is found: the import that gives the same takes a second, and `validate` has few.
    places = getattr(find_spec("sklearn"), "submodule_search_locations", None) or ()
    file = next((path for place in places if (path := Path(place, FILE)).is_file()), None)
    if file is not None:
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.column_stack([found.data, found.target])
