import math
from typing import Annotated, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import PerTeacher, as_vector, must_be_built, total
from compress.losses.base import Batch, Lesson, Outputs, feature_pairs, over_batches
from compress.losses.layers import Layers, Where
from compress.weighting import Weight


class CC(Config):
    """Correlation congruence (Peng et al. 2019, arXiv:1904.01802, sec. 3): ‖C_T - C_S‖²/b² for b images.

    C holds a Gaussian kernel of every two images' features of length 1, by its Taylor series up to `order`:
    Σ_p e^(-2γ) (2γ)^p / p! (x·y)^p. It does not ask for features of one width, so they are compared as they are. With
    `width` both nets' features first go through linear layers to that many numbers, trained along, as in the code of
    Tian et al. 2020 (arXiv:1910.10699), and starting alike where the features are as wide; but such layers can bring
    the loss to nearly 0 on their own, with nothing for the student to learn. γ, the order and the weight are those of
    public PyTorch code for the kernel; Tian et al.'s 0.02 is for another term. Summed over `layers`; a map counts by
    its mean over the pixels.
    """

    name: ClassVar[str] = "cc"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers = ("embedding",)
    width: Annotated[int, Field(gt=0)] | None = None
    gamma: Annotated[float, Field(gt=0)] = 0.4
    order: Annotated[int, Field(ge=1, le=20)] = 2
    weight: Weight = 100.0

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its embeddings."""
        parts = [_Congruence(self, lesson.example, teacher) for teacher in lesson.example.teachers]
        return PerTeacher(parts, over_batches)


class _Congruence(nn.Module):
    """The student's correlations beside one teacher's."""

    def __init__(self, loss: CC, example: Batch, teacher: Outputs) -> None:
        super().__init__()
        self.layers: tuple[Where, ...] = loss.layers
        self.gamma, self.order = loss.gamma, loss.order
        pairs = feature_pairs(example, teacher, self.layers)
        widths = [(as_vector(mine).shape[1], as_vector(theirs).shape[1]) for mine, theirs in pairs]
        self.mine = nn.ModuleList(_embedding(mine, loss.width) for mine, _ in widths)
        self.theirs = nn.ModuleList(_embedding(theirs, loss.width) for _, theirs in widths)
        for (mine, theirs), student, taught in zip(widths, self.mine, self.theirs, strict=True):
            if mine == theirs:
                taught.load_state_dict(student.state_dict())

    def forward(self, batch: Batch, teacher: Outputs) -> Float[Tensor, ""]:
        terms = []
        for pair, mine, theirs in zip(feature_pairs(batch, teacher, self.layers), self.mine, self.theirs, strict=True):
            student = correlation(mine(as_vector(pair[0])), self.gamma, self.order)
            taught = correlation(theirs(as_vector(pair[1])), self.gamma, self.order)
            terms.append((student - taught).square().mean())
        return total(terms)


def _embedding(width: int, wanted: int | None) -> nn.Module:
    return nn.Identity() if wanted is None else nn.Linear(width, wanted)


def correlation(vectors: Float[Tensor, "batch width"], gamma: float, order: int) -> Float[Tensor, "batch batch"]:
    """The Taylor series of the Gaussian kernel of every two vectors, these brought to the length 1."""
    unit = F.normalize(vectors)
    cosine = unit @ unit.T
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    return torch.stack([factor * cosine**p for p, factor in enumerate(factors)]).sum(0)
