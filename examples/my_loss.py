"""A loss of your own: cross-entropy that looks less at images that are easy (Lin et al. 2017, arXiv:1708.02002)."""

from typing import ClassVar

import torch.nn.functional as F

from compress.config import Config
from compress.losses import LOSSES
from compress.weighting import Weight


class Focal(Config):
    """The mean of (1 - p)^gamma · -log p over the batch, p being the probability of the true class."""

    name: ClassVar[str] = "focal"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    weight: Weight = 1.0
    gamma: float = 2.0

    def __call__(self, batch):
        log_p = F.log_softmax(batch.student.logits, dim=1).gather(1, batch.labels[:, None])
        return -((1 - log_p.exp()) ** self.gamma * log_p).mean()


LOSSES[Focal.name] = Focal
