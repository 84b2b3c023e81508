"""How much each loss weighs in the sum: one number, or one that changes from epoch to epoch."""

import math
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, model_validator

from compress.config import Config, OneOf, as_named

Positive = Annotated[float, Field(ge=0)]


class Schedule(Protocol):
    """A weight that depends on the epoch."""

    name: ClassVar[str]

    def at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        ...


class WarmUp(Config):
    """From nothing up to `to`, linearly over `epochs`: to · min(e / epochs, 1) in epoch e, counted from 1.

    As decoupled distillation starts (Zhao et al. 2022, arXiv:2203.08679, sec. 4.1).
    """

    name: ClassVar[str] = "warm_up"
    to: Positive
    epochs: Annotated[float, Field(gt=0)]

    def at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.to * min((epoch + 1) / self.epochs, 1.0)


class Decay(Config):
    """From `start` in the first epoch to `to` after `epochs` more, linearly or along half a cosine; then it stays."""

    name: ClassVar[str] = "decay"
    start: Positive
    to: Positive = 0.0
    epochs: Annotated[float, Field(gt=0)]
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        part = min(epoch / self.epochs, 1.0)
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.to - self.start) * part


class Window(Config):
    """`value` from epoch `first` to epoch `last`, both included and counted from 1; nothing outside."""

    name: ClassVar[str] = "window"
    value: Positive
    first: Annotated[int, Field(ge=1)] = 1
    last: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _open(self) -> "Window":
        if self.last is not None and self.last < self.first:
            raise ValueError(f"the window's last epoch ({self.last}) comes before its first ({self.first})")
        return self

    def at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.value if self.first <= epoch + 1 and (self.last is None or epoch + 1 <= self.last) else 0.0


SCHEDULES: dict[str, type[Schedule]] = {each.name: each for each in (WarmUp, Decay, Window)}


_NUMBER = TypeAdapter(Annotated[float, Field(ge=0, allow_inf_nan=False)])


def _parsed(raw: Any) -> Any:
    # Not left to the union, whose error has a line for each of its types.
    if isinstance(raw, Config):
        return raw
    return OneOf(SCHEDULES).parse(raw) if isinstance(raw, dict) else _NUMBER.validate_python(raw)


def _written(weight: Any) -> Any:
    return as_named(weight) if isinstance(weight, Config) else weight


# In a file a number, or a schedule such as `{warm_up: {to: 8, epochs: 20}}`.
Weight = Annotated[
    float | WarmUp | Decay | Window,
    PlainValidator(_parsed, Positive | Annotated[Any, OneOf(SCHEDULES)]),
    PlainSerializer(_written),
]


def at(weight: float | Schedule, epoch: int) -> float:
    """The value of a weight in an epoch, counted from 0."""
    return weight if isinstance(weight, int | float) else weight.at(epoch)
