from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch, Outputs, over_batches, over_teachers, soft_divergence
from compress.losses.logit_standardization import z_scores
from compress.weighting import Weight


class MultiLevel(Config):
    """Agreement on images, on the batch and on classes (Jin et al. 2023, CVPR, doi:10.1109/CVPR52729.2023.02325).

    The sum over the temperatures T of three terms, with P (batch, classes) the probabilities at T:

    * instance: T² · KL(P_teacher ‖ P_student), mean over the images; of z-scores where `standardized`, which is the
      paper's loss with logit standardization (Sun et al. 2024, arXiv:2403.01427; weight 9, `cross_entropy` at 1)
    * batch: ‖P P^T of the teacher - P P^T of the student‖² / batch
    * class: ‖P^T P of the teacher - P^T P of the student‖² / classes

    The last two are sums over pairs: with the batch size B the one grows as B and the other as B². The published
    results are for B = 64.

    Left out of the authors' code: a second, strongly augmented view of each image, and masks that are to drop images
    and classes of which the teacher is sure. There they multiply terms that are means already, and so only halve them.
    """

    name: ClassVar[str] = "multi_level"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (2.0, 3.0, 4.0, 5.0, 6.0)
    standardized: bool = False
    weight: Weight = 0.9

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        student = batch.student.logits
        scores = self._scores(student)

        def instance(teacher: Outputs) -> Tensor:
            target = self._scores(teacher.logits.detach())
            return torch.stack([soft_divergence(scores, target, t) for t in self.temperatures]).sum(0)

        def relations(teacher: Outputs) -> Tensor:
            target = teacher.logits.detach()
            terms = [gram_distances((student / t).softmax(1), (target / t).softmax(1)) for t in self.temperatures]
            return torch.stack(terms).sum()

        return over_teachers(batch, instance) + over_batches(batch, relations)

    def _scores(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return z_scores(logits) if self.standardized else logits


def gram_distances(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """The squared distances of the Gram matrices of images over the batch, and of classes over their number."""
    images = (student @ student.T - teacher @ teacher.T).square().sum()
    classes = (student.T @ student - teacher.T @ teacher).square().sum()
    return images / student.shape[0] + classes / student.shape[1]
