from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.adapters import total
from compress.losses.base import Batch, feature_pairs, over_batches
from compress.losses.layers import Layers
from compress.weighting import Weight

NO_DISTANCE = 1e-6  # images nearer than this count as one: there is no direction from the one to the other


class RKD(Config):
    """Relations between images (Park et al. 2019, arXiv:1904.05068, sec. 3.2): distances and angles.

    `distance` times the Huber loss between distances, each net's divided by their mean over the pairs of images, plus
    `angle` times that between the cosines of the angles that every three images form. The mean over all b² pairs and b³
    triples instead of the sum, as in the authors' code, whose factors 25 and 50 are the defaults; summed over `layers`.
    Features of any shape, as vectors. Memory grows with b²·max(b, width): meant for batches of some hundreds.
    """

    name: ClassVar[str] = "rkd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = ("embedding",)
    distance: Annotated[float, Field(ge=0)] = 25.0
    angle: Annotated[float, Field(ge=0)] = 50.0
    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        def difference(mine: Tensor, theirs: Tensor) -> Tensor:
            (d, cosines), (d_teacher, cosines_teacher) = relations(mine), relations(theirs)
            near, turned = F.smooth_l1_loss(d, d_teacher), F.smooth_l1_loss(cosines, cosines_teacher)
            return self.distance * near + self.angle * turned

        return over_batches(batch, lambda t: total(difference(*pair) for pair in feature_pairs(batch, t, self.layers)))


def relations(
    features: Float[Tensor, "batch ..."],
) -> tuple[Float[Tensor, "batch batch"], Float[Tensor, "batch batch batch"]]:
    """Distances of every two images, of mean 1, and for each image the cosines between the ways to every two others.

    Both are 0, and without gradient, where two images are one.
    """
    rows = features.flatten(1)
    ways = rows[None] - rows[:, None]
    squares = ways.square().sum(2)
    apart = squares > NO_DISTANCE**2
    # The root of 0 has an infinite slope, and even where it is not taken that would make gradients NaN.
    lengths = torch.where(apart, squares, 1.0).sqrt()
    distances = torch.where(apart, lengths, 0.0)
    pairs = max(len(rows) * (len(rows) - 1), 1)
    mean = distances.sum() / pairs
    units = torch.where(apart, 1 / lengths, 0.0)[..., None] * ways
    return distances / torch.where(mean > 0, mean, 1.0), torch.bmm(units, units.transpose(1, 2))
