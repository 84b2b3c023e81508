"""How candidates are tried: all of them within the limit, none scored twice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import Field

from compress.architecture.space import Choices, Rungs
from compress.config import Config
from compress.pruning.metaheuristics import Found, Tried, anneal, evolve

CHANGED = 0.1  # the share of choices that a mutation draws anew (Cai et al. 2020, arXiv:1908.09791, appendix)
ATTEMPTS = 20

Tell = Callable[[Tried[Rungs]], None]


@dataclass(frozen=True)
class Moves:
    """Random changes of candidates that keep within a limit, which the smallest network meets."""

    choices: Choices
    fits: Callable[[Rungs], bool]

    def uniform(self) -> Rungs:
        """The largest network, all its choices lowered in turn until it fits, then raised where that still fits."""
        rungs = self.choices.largest
        while not self.fits(rungs):
            rungs = self.choices.lowered(rungs)
        for i, most in enumerate(self.choices.largest):  # a rung of the resolution may have taken far too much
            for rung in range(most, rungs[i], -1):
                raised = (*rungs[:i], rung, *rungs[i + 1 :])
                if self.fits(raised):
                    rungs = raised
                    break
        return rungs

    def sampled(self, random: np.random.Generator) -> Rungs:
        """Any candidate that fits."""
        return self.repaired(self.choices.sampled(random), random)

    def repaired(self, rungs: Rungs, random: np.random.Generator, kept: int | None = None) -> Rungs:
        """The candidate with choices drawn at random lowered until it fits; the choice `kept` is the last to go."""
        while not self.fits(rungs):
            free = [i for i, rung in enumerate(rungs) if rung and i != kept]
            lower = free[int(random.integers(len(free)))] if free else kept
            rungs = tuple(rung - (i == lower) for i, rung in enumerate(rungs))
        return rungs

    def mutated(self, rungs: Rungs, random: np.random.Generator) -> Rungs | None:
        """A candidate with about a tenth of the choices drawn anew, at least one; None where none other is found."""
        for _ in range(ATTEMPTS):
            drawn = self.choices.sampled(random)
            mask = random.random(len(rungs)) < CHANGED
            mask[int(random.integers(len(rungs)))] = True
            mixed = tuple(b if new else a for a, b, new in zip(rungs, drawn, mask, strict=True))
            changed = self.repaired(mixed, random)
            if changed != rungs:
                return changed
        return None

    def crossed(self, one: Rungs, other: Rungs, random: np.random.Generator) -> Rungs:
        """Every choice from either of two candidates."""
        first = random.random(len(one)) < 0.5
        return self.repaired(tuple(a if f else b for a, b, f in zip(one, other, first, strict=True)), random)

    def neighbour(self, rungs: Rungs, random: np.random.Generator) -> Rungs | None:
        """A candidate with one choice a rung up or down; what that costs too much is taken from the others."""
        for _ in range(ATTEMPTS):
            i, step = int(random.integers(len(rungs))), int(random.choice([-1, 1]))
            if 0 <= rungs[i] + step <= self.choices.largest[i]:
                moved = self.repaired(tuple(r + step * (j == i) for j, r in enumerate(rungs)), random, kept=i)
                if moved != rungs:
                    return moved
        return None


class Method(Protocol):
    """Tries candidates, and gives what was found; `tries` is how many at most."""

    @property
    def tries(self) -> int: ...

    def __call__(
        self, moves: Moves, loss: Callable[[Rungs], float], random: np.random.Generator, tell: Tell
    ) -> Found[Rungs]: ...


class Evolution(Config):
    """Elitist evolution (Bäck & Schwefel 1993, Evol. Comput. 1:1) of networks within the limit."""

    name: ClassVar[str] = "evolution"
    population: Annotated[int, Field(ge=2, le=1000)] = 16
    generations: Annotated[int, Field(ge=0, le=1000)] = 6

    @property
    def tries(self) -> int:
        """Each generation has as many children as there are parents."""
        return self.population * (self.generations + 1)

    def __call__(
        self, moves: Moves, loss: Callable[[Rungs], float], random: np.random.Generator, tell: Tell
    ) -> Found[Rungs]:
        starts = [moves.uniform(), *(moves.sampled(random) for _ in range(self.population - 1))]
        return evolve(starts, moves.mutated, moves.crossed, loss, self.population, self.generations, random, tell)


class Annealing(Config):
    """Simulated annealing (Kirkpatrick et al. 1983, Science 220:671); `temperature` is in points of accuracy."""

    name: ClassVar[str] = "annealing"
    steps: Annotated[int, Field(ge=0, le=100_000)] = 100
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0

    @property
    def tries(self) -> int:
        """The start, and one candidate a step."""
        return self.steps + 1

    def __call__(
        self, moves: Moves, loss: Callable[[Rungs], float], random: np.random.Generator, tell: Tell
    ) -> Found[Rungs]:
        return anneal(moves.uniform(), moves.neighbour, loss, self.steps, self.temperature, random, tell)


class Uniform(Config):
    """No search: the largest network of the space, its choices lowered in turn until it is within the limit."""

    name: ClassVar[str] = "uniform"

    @property
    def tries(self) -> int:
        """One candidate."""
        return 1

    def __call__(
        self, moves: Moves, loss: Callable[[Rungs], float], random: np.random.Generator, tell: Tell
    ) -> Found[Rungs]:
        start = moves.uniform()
        return Found(start, loss(start), {})


METHODS: dict[str, type[Method]] = {"evolution": Evolution, "annealing": Annealing, "uniform": Uniform}
