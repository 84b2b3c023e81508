from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch, Outputs, over_teachers, soft_divergence
from compress.weighting import Weight

# Below this deviation logits are scaled as if they had it: the gradient of a z-score grows as one over the deviation,
# and a net whose last layer starts at zero would be thrown off by its first step.
LEAST_DEVIATION = 1e-2


class LogitStandardization(Config):
    """Soft labels from z-scores of the logits (Sun et al. 2024, arXiv:2403.01427, alg. 1).

    τ² · KL(softmax(Z_teacher/τ) ‖ softmax(Z_student/τ)), mean over the images and the teachers, with Z = (z - mean) /
    standard deviation of an image's logits over the classes (the squares' sum divided by their number). The student
    need not reach the teacher's range, only its relations. The authors use base temperature τ = 2 and weight 9, beside
    `cross_entropy` at 1. Logits with a deviation below 0.01 are divided by 0.01.
    """

    name: ClassVar[str] = "logit_standardization"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    temperature: Annotated[float, Field(gt=0)] = 2.0
    weight: Weight = 9.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        student = z_scores(batch.student.logits)

        def term(teacher: Outputs) -> Tensor:
            return soft_divergence(student, z_scores(teacher.logits.detach()), self.temperature)

        return over_teachers(batch, term)


def z_scores(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Each image's logits with mean 0 and standard deviation 1 over the classes."""
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    return centred / variance.clamp_min(LEAST_DEVIATION**2).sqrt()  # a square root of 0 has no gradient
