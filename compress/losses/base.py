"""What every loss is, and what it sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What one network says of a batch: logits (batch, classes), and features by layer name where asked for."""

    logits: Float[Tensor, "batch classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """All that a loss may look at. The teachers' outputs carry no gradient.

    `labels` is None for images without labels; `indices` are the examples' positions in the training split,
    `epoch` counts from 0, `label_smoothing` is the stage's.
    """

    student: Outputs
    teachers: tuple[Outputs, ...]
    labels: Int[Tensor, " batch"] | None
    indices: Int[Tensor, " batch"]
    epoch: int
    label_smoothing: float = 0.0


class Loss(Protocol):
    """One term of the sum that a student minimises: a scalar, the mean over the batch, times `weight`.

    `needs_teacher` and `needs_labels` say what must be in the batch, so that a pipeline without it is refused
    before training.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool]
    needs_labels: ClassVar[bool]

    def __call__(self, batch: Batch) -> Float[Tensor, ""]: ...
