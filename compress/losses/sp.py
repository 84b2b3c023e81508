from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.config import Config
from compress.losses.adapters import total
from compress.losses.base import Batch, feature_pairs, over_batches
from compress.losses.layers import Layers
from compress.weighting import Weight


class SP(Config):
    """Like images stay alike (similarity-preserving; Tung & Mori 2019, arXiv:1907.09682, sec. 3): ‖G_T - G_S‖²/b².

    G holds the products of every two of the batch's b images, each row divided by its Euclidean norm; features of any
    shape, as vectors. Summed over `layers`. The last stage and the weight as in the code of Tian et al. 2020
    (arXiv:1910.10699), whose term the authors have checked.
    """

    name: ClassVar[str] = "sp"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = (-1,)
    weight: Weight = 3000.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        def distance(mine: Tensor, theirs: Tensor) -> Tensor:
            return (similarity(mine) - similarity(theirs)).square().mean()  # the sum over b² elements, divided by b²

        return over_batches(batch, lambda t: total(distance(*pair) for pair in feature_pairs(batch, t, self.layers)))


def similarity(features: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch batch"]:
    """How alike every two images are, each row of length 1; a row of zeros stays one."""
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T)
