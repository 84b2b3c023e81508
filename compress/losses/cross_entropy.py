from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch
from compress.weighting import Weight


class CrossEntropy(Config):
    """Negative log-likelihood of the true labels, with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, sec. 7).

    With smoothing e (`label_smoothing` of the stage's training) and C classes the target is 1 - e + e/C for the
    true class and e/C for the others.
    """

    name: ClassVar[str] = "cross_entropy"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        assert batch.labels is not None, "cross_entropy needs labels"
        return F.cross_entropy(batch.student.logits, batch.labels, label_smoothing=batch.label_smoothing)
