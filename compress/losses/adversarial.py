from typing import Annotated, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import PerTeacher, as_vector, must_be_built, total
from compress.losses.base import Batch, Lesson, Outputs, feature_pairs
from compress.losses.layers import Layers, Where
from compress.weighting import Weight


class Adversarial(Config):
    """A discriminator tells teacher from student (Xu et al. 2018, arXiv:1709.00513, sec. 3.2).

    On the logits, or on features where `layers` names any, by a net D of three linear layers with `hidden` units:
    -log D(teacher) - log(1 - D(student)), by which D alone is trained, plus -log D(student), by which the student alone
    is. The mean over the batch, summed over `layers`; 3 log 2 where D cannot tell them apart. A map counts by its mean
    over the pixels; where widths differ, a linear layer of the student's side brings it to the teacher's.

    Xu et al. also have D name the class, which is left out here; MEAL (Shen et al. 2019, arXiv:1812.02425) has a
    discriminator as well. The default weight is a guess. It scales what D learns, too.
    """

    name: ClassVar[str] = "adversarial"
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    layers: Layers | tuple[()] = ()
    hidden: Annotated[int, Field(gt=0)] = 128
    weight: Weight = 0.1

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its discriminators."""
        parts = [_Contest(self.layers, self.hidden, lesson.example, teacher) for teacher in lesson.example.teachers]
        return PerTeacher(parts)


class _Contest(nn.Module):
    """The discriminators between the student and one teacher."""

    def __init__(self, layers: tuple[Where, ...], hidden: int, example: Batch, teacher: Outputs) -> None:
        super().__init__()
        self.layers = layers
        self.discriminators, self.adapters = nn.ModuleList(), nn.ModuleList()
        for mine, theirs in self.pairs(example, teacher):
            same = mine.shape[1] == theirs.shape[1]
            self.adapters.append(nn.Identity() if same else nn.Linear(mine.shape[1], theirs.shape[1]))
            self.discriminators.append(discriminator(theirs.shape[1], hidden))

    def forward(self, batch: Batch, teacher: Outputs) -> Float[Tensor, " batch"]:
        """What the discriminators and the student each lose to the other, for each image."""
        terms = []
        for judge, adapter, (mine, theirs) in zip(
            self.discriminators, self.adapters, self.pairs(batch, teacher), strict=True
        ):
            mine = adapter(mine)
            told = F.softplus(-judge(theirs)) + F.softplus(judge(mine.detach()))
            # Both sides learn in one backward pass: the discriminator from features without gradient, the student from
            # a discriminator without. Otherwise each would train the other against itself.
            frozen = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            terms.append((told + F.softplus(-torch.func.functional_call(judge, frozen, (mine,)))).squeeze(1))
        return total(terms)

    def pairs(self, batch: Batch, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """What is to be told apart, as vectors."""
        if not self.layers:
            return [(batch.student.logits, teacher.logits.detach())]
        return [(as_vector(mine), as_vector(theirs)) for mine, theirs in feature_pairs(batch, teacher, self.layers)]


def discriminator(width: int, hidden: int) -> nn.Module:
    """Vectors of a width to the log-odds (batch, 1) that they are the teacher's."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
    )
