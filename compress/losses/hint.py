from typing import ClassVar, NoReturn

from jaxtyping import Float
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import PerTeacher, as_map, must_be_built, objection_to_shapes, one_size, pointwise, total
from compress.losses.base import Batch, Lesson, Outputs, feature_pairs
from compress.losses.layers import Layers, Where
from compress.weighting import Weight


class Hint(Config):
    """Features alike in the middle (FitNets, Romero et al. 2015, arXiv:1412.6550, eq. 3): ‖r(student) - teacher‖².

    The mean over a map's elements instead of half their sum, as in the code of Tian et al. 2020 (arXiv:1910.10699),
    whose weight is the default. The regressor r is a 1x1 convolution with batch normalization where channels differ and
    nothing where they do not; the larger map is averaged down to the smaller one. Summed over `layers`; the default is
    the last stage but one, the paper's middle. A vector counts as a map of one pixel.
    """

    name: ClassVar[str] = "hint"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = (-2,)
    weight: Weight = 100.0

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def objection(self, lesson: Lesson) -> str | None:
        """Why these features cannot be compared, or None."""
        return objection_to_shapes(lesson, self.layers, vectors=True)

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its regressors."""
        return PerTeacher(_Hint(self.layers, lesson.example, teacher) for teacher in lesson.example.teachers)


class _Hint(nn.Module):
    """The hints of one teacher."""

    def __init__(self, layers: tuple[Where, ...], example: Batch, teacher: Outputs) -> None:
        super().__init__()
        self.layers = layers
        pairs = feature_pairs(example, teacher, layers)
        self.regressors = nn.ModuleList(pointwise(mine.shape[1], theirs.shape[1]) for mine, theirs in pairs)

    def forward(self, batch: Batch, teacher: Outputs) -> Float[Tensor, " batch"]:
        terms = []
        for regressor, pair in zip(self.regressors, feature_pairs(batch, teacher, self.layers), strict=True):
            mine, theirs = one_size(*map(as_map, pair))
            terms.append((regressor(mine) - theirs).square().mean((1, 2, 3)))
        return total(terms)
