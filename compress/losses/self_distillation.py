from collections.abc import Sequence
from typing import Annotated, ClassVar, NoReturn

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.losses.adapters import BatchNorm, as_map, must_be_built, objection_to_shapes, one_size, total
from compress.losses.base import Batch, Lesson
from compress.losses.layers import Layers, key
from compress.weighting import Weight


class SelfDistillation(Config):
    """Be your own teacher (Zhang et al. 2019, arXiv:1905.08094, sec. 3): deep parts teach early exits.

    Each of `layers` but the last gets an exit: its map averaged down to the deepest one's size, a 1x1 convolution with
    batch normalization and ReLU to as many channels, the mean over the pixels, a linear layer. An exit learns
    (1 - alpha) · cross-entropy with the labels + alpha · T² · KL(net ‖ exit) at the temperature T + hint · ‖F_exit -
    F_net‖², F being the means over the pixels, of the net at the last of `layers`; what teaches gets no gradient. The
    mean over the batch, the sum over the exits. The net's own cross-entropy is not in it: put `cross_entropy` beside.
    The exits are given up in the end.

    Temperature and alpha are those of public PyTorch code for the paper, whose 1e-6 for a hint summed over 128 images
    is about 1e-4 for the mean over them. The paper's exits have more layers.
    """

    name: ClassVar[str] = "self_distillation"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    layers: Layers = (-4, -3, -2, -1)
    temperature: Annotated[float, Field(gt=0)] = 3.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    hint: Annotated[float, Field(ge=0)] = 1e-4
    weight: Weight = 1.0

    def __call__(self, batch: Batch) -> NoReturn:
        must_be_built(self.name)

    def objection(self, lesson: Lesson) -> str | None:
        """Why there is no exit, or None."""
        if len(_features(lesson.example, self)) < 2:
            return "the last of its layers teaches the ones before, and there is a single one; name at least two"
        return objection_to_shapes(lesson, self.layers, vectors=True, student_alone=True)

    def build(self, lesson: Lesson) -> nn.Module:
        """The loss with its exits."""
        return _Exits(self, _features(lesson.example, self), lesson.example.student.logits.shape[1])


class _Exits(nn.Module):
    """A small classifier behind each early stage."""

    def __init__(self, loss: SelfDistillation, found: Sequence[Tensor], classes: int) -> None:
        super().__init__()
        self.loss = loss
        *early, deepest = (each.shape[1] for each in found)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, deepest, 1, bias=False), BatchNorm(deepest), nn.ReLU())
            for channels in early
        )
        self.classify = nn.ModuleList(nn.Linear(deepest, classes) for _ in early)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """What the early exits miss of the labels, of the deepest logits and of the deepest features."""
        *early, deepest = map(as_map, _features(batch, self.loss))
        deepest = deepest.detach()
        terms = []
        for enter, classify, features in zip(self.enter, self.classify, early, strict=True):
            reached = enter(one_size(features, deepest)[0]).mean((2, 3))
            distance = (reached - deepest.mean((2, 3))).square().sum(1).mean()
            terms.append(self.learnt(batch, classify(reached)) + self.loss.hint * distance)
        return total(terms)

    def learnt(self, batch: Batch, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
        """What an exit learns from the labels and from the net's own answers."""
        assert batch.labels is not None, "self_distillation needs labels"
        hard = F.cross_entropy(logits, batch.labels, label_smoothing=batch.label_smoothing)
        t = self.loss.temperature
        net, own = F.log_softmax(batch.student.logits.detach() / t, 1), F.log_softmax(logits / t, 1)
        soft = t**2 * F.kl_div(own, net, reduction="batchmean", log_target=True)
        return (1 - self.loss.alpha) * hard + self.loss.alpha * soft


def _features(batch: Batch, loss: SelfDistillation) -> list[Tensor]:
    """The student's own features, from shallow to deep."""
    return [each for where in loss.layers for each in batch.student.features[key(where)]]
