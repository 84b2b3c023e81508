from typing import ClassVar, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import BatchNorm, PerTeacher, as_map, must_be_built, objection_to_shapes, total
from compress.losses.base import Batch, Lesson, Outputs, feature_pairs
from compress.losses.layers import Layers, Where
from compress.weighting import Weight

WIDEST = 512  # channels in which the student's stages are fused, at most
LEVELS = (4, 2, 1)  # sides of the pyramid over which features are compared


class Review(Config):
    """Knowledge review (Chen et al. 2021, arXiv:2104.09044, sec. 3): deep stages help shallow ones learn.

    From the deepest stage up, each of the student's maps is fused with what the deeper ones left (ABF: 1x1
    convolutions, attention between the two), brought to the teacher's size and channels, and compared with the
    teacher's map over a pyramid of averages (HCL: mean squares of the differences as they are and at 4x4, 2x2 and 1x1
    pixels, weighing 1, 1/2, 1/4, 1/8, divided by the sum of these). Summed over `layers`, which stand from shallow to
    deep; a vector counts as a map of one pixel. The weight is that of the authors' code, in which it warms up:
    `weight: {warm_up: {to: 1, epochs: 20}}`.
    """

    name: ClassVar[str] = "review"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = (-4, -3, -2, -1, "embedding")
    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def objection(self, lesson: Lesson) -> str | None:
        """Why these features cannot be compared, or None."""
        return objection_to_shapes(lesson, self.layers, vectors=True)

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its fusions."""
        return PerTeacher(_Review(self.layers, lesson.example, teacher) for teacher in lesson.example.teachers)


class _Review(nn.Module):
    """The review for one teacher."""

    def __init__(self, layers: tuple[Where, ...], example: Batch, teacher: Outputs) -> None:
        super().__init__()
        self.layers = layers
        pairs = feature_pairs(example, teacher, layers)[::-1]
        width = min(WIDEST, pairs[0][0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(mine.shape[1], width, theirs.shape[1], deepest=i == 0) for i, (mine, theirs) in enumerate(pairs)
        )

    def forward(self, batch: Batch, teacher: Outputs) -> Float[Tensor, " batch"]:
        terms, left = [], None
        for fusion, pair in zip(self.fusions, feature_pairs(batch, teacher, self.layers)[::-1], strict=True):
            mine, theirs = map(as_map, pair)
            result, left = fusion(mine, left, (theirs.shape[2], theirs.shape[3]))
            terms.append(pyramid_distance(result, theirs))
        return total(terms)


class Fusion(nn.Module):
    """Attention-based fusion of a map with what the deeper stages left (fig. 3a); the deepest has nothing to fuse."""

    def __init__(self, channels: int, width: int, wanted: int, *, deepest: bool) -> None:
        super().__init__()
        first, last = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, wanted, 3, padding=1, bias=False)
        for layer in (first, last):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.enter, self.leave = nn.Sequential(first, BatchNorm(width)), nn.Sequential(last, BatchNorm(wanted))
        self.attend = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor, left: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The map for the teacher's channels at `size`, and what is left for the stage before."""
        x = self.enter(x)
        if self.attend is not None and left is not None:
            left = _resized(left, (x.shape[2], x.shape[3]))
            here, deeper = self.attend(torch.cat([x, left], 1)).split(1, 1)
            x = here * x + deeper * left
        x = _resized(x, size)
        return self.leave(x), x


def pyramid_distance(
    mine: Float[Tensor, "batch channels height width"], theirs: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " batch"]:
    """Hierarchical context loss: the mean square of differences, of them and of their averages over the pyramid."""
    difference = mine - theirs
    result, weights, weight = difference.square().mean((1, 2, 3)), 1.0, 1.0
    for side in LEVELS:
        if side < difference.shape[2]:
            weight /= 2
            weights += weight
            # The average of a difference is the difference of the averages.
            result = result + weight * F.adaptive_avg_pool2d(difference, side).square().mean((1, 2, 3))
    return result / weights


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="nearest")
