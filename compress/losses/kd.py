from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch


class KD(Config):
    """Soft labels (Hinton et al. 2015, arXiv:1503.02531, sec. 2): T² · KL(softmax(teacher/T) ‖ softmax(student/T)).

    The soft term alone, mean over the batch and over the teachers; put `cross_entropy` beside it for hard labels.
    """

    name: ClassVar[str] = "kd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(ge=0)] = 0.9

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        student = F.log_softmax(batch.student.logits / self.temperature, dim=1)
        terms = [
            F.kl_div(
                student,
                F.log_softmax(t.logits.detach() / self.temperature, dim=1),
                reduction="batchmean",
                log_target=True,
            )
            for t in batch.teachers
        ]
        # The soft term's gradient shrinks as 1/T²; T² keeps the weight's meaning for every temperature.
        return self.weight * self.temperature**2 * torch.stack(terms).mean()
