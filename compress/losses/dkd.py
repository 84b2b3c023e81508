from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.losses.base import Batch, Outputs, over_teachers
from compress.weighting import Weight


class DKD(Config):
    """Decoupled soft labels (Zhao et al. 2022, arXiv:2203.08679, eq. 7): T² · (α · TCKD + β · NCKD).

    TCKD is the divergence of how probable the true class is against all others together, NCKD that of the other classes
    among themselves; `kd` ties the weight of NCKD to 1 - p(true class), so a sure teacher hardly teaches it. Mean over
    the images and the teachers. The authors' weight warms up over 20 epochs, `{warm_up: {to: 1, epochs: 20}}`, with
    `cross_entropy` at 1 beside it. Needs at least two classes.
    """

    name: ClassVar[str] = "dkd"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 8.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        assert batch.labels is not None, "dkd needs labels"
        true = torch.zeros_like(batch.student.logits, dtype=torch.bool).scatter(1, batch.labels[:, None], True)
        margin, others = _decoupled(batch.student.logits / self.temperature, true)

        def term(teacher: Outputs) -> Tensor:
            target_margin, target_others = _decoupled(teacher.logits.detach() / self.temperature, true)
            target_class = _binary_divergence(target_margin, margin)
            other_classes = (target_others.exp() * (target_others - others)).sum(1)
            return self.alpha * target_class + self.beta * other_classes

        return self.temperature**2 * over_teachers(batch, term)


def _decoupled(
    logits: Float[Tensor, "batch classes"], true: Bool[Tensor, "batch classes"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch classes"]]:
    """The log-odds of the true class, and the log-probabilities of the others among themselves (0 at the true class).

    Never a probability that might be rounded to 0 or 1: a logarithm of it would be infinite.
    """
    rest = logits.masked_fill(true, -torch.inf).logsumexp(1)
    margin = logits.masked_fill(~true, 0.0).sum(1) - rest
    return margin, (logits - rest[:, None]).masked_fill(true, 0.0)


def _binary_divergence(target: Float[Tensor, " batch"], odds: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """KL of two yes-or-no distributions, given by their log-odds."""
    yes = target.sigmoid() * (F.logsigmoid(target) - F.logsigmoid(odds))
    return yes + (-target).sigmoid() * (F.logsigmoid(-target) - F.logsigmoid(-odds))
