from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import PerTeacher, must_be_built, objection_to_shapes, one_size, pointwise, total
from compress.losses.base import Batch, Lesson, Outputs, feature_pairs
from compress.losses.layers import Layers, Where
from compress.weighting import Weight


class FSP(Config):
    """The flow between two layers (Yim et al. 2017, CVPR, eq. 1 and 2, doi:10.1109/CVPR.2017.754): ‖G_T - G_S‖².

    G is the product of the channels of one map with those of a later one of the same net, averaged over the pixels;
    the larger of the two maps is averaged down to the smaller one. `layers` name the maps in their order, at least two,
    each taken together with the next. Where student and teacher differ in channels, a 1x1 convolution with batch
    normalization brings the student's to the teacher's. The mean over a matrix's elements instead of the sum, as in the
    code of Tian et al. 2020 (arXiv:1910.10699), whose weight is the default; summed over the pairs of layers. The paper
    learns the flow first and the classes afterwards: two phases. A matrix has an element for every two channels: m·n
    numbers an image, which is much for wide teachers.
    """

    name: ClassVar[str] = "fsp"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = (-4, -3, -2, -1)
    weight: Weight = 50.0

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def objection(self, lesson: Lesson) -> str | None:
        """Why there is no flow to compare, or None."""
        teachers = lesson.example.teachers
        if any(len(feature_pairs(lesson.example, teacher, self.layers)) < 2 for teacher in teachers):
            return "it compares the flow from one layer to another, and layers name a single one; name at least two"
        return objection_to_shapes(lesson, self.layers, vectors=False)

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its adapters."""
        return PerTeacher(_Flow(self.layers, lesson.example, teacher) for teacher in lesson.example.teachers)


class _Flow(nn.Module):
    """The flow of one teacher and the student's beside it."""

    def __init__(self, layers: tuple[Where, ...], example: Batch, teacher: Outputs) -> None:
        super().__init__()
        self.layers = layers
        pairs = feature_pairs(example, teacher, layers)
        self.adapters = nn.ModuleList(pointwise(mine.shape[1], theirs.shape[1]) for mine, theirs in pairs)

    def forward(self, batch: Batch, teacher: Outputs) -> Float[Tensor, " batch"]:
        pairs = feature_pairs(batch, teacher, self.layers)
        mine = flow([adapter(pair[0]) for adapter, pair in zip(self.adapters, pairs, strict=True)])
        theirs = flow([pair[1] for pair in pairs])
        return total((s - t).square().mean((1, 2)) for s, t in zip(mine, theirs, strict=True))


def flow(maps: Sequence[Tensor]) -> list[Float[Tensor, "batch before after"]]:
    """The matrices of the flow of the solution procedure from each map to the next."""
    matrices = []
    for pair in pairwise(maps):
        before, after = (each.flatten(2) for each in one_size(*pair))
        matrices.append(torch.bmm(before, after.transpose(1, 2)) / before.shape[2])
    return matrices
