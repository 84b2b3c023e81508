from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.config import Config
from compress.losses.adapters import objection_to_shapes, one_size, total
from compress.losses.base import Batch, Lesson, feature_pairs, over_teachers
from compress.losses.layers import Layers
from compress.weighting import Weight


class Attention(Config):
    """Looking at the same places (Zagoruyko & Komodakis 2017, arXiv:1612.03928, eq. 2): ‖Q_S/‖Q_S‖ - Q_T/‖Q_T‖‖².

    Q is the map of the sum of squares over channels (the paper's F²_sum), as a vector, divided by its Euclidean norm.
    The mean over the pixels instead of the sum, as the authors' code has it, whose weight is the default; summed over
    `layers`. Numbers of channels may differ; the larger map is averaged down to the smaller one before.
    """

    name: ClassVar[str] = "attention"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = (-4, -3, -2, -1)
    weight: Weight = 1000.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        def distance(mine: Tensor, theirs: Tensor) -> Tensor:
            mine, theirs = one_size(mine, theirs)
            return (attention(mine) - attention(theirs)).square().mean(1)

        return over_teachers(batch, lambda t: total(distance(*pair) for pair in feature_pairs(batch, t, self.layers)))

    def objection(self, lesson: Lesson) -> str | None:
        """Why there is no attention to compare, or None."""
        found = objection_to_shapes(lesson, self.layers, vectors=False)
        if found is not None:
            return found
        teachers = lesson.example.teachers
        pairs = [pair for teacher in teachers for pair in feature_pairs(lesson.example, teacher, self.layers)]
        if all(one_size(*pair)[0][0, 0].numel() == 1 for pair in pairs):
            return "every map that it compares has one pixel, so there is nowhere else to look; name earlier layers"
        return None


def attention(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch pixels"]:
    """Where a map is active, a vector of length 1 for each image; zeros stay zeros."""
    return F.normalize(features.square().sum(1).flatten(1))
