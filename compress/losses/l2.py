from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch, over_teachers
from compress.weighting import Weight


class L2(Config):
    """Half the squared distance of logits (Ba & Caruana 2014, arXiv:1312.6184, eq. 1): ½ ‖z_student - z_teacher‖².

    The sum over the classes, mean over the images and the teachers. At a weight of 1/classes it pulls as `kd` does at a
    high temperature (Hinton et al. 2015, arXiv:1503.02531, eq. 4), but it also fixes the logits' mean, which means
    nothing to a softmax. Published results on ImageNet are mixed: alone it has made a MobileNetV2 worse.
    """

    name: ClassVar[str] = "l2"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    weight: Weight = 0.1

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        student = batch.student.logits
        return over_teachers(batch, lambda teacher: (student - teacher.logits.detach()).square().sum(1) / 2)
