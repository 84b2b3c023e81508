"""The stage in which a student becomes the teacher of a fresh one like itself."""

import copy
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator

from compress.config import Config, OneOf
from compress.losses import KD, LOSSES, CrossEntropy, Loss
from compress.net import Net, build
from compress.pruning.magnitude import sparse_layers
from compress.recipe import Training
from compress.stages.base import Env, forget, teach
from compress.stages.soft_labels import SoftLabels
from compress.training.predicting import accuracy, predict


class BornAgain(Config):
    """Teach a fresh net by its trained self, for some generations (Furlanello et al. 2018, arXiv:1805.04770, sec. 3).

    Each generation is a net of the same description with other initial weights, taught by the one before; the first is
    taught by the net that the stage is given, never by the pipeline's teachers. It is trained for all epochs of
    `training`, so that a pipeline trains `generations` times as many. The last generation is the result, be it better
    or worse than those before; the paper's ensemble of all of them, which is several times as large, is left out.

    The paper's students learn true labels and the teacher's outputs, without temperature. It gives no weights: here
    both weigh the same.
    """

    name: ClassVar[str] = "born_again"
    generations: Annotated[int, Field(ge=1, le=100)] = 1
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] = (CrossEntropy(weight=0.5), KD(temperature=1.0, weight=0.5))
    training: Training = Training()

    @model_validator(mode="after")
    def _taught(self) -> "BornAgain":
        if not any(loss.needs_teacher for loss in self.losses):
            raise ValueError("no loss listens to the generation before; add one that does to losses, such as `- kd`")
        return self

    @property
    def trainings(self) -> tuple[Training, ...]:
        """One a generation."""
        return (self.training,) * self.generations

    @property
    def all_losses(self) -> tuple[Loss, ...]:
        """Those that ask no teacher: the pipeline needs none for this stage, which depends on none."""
        return tuple(loss for loss in self.losses if not loss.needs_teacher)

    def rehearsed(self) -> "BornAgain":
        """The same with one generation, of the shape of all."""
        return self.model_copy(update={"generations": 1})

    def __call__(self, net: Net, env: Env) -> Net:
        newest = Net(net.spec, copy.deepcopy(net.module).eval())
        if not self.training.epochs:
            return newest  # untrained weights are worth less than those it has
        accuracies = [validation(newest, env)]
        for i in range(self.generations):
            part = taught_by(newest, env.part(i, self.trainings))
            newest = fresh(net, part.seed)
            # Where soft labels come from is the same for every generation and is said once.
            part = part if i == 0 else replace(part, note=forget)
            teach(newest, part, self.training, self.losses, soft_labels=SoftLabels())
            accuracies.append(validation(newest, env))
        if len(env.data.val):
            given, *born = (f"{each:.1f} %" for each in accuracies)
            env.note(f"validation accuracy: {given} as given, {', '.join(born)} by generation")
        return newest


def taught_by(net: Net, env: Env) -> Env:
    """The same with a net for its only teacher, which sees the images as the student does."""
    # The key need not tell generations apart: outputs kept on disk are also known by the weights that gave them.
    return replace(env, teachers=(net,), views=(), augmented=(), teacher_keys=(net.spec.key,))


def fresh(net: Net, seed: int) -> Net:
    """A net of the same description with weights drawn from `seed`; those that `sparsify` removed stay removed."""
    born = build(net.spec, seed)
    before = sparse_layers(net)
    with torch.no_grad():
        for path, layer in sparse_layers(born).items():
            layer.weight[before[path].weight.cpu() == 0] = 0
    return born


def validation(net: Net, env: Env) -> float:
    """Top-1 accuracy on the validation split in per cent."""
    return accuracy(predict(net.module, env.data, env.data.val, env.device), env.data.val.labels)
