"""What losses on features share: maps of one size, widths adapted, a set of parameters for each teacher."""

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.losses.base import Batch, Lesson, Outputs, over_teachers
from compress.losses.layers import Where, key


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization that takes its running statistics where a batch has one value a channel, hence no spread."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def pointwise(channels: int, wanted: int) -> nn.Module:
    """A convolution of 1x1 with batch normalization that makes `wanted` channels; nothing where there are as many."""
    if channels == wanted:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, wanted, 1, bias=False), BatchNorm(wanted))


def as_map(features: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Features as a map; a vector is a map of one pixel."""
    return features if features.dim() == 4 else features[:, :, None, None]


def as_vector(features: Tensor) -> Float[Tensor, "batch width"]:
    """Features as a vector: what is left of a map where only channels count, its mean over the pixels."""
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def one_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of the smaller one's height and width, by the mean over adaptive windows."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    first, second = (
        each if tuple(each.shape[2:]) == size else F.adaptive_avg_pool2d(each, size) for each in (first, second)
    )
    return first, second


class PerTeacher(nn.Module):
    """A loss with parameters: a part for each teacher, called with the batch and that teacher's outputs.

    `combine` is `over_teachers` for parts that give a value for each image, `over_batches` for parts that give one for
    the batch.
    """

    def __init__(
        self,
        parts: Iterable[nn.Module],
        combine: Callable[[Batch, Callable[[Outputs], Tensor]], Tensor] = over_teachers,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.combine = combine

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        assert len(self.parts) == len(batch.teachers), "the loss was built for other teachers"
        parts = iter(self.parts)  # both ways of combining ask for the teachers one after the other
        return self.combine(batch, lambda teacher: next(parts)(batch, teacher))


def must_be_built(name: str) -> NoReturn:
    """Says that a loss has parameters or memory, so that its configuration alone cannot be called."""
    raise TypeError(f"the loss {name} has parameters: call what its build(lesson) gives")


def objection_to_shapes(
    lesson: Lesson, layers: Iterable[Where], *, vectors: bool, student_alone: bool = False
) -> str | None:
    """Why features cannot be compared as maps, or None; `vectors` says whether vectors pass for maps of one pixel."""
    allowed = (2, 4) if vectors else (4,)
    for role, where, features in _named(lesson, layers, student_alone):
        if features.dim() not in allowed:
            shape = ", ".join(map(str, features.shape[1:]))
            wants = "maps or vectors" if vectors else "maps (channels, height, width)"
            return (
                f"it looks at {wants}, and {role}'s features at {key(where)!r} have the shape ({shape}); "
                "name a stage or a convolution in layers"
            )
    return None


def _named(lesson: Lesson, layers: Iterable[Where], student_alone: bool) -> Iterator[tuple[str, Where, Tensor]]:
    """Every feature of the example with whose it is and where."""
    teachers = () if student_alone else lesson.example.teachers
    roles = ["the teacher"] if len(teachers) == 1 else [f"teacher {i + 1}" for i in range(len(teachers))]
    for where in layers:
        for role, net in zip(["the student", *roles], (lesson.example.student, *teachers), strict=True):
            for features in net.features[key(where)]:
                yield role, where, features


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of a loss's terms over the places that it looks at."""
    return torch.stack(list(terms)).sum(0)
