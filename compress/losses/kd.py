from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch, Outputs, over_teachers, soft_divergence
from compress.weighting import Weight


class KD(Config):
    """Soft labels (Hinton et al. 2015, arXiv:1503.02531, sec. 2): T² · KL(softmax(teacher/T) ‖ softmax(student/T)).

    The soft term alone, mean over the batch and over the teachers; put `cross_entropy` beside it for hard labels.
    """

    name: ClassVar[str] = "kd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Weight = 0.9

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        student = batch.student.logits

        # The soft term's gradient shrinks as 1/T²; T² keeps the weight's meaning for every temperature.
        def term(teacher: Outputs) -> Tensor:
            return soft_divergence(student, teacher.logits.detach(), self.temperature)

        return over_teachers(batch, term)
