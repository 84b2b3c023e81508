import copy
from typing import Annotated, ClassVar

from compress.config import Config, OneOf
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.recipe import Training
from compress.stages.base import Env, teach


class Train(Config):
    """Train on the labels alone: how teachers and baselines are made, and a last fine-tuning if wanted.

    Cross-entropy as Szegedy et al. 2016, arXiv:1512.00567, sec. 7.
    """

    name: ClassVar[str] = "train"
    training: Training = Training()
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] = (CrossEntropy(),)

    def __call__(self, net: Net, env: Env) -> Net:
        trained = Net(net.spec, copy.deepcopy(net.module))
        teach(trained, env, self.training, self.losses)
        return trained
