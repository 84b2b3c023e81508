"""What every loss is, and what it sees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from compress.losses.layers import Where, key
from compress.weighting import Weight

UNLABELLED = -1  # stands where an image has no label


@dataclass(frozen=True)
class Outputs:
    """What one network says of a batch: logits (batch, classes), and the features that the losses ask for.

    `features` has for each place that a loss names (`key(where)`) the outputs of the layers meant by it, in the order
    in which they are computed: (batch, channels, height, width), or (batch, width) behind the pooling.
    """

    logits: Float[Tensor, "batch classes"]
    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def rows(self, which: Tensor) -> "Outputs":
        """The outputs for some of the images."""
        features = {name: tuple(each[which] for each in found) for name, found in self.features.items()}
        return Outputs(self.logits[which], features)


@dataclass(frozen=True)
class Batch:
    """All that a loss may look at. The teachers' outputs carry no gradient.

    `labels` is None where no image has one, and UNLABELLED (-1) for single images without; a loss that needs labels
    is given the labelled images alone. `indices` are the examples' positions in the training split, unlabelled images
    after it, `epoch` counts from 0, `label_smoothing` is the stage's. `inputs` are the images as the student is fed.
    `shares` say how much each teacher counts for each image, their sum over the teachers being 1; None for all alike.
    """

    student: Outputs
    teachers: tuple[Outputs, ...]
    labels: Int[Tensor, " batch"] | None
    indices: Int[Tensor, " batch"]
    epoch: int
    label_smoothing: float = 0.0
    inputs: Float[Tensor, "batch channels height width"] | None = None
    shares: Float[Tensor, "teachers batch"] | None = None

    def labelled(self) -> "Batch":
        """The same with only the images that have a label; there may be none."""
        assert self.labels is not None
        which = torch.nonzero(self.labels != UNLABELLED).flatten()
        return replace(
            self,
            student=self.student.rows(which),
            teachers=tuple(teacher.rows(which) for teacher in self.teachers),
            labels=self.labels[which],
            indices=self.indices[which.to(self.indices.device)],
            inputs=None if self.inputs is None else self.inputs[which],
            shares=None if self.shares is None else self.shares[:, which],
        )


class Loss(Protocol):
    """One term of the sum that a student minimises: a scalar, for most losses the mean over the batch.

    The sum takes it `weight` times; a loss itself knows nothing of its weight. `needs_teacher` and `needs_labels` say
    what must be in the batch, so that a pipeline without it is refused before training.

    A loss on features has `layers`, the places that it looks at. One with parameters or memory has a method
    `build(lesson) -> nn.Module`, whose result is called with each batch in the loss's place, is trained with the
    student and given up in the end. It may have a method `objection(lesson) -> str | None` that says why it cannot
    work there, such as for features of shapes that do not fit.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool]
    needs_labels: ClassVar[bool]

    @property
    def weight(self) -> Weight: ...

    def __call__(self, batch: Batch) -> Float[Tensor, ""]: ...


@dataclass(frozen=True)
class Lesson:
    """What a loss with parameters or memory is built for.

    `example` is a batch of two images, by which adapters find the shapes of features; `samples` are the training
    images (indices in batches are below it), `classes` the classes, `labels` (samples,) the class of each training
    image, UNLABELLED where there is none. Parameters are drawn from torch's global random state.
    """

    example: Batch
    samples: int
    classes: int
    labels: Int[Tensor, " samples"]


Term = Callable[[Batch], Tensor] | nn.Module


def over_teachers(batch: Batch, term: Callable[[Outputs], Float[Tensor, " batch"]]) -> Float[Tensor, ""]:
    """The mean over the batch of a term that each teacher has for each image, every teacher counting by its share."""
    terms = torch.stack([term(teacher) for teacher in batch.teachers])
    return terms.mean() if batch.shares is None else (batch.shares * terms).sum(0).mean()


def over_batches(batch: Batch, term: Callable[[Outputs], Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """A term that each teacher has for the batch as a whole, every teacher counting by its mean share."""
    terms = torch.stack([term(teacher) for teacher in batch.teachers])
    return terms.mean() if batch.shares is None else (batch.shares.mean(1) * terms).sum()


def feature_pairs(batch: Batch, teacher: Outputs, layers: tuple[Where, ...]) -> list[tuple[Tensor, Tensor]]:
    """The student's and a teacher's features at each of the layers, the latter without gradient.

    A pattern may mean several layers: as many of the student's as of the teacher's, which `fit` has seen to.
    """
    return [
        (mine, theirs.detach())
        for where in layers
        for mine, theirs in zip(batch.student.features[key(where)], teacher.features[key(where)], strict=True)
    ]


def soft_divergence(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, " batch"]:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)) of each image."""
    said = F.log_softmax(student / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(said, target, reduction="none", log_target=True).sum(1)
