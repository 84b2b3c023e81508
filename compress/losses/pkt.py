from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.config import Config
from compress.losses.adapters import total
from compress.losses.base import Batch, feature_pairs, over_batches
from compress.losses.layers import Layers
from compress.weighting import Weight

EPS = 1e-7  # as in the authors' code: below it a probability is as good as none


class PKT(Config):
    """Probabilities of being neighbours (Passalis & Tefas 2018, arXiv:1803.10837, sec. 3): KL(teacher ‖ student).

    How likely image i has j for a neighbour is their likeness (cos + 1)/2, divided by the sum over all but i itself.
    The divergence is summed over the pairs and divided by b² for b images, as in the authors' code, to which the weight
    (of Tian et al. 2020, arXiv:1910.10699) belongs; that code counts i among its own neighbours, the paper does not.
    Features of any shape, as vectors; summed over `layers`.
    """

    name: ClassVar[str] = "pkt"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = ("embedding",)
    weight: Weight = 30000.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        def divergence(mine: Tensor, theirs: Tensor) -> Tensor:
            q, p = neighbours(mine), neighbours(theirs)
            return (p * ((p + EPS) / (q + EPS)).log()).mean()

        return over_batches(batch, lambda t: total(divergence(*pair) for pair in feature_pairs(batch, t, self.layers)))


def neighbours(features: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch batch"]:
    """The probability that the second image is drawn as a neighbour of the first, 0 for an image of its own."""
    unit = F.normalize(features.flatten(1))
    likeness = ((unit @ unit.T + 1) / 2).clamp(min=0)  # rounding can bring a cosine below -1
    likeness = likeness * (1 - torch.eye(len(unit), device=unit.device, dtype=unit.dtype))
    return likeness / likeness.sum(1, keepdim=True).clamp(min=EPS)
