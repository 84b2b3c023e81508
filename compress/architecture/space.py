"""The networks that a search may choose from: the student's stages, each with choices for its sizes.

A candidate is one integer a choice, its rung: 0 is the smallest value that this choice has.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import numpy as np
from pydantic import Field

from compress.config import Config
from compress.errors import ConfigError
from compress.models.mobilenet_blocks import Depth, Expansion, Kernel, MobileNetBlocks

Rungs = tuple[int, ...]
STAGE_FIELDS = ("widths", "depths", "kernels", "expansions")

Multiplier = Annotated[float, Field(gt=0, le=8)]
Resolution = Annotated[int, Field(ge=8, le=1024)]


class Space(Config):
    """The values that each stage's sizes may have, stage by stage (after Cai et al. 2020, arXiv:1908.09791, sec. 3).

    `widths` multiply the student's own, also those of its first and last convolution; `depths` (blocks), `kernels`,
    `expansions` and `resolutions` (sides in pixels) are taken as they are. The student's own value is always one more
    choice, so an empty list leaves things as the student has them.
    """

    widths: tuple[Multiplier, ...] = (0.5, 0.75)
    depths: tuple[Depth, ...] = (1, 2, 3)
    kernels: tuple[Kernel, ...] = (3, 5)
    expansions: tuple[Expansion, ...] = (3, 4, 6)
    resolutions: tuple[Resolution, ...] = ()


@dataclass(frozen=True)
class Choices:
    """A space around a student: `places` says which field and stage each choice sets, `values` to what, ascending.

    A place without a stage has None. `own` is the student as a candidate.
    """

    student: MobileNetBlocks
    own: Rungs
    places: tuple[tuple[str, int | None], ...]
    values: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """How many networks there are."""
        return prod(len(values) for values in self.values)

    @property
    def smallest(self) -> Rungs:
        """The network with the least of everything."""
        return (0,) * len(self.values)

    @property
    def largest(self) -> Rungs:
        """The network with the most of everything, which holds all others."""
        return tuple(len(values) - 1 for values in self.values)

    def architecture(self, rungs: Rungs) -> MobileNetBlocks:
        """The candidate as an architecture."""
        fields: dict[str, object] = {}
        for (field, stage), values, rung in zip(self.places, self.values, rungs, strict=True):
            if stage is None:
                fields[field] = values[rung]
            else:
                fields[field] = (*fields.get(field, ()), values[rung])  # type: ignore[misc]
        return MobileNetBlocks.model_validate(self.student.model_dump() | fields)

    def sampled(self, random: np.random.Generator) -> Rungs:
        """A candidate at random, every choice by itself."""
        return tuple(int(random.integers(len(values))) for values in self.values)

    def lowered(self, rungs: Rungs) -> Rungs:
        """One rung less where there are most left in proportion; of equals the first."""
        highest = max(range(len(rungs)), key=lambda i: (rungs[i] / max(len(self.values[i]) - 1, 1), -i))
        return tuple(rung - (i == highest) for i, rung in enumerate(rungs))


def choices(space: Space, student: MobileNetBlocks, image: tuple[int, int, int], align: int) -> Choices:
    """The networks of a space around a student, widths other than its own the nearest multiples of `align`.

    Raises ConfigError where there is only one, or where images cannot have one of the resolutions.
    """
    places: list[tuple[str, int | None]] = [("stem", None), ("head", None)]
    places += [(field, stage) for field in STAGE_FIELDS for stage in range(len(student.widths))]
    own = [_own(student, place) for place in places]
    values = [_values(space, field, value, align) for (field, _), value in zip(places, own, strict=True)]
    if space.resolutions:
        places.append(("resolution", None))
        own.append(student.seen(image)[0])
        values.append(tuple(sorted({own[-1], *_resolutions(space, student, image)})))
    rungs = tuple(each.index(value) for each, value in zip(values, own, strict=True))
    found = Choices(student, rungs, tuple(places), tuple(values))
    if found.size == 1:
        raise ConfigError(
            f"space: with widths in multiples of {align} the student is the only network in it, so there is nothing to "
            "search. Give at least one of widths, depths, kernels, expansions and resolutions another value."
        )
    return found


def _own(student: MobileNetBlocks, place: tuple[str, int | None]) -> int:
    field, stage = place
    value: int = getattr(student, field) if stage is None else getattr(student, field)[stage]
    return value


def _values(space: Space, field: str, own: int, align: int) -> tuple[int, ...]:
    """What a choice may be, ascending."""
    if field in ("depths", "kernels", "expansions"):
        return tuple(sorted({own, *getattr(space, field)}))
    widths = (max(align, int(own * factor / align + 0.5) * align) for factor in space.widths)
    return tuple(sorted({own, *widths}))


def _resolutions(space: Space, student: MobileNetBlocks, image: tuple[int, int, int]) -> tuple[int, ...]:
    for side in space.resolutions:
        if side > image[1]:
            raise ConfigError(f"space.resolutions: {side} is more than the {image[1]} pixels that images have.")
        try:
            student.model_copy(update={"resolution": side}).check(image)
        except ValueError as error:
            raise ConfigError(f"space.resolutions: the student cannot have {side}: {error}.") from None
    return space.resolutions
