import copy
from typing import Annotated, ClassVar

from compress.config import Config, OneOf
from compress.losses import KD, LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.recipe import Training
from compress.stages.base import Env, teach


class Distill(Config):
    """Train a student to say what its teacher says (Hinton et al. 2015, arXiv:1503.02531).

    `losses` is the whole sum: by default 0.1 of cross-entropy and 0.9 of soft labels at temperature 4.
    """

    name: ClassVar[str] = "distill"
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] = (CrossEntropy(weight=0.1), KD())
    training: Training = Training()

    def __call__(self, net: Net, env: Env) -> Net:
        student = Net(net.spec, copy.deepcopy(net.module))
        teach(student, env, self.training, self.losses)
        return student
