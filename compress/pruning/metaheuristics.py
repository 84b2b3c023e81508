"""Search by random change, for losses that have no gradient: simulated annealing and evolution.

Generic over candidates: anything hashable that the caller can vary. A candidate's loss is computed once however often
the search comes back to it, and all randomness comes from the caller's generator, so a seed decides the result.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from compress.errors import ConfigError

FINAL_TEMPERATURE = 0.01  # of the first one: almost nothing worse is accepted at the end
CROSSED = 0.5  # the share of children that have two parents

C = TypeVar("C", bound=Hashable)


@dataclass(frozen=True)
class Tried(Generic[C]):
    """A candidate that was just scored, the `count`-th; the best so far, which it may be."""

    candidate: C
    loss: float
    best: C
    best_loss: float
    count: int


@dataclass(frozen=True)
class Found(Generic[C]):
    """The best candidate, its loss, and the losses of all that were scored, in the order of their scoring."""

    best: C
    loss: float
    losses: dict[C, float]


class Scores(Generic[C]):
    """A loss that remembers: every candidate is scored once. A loss that is no number counts as infinite."""

    def __init__(self, loss: Callable[[C], float], tell: Callable[[Tried[C]], None] | None) -> None:
        self.loss = loss
        self.tell = tell
        self.known: dict[C, float] = {}

    def __call__(self, candidate: C) -> float:
        """The candidate's loss."""
        if candidate not in self.known:
            value = float(self.loss(candidate))
            self.known[candidate] = math.inf if math.isnan(value) else value
            if self.tell is not None:
                found = self.found()
                self.tell(Tried(candidate, self.known[candidate], found.best, found.loss, len(self.known)))
        return self.known[candidate]

    def found(self) -> Found[C]:
        """The best so far; of equals the one that was scored first."""
        best = min(self.known, key=self.known.__getitem__)
        return Found(best, self.known[best], self.known)


def anneal(
    start: C,
    neighbour: Callable[[C, np.random.Generator], C | None],
    loss: Callable[[C], float],
    steps: int,
    temperature: float,
    random: np.random.Generator,
    tell: Callable[[Tried[C]], None] | None = None,
) -> Found[C]:
    """Simulated annealing (Kirkpatrick et al. 1983, Science 220:671) from `start`; the best candidate ever seen.

    Each of `steps` looks at one neighbour: a better one is accepted, one worse by d with probability exp(-d / T),
    where T falls geometrically from `temperature`, in units of the loss, to a hundredth of it. At 0 nothing worse is
    accepted. `neighbour` changes a candidate at random, or gives None where it finds no change that is allowed.
    `tell` hears of each new candidate. Raises ConfigError for negative steps or a temperature that is negative or
    no number.
    """
    _require("steps", steps, steps >= 0, "0 or more")
    _require("temperature", temperature, 0 <= temperature < math.inf, "0 or more, and finite")
    scores = Scores(loss, tell)
    current = start
    scores(current)
    for step in range(steps):
        warmth = temperature * FINAL_TEMPERATURE ** (step / max(steps - 1, 1))
        candidate, chance = neighbour(current, random), random.random()
        if candidate is not None and _accepted(scores(candidate) - scores(current), warmth, chance):
            current = candidate
    return scores.found()


def evolve(
    starts: Sequence[C],
    mutate: Callable[[C, np.random.Generator], C | None],
    cross: Callable[[C, C, np.random.Generator], C | None],
    loss: Callable[[C], float],
    population: int,
    generations: int,
    random: np.random.Generator,
    tell: Callable[[Tried[C]], None] | None = None,
) -> Found[C]:
    """Elitist evolution, (μ + λ) with μ = λ = `population` (Bäck & Schwefel 1993, Evol. Comput. 1:1).

    The first population is `starts` and mutants of them. In each generation half of the children come from two parents
    by `cross`, mutated where that gives nothing new, half from one by `mutate`; a parent is the better of two drawn at
    random (tournament selection, as in Real et al. 2019, arXiv:1802.01548, but the old do not die: with few candidates
    to spend, the best so far are kept). The best of parents and children live on. `mutate` and `cross` may give None
    where they find nothing that is allowed. `tell` hears of each new candidate. Raises ConfigError for no starts, a
    population of less than 2 or negative generations.
    """
    _require("starts", len(starts), len(starts) > 0, "1 or more")
    _require("population", population, population >= 2, "2 or more")
    _require("generations", generations, generations >= 0, "0 or more")
    scores = Scores(loss, tell)
    alive = list(dict.fromkeys(starts))
    mutants = (mutate(alive[i % len(starts)], random) for i in range(max(population - len(starts), 0)))
    alive = _fittest([*alive, *(mutant for mutant in mutants if mutant is not None)], scores, population)
    for _ in range(generations):
        children = [_child(alive, mutate, cross, scores, random) for _ in range(population)]
        alive = _fittest([*alive, *(child for child in children if child is not None)], scores, population)
    return scores.found()


def _child(
    alive: Sequence[C],
    mutate: Callable[[C, np.random.Generator], C | None],
    cross: Callable[[C, C, np.random.Generator], C | None],
    scores: Scores[C],
    random: np.random.Generator,
) -> C | None:
    one = _tournament(alive, scores, random)
    if random.random() >= CROSSED:
        return mutate(one, random)
    crossed = cross(one, _tournament(alive, scores, random), random)
    if crossed is None or crossed not in scores.known:
        return crossed
    return mutate(crossed, random)  # of two alike parents nothing new would come


def _tournament(alive: Sequence[C], scores: Scores[C], random: np.random.Generator) -> C:
    drawn = [alive[int(random.integers(len(alive)))] for _ in range(2)]
    return min(drawn, key=scores)


def _fittest(candidates: Sequence[C], scores: Scores[C], count: int) -> list[C]:
    """The best distinct candidates; of equals the ones that come first."""
    return sorted(dict.fromkeys(candidates), key=scores)[:count]


def _accepted(worse: float, temperature: float, chance: float) -> bool:
    if worse <= 0:
        return True
    return temperature > 0 and chance < math.exp(-worse / temperature)  # NaN, inf - inf, is refused as well


def _require(name: str, value: float, fine: bool, wanted: str) -> None:
    if not fine:
        raise ConfigError(f"{name}: should be {wanted}, not {value:g}.")
