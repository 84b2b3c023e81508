"""A stage of your own: draw the weights towards zero, then train on."""

import copy
from typing import Annotated, ClassVar

from compress.config import Config, OneOf
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.recipe import Training
from compress.stages import STAGES
from compress.stages.base import teach


class Shrink(Config):
    """Multiply the weights of convolutions by `factor`, then train on (Ash & Adams 2020, arXiv:1910.08475)."""

    name: ClassVar[str] = "shrink"
    factor: float = 0.5
    training: Training = Training(epochs=2)
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None

    def __call__(self, net, env):
        smaller = Net(net.spec, copy.deepcopy(net.module))
        for weight in smaller.module.parameters():
            if weight.dim() == 4:
                weight.data *= self.factor
        env.note(f"the weights of convolutions were multiplied by {self.factor:g}")
        teach(smaller, env, self.training, self.losses or (CrossEntropy(),))
        return smaller


STAGES[Shrink.name] = Shrink
