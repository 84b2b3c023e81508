from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch, Outputs, over_batches, over_teachers
from compress.weighting import Weight

# Centred probabilities shorter than this count as constant: a correlation's gradient grows as one over the length.
SHORTEST = 1e-4


class DIST(Config):
    """Relations instead of values (Huang et al. 2022, arXiv:2205.10536, sec. 4): τ² · (β · inter + γ · intra).

    `inter` is 1 - Pearson's correlation of student's and teacher's probabilities over the classes, mean over images;
    `intra` is 1 - their correlation over the images of the batch, mean over the classes. Scale and offset of the
    probabilities do not matter. β = γ = 2 as in the paper, beside `cross_entropy` at 1; τ is 4 on CIFAR-100 and 1 on
    ImageNet. A vector that is constant has no correlation: it counts as 0, so that a batch of one image learns by
    `inter` alone.
    """

    name: ClassVar[str] = "dist"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    beta: Annotated[float, Field(ge=0)] = 2.0
    gamma: Annotated[float, Field(ge=0)] = 2.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        student = self._softened(batch.student)

        def inter(teacher: Outputs) -> Tensor:
            return 1 - correlation(student, self._softened(teacher).detach())

        def intra(teacher: Outputs) -> Tensor:
            return 1 - correlation(student.T, self._softened(teacher).detach().T).mean()

        relations = self.beta * over_teachers(batch, inter) + self.gamma * over_batches(batch, intra)
        return self.temperature**2 * relations

    def _softened(self, outputs: Outputs) -> Float[Tensor, "batch classes"]:
        return (outputs.logits / self.temperature).softmax(1)


def correlation(first: Float[Tensor, "rows n"], second: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """Pearson's correlation of each row of the one with the same row of the other; 0 where a row is constant."""
    return (_directions(first) * _directions(second)).sum(1)


def _directions(rows: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    centred = rows - rows.mean(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / length.clamp_min(SHORTEST)
