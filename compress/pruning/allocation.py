"""How a cut is shared out among the coupled groups of a network: the table `allocation` is looked up in.

A member is a frozen object that is called with all plans at one alignment, a limit and a judge, and gives a plan within
the limit, or None where it finds none.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import compress.pruning.plan as plans
from compress.config import Config
from compress.errors import ConfigError
from compress.pruning.costs import Floats
from compress.pruning.judging import Judge as Judge
from compress.pruning.metaheuristics import Tried, anneal, evolve
from compress.pruning.plan import Limit, Plan, PlanSearch, padded
from compress.pruning.variation import Candidate, Variation

Ratio = Annotated[float, Field(gt=0, lt=1)]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1)]
SAVED_NOTHING = 1e-12


class Allocation(Protocol):
    """Shares a cut out. `judges` says whether it measures on images and so needs a judge.

    Raises ConfigError where it needs one and there is none.
    """

    name: ClassVar[str]
    judges: ClassVar[bool]

    def __call__(self, search: PlanSearch, limit: Limit, judge: Judge | None = None) -> Plan | None: ...


class Uniform(Config):
    """Nearly the same ratio everywhere (Li et al. 2017, arXiv:1608.08710, sec. 3.2: layers by stage, one ratio)."""

    name: ClassVar[str] = "uniform"
    judges: ClassVar[bool] = False

    def __call__(self, search: PlanSearch, limit: Limit, judge: Judge | None = None) -> Plan | None:
        return plans.uniform(search, limit)


class Global(Config):
    """One threshold for the channels of all layers (Liu et al. 2017, arXiv:1708.06519, sec. 3).

    Channels compete by importance, a rung of widths at a time. `lamp`, `taylor` and `hessian` compare across layers by
    themselves; of the others each group's mean is made 1, as Molchanov et al. 2017 (arXiv:1611.06440, sec. 2.2) bring
    layers to one scale.
    """

    name: ClassVar[str] = "global"
    judges: ClassVar[bool] = False

    def __call__(self, search: PlanSearch, limit: Limit, judge: Judge | None = None) -> Plan | None:
        return search.descend(limit, least_important)


class Sensitivity(Config):
    """Least damage for the cost that is saved, each group's damage measured by itself (after Li et al. 2017, sec. 3.2).

    A group's damage is what the loss rises by when it alone is narrowed by each of `ratios`, or the nearest width that
    alignment allows; between them it is interpolated, and each further channel counts for at least as much as those
    before. The rung that costs the least damage for what it saves goes first, greedily.
    """

    name: ClassVar[str] = "sensitivity"
    judges: ClassVar[bool] = True
    ratios: Ratios = (0.1, 0.3, 0.5, 0.7, 0.9)

    def __call__(self, search: PlanSearch, limit: Limit, judge: Judge | None = None) -> Plan | None:
        if not plans_within(search, limit):
            return None  # known before anything is measured
        damages = padded([each.tolist() for each in self.damages(search, required(judge, self.name))])
        return search.descend(limit, partial(least_damage, damages=damages))

    def damages(self, search: PlanSearch, judge: Judge) -> list[Floats]:
        """What the loss rises by on every rung of every group's ladder, (rungs,) for each group, in nats."""
        rungs = [self._measured_rungs(ladder) for ladder in search.ladders]
        whole, dense = [ladder[0] for ladder in search.ladders], judge.dense.loss
        total, found = sum(map(len, rungs)), []
        for group, ladder in enumerate(search.ladders):
            rises = [0.0]
            for rung in rungs[group]:
                rises.append(judge([*whole[:group], ladder[rung], *whole[group + 1 :]]).loss - dense)
                total_done = sum(map(len, rungs[:group])) + len(rises) - 1
                judge.say("measuring every group alone", total_done, total, dense)
            removed = np.array([0, *(whole[group] - ladder[rung] for rung in rungs[group])])
            found.append(np.interp(whole[group] - np.array(ladder), removed, convex(removed, finite(rises))))
        return found

    def _measured_rungs(self, ladder: Sequence[int]) -> list[int]:
        """The rungs nearest to the ratios, and the last, behind which nothing would have to be guessed."""
        if len(ladder) == 1:
            return []
        wanted = [(1 - ratio) * ladder[0] for ratio in self.ratios]
        nearest = {int(np.argmin(np.abs(np.array(ladder) - width))) for width in wanted}
        return sorted((nearest | {len(ladder) - 1}) - {0})


class Annealing(Config):
    """Simulated annealing over the groups' widths (Kirkpatrick et al. 1983; for pruning Liu et al. 2020,
    arXiv:1907.03141).

    Starts from the best of the uniform, global and sensitivity plans; each of `steps` varies a few groups, repairs the
    plan into the limit and judges it by its loss after batch-norm statistics are estimated anew (Li et al. 2020,
    arXiv:2007.02491). `temperature` is in nats.
    """

    name: ClassVar[str] = "annealing"
    judges: ClassVar[bool] = True
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 150
    temperature: Annotated[float, Field(ge=0)] = 0.05

    def __call__(self, search: PlanSearch, limit: Limit, judge: Judge | None = None) -> Plan | None:
        judge = required(judge, self.name)
        starts = starting_plans(search, limit, judge)
        if not starts:
            return None
        variation = Variation(search, limit)
        loss = partial(loss_of, search, judge)
        random = np.random.default_rng(judge.seed)
        tell = telling(judge, self.name, self.steps + 1)
        start = min(starts, key=loss)
        found = anneal(start, variation.mutated, loss, self.steps, self.temperature, random, tell)
        return np.array(found.best, np.int64)


class Evolution(Config):
    """Evolution over the groups' widths (for pruning Liu et al. 2019, MetaPruning, arXiv:1903.10258, sec. 3.2).

    The first population holds the uniform, global and sensitivity plans; children are crossed and varied, repaired into
    the limit and judged as in annealing. See `evolve` for who lives on.
    """

    name: ClassVar[str] = "evolution"
    judges: ClassVar[bool] = True
    population: Annotated[int, Field(ge=2, le=10_000)] = 16
    generations: Annotated[int, Field(ge=1, le=100_000)] = 10

    def __call__(self, search: PlanSearch, limit: Limit, judge: Judge | None = None) -> Plan | None:
        judge = required(judge, self.name)
        starts = starting_plans(search, limit, judge)
        if not starts:
            return None
        variation = Variation(search, limit)
        loss = partial(loss_of, search, judge)
        random = np.random.default_rng(judge.seed)
        tell = telling(judge, self.name, self.population * (self.generations + 1))
        found = evolve(
            starts, variation.mutated, variation.crossed, loss, self.population, self.generations, random, tell
        )
        return np.array(found.best, np.int64)


ALLOCATIONS: dict[str, type[Allocation]] = {
    each.name: each for each in (Uniform, Global, Sensitivity, Annealing, Evolution)
}


def least_important(search: PlanSearch, plan: Plan) -> Plan | None:
    """One group one rung narrower: the group whose next channels are the least important on average."""
    steps = search.steps(plan)
    if not len(steps):
        return None
    channels = (search.widths[search.groups, plan] - search.widths[search.groups, steps]).sum(1)
    lost = search.importance_lost(steps) - search.importance_lost(plan[None])
    best: Plan = steps[np.argmin(lost / channels)]
    return best


def least_damage(search: PlanSearch, plan: Plan, damages: Floats) -> Plan | None:
    """One group one rung narrower: the least damage for the cost saved; of equals, the least importance for it."""
    steps = search.steps(plan)
    if not len(steps):
        return None
    saved = np.maximum(search.cost(plan[None]) - search.cost(steps), SAVED_NOTHING)
    rises = damages[search.groups, steps].sum(1) - damages[search.groups, plan].sum()
    lost = search.importance_lost(steps) - search.importance_lost(plan[None])
    best: Plan = steps[np.lexsort((lost / saved, rises.round(9) / saved))[0]]
    return best


def convex(removed: NDArray[np.int64], rises: Floats) -> Floats:
    """Damage of which every further channel does at least as much as each before it; both (points,), from 0 on.

    Channels go least important first. But the loss hardly rises any more where a network is near to guessing, and what
    is ruined must not look cheap to ruin further.
    """
    slopes = np.diff(np.maximum.accumulate(rises)) / np.diff(removed)
    return np.concatenate([[0.0], np.cumsum(np.maximum.accumulate(slopes) * np.diff(removed))])


def finite(losses: Sequence[float]) -> Floats:
    """Losses with what is infinite replaced by far more than the worst of the others: sums of them stay numbers."""
    values = np.array(losses)
    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, 1000 * max(1.0, float(known.max())))


def starting_plans(search: PlanSearch, limit: Limit, judge: Judge) -> list[Candidate]:
    """What searches start from: the uniform, global and sensitivity plans, as far as there are such."""
    found = (allocation(search, limit, judge) for allocation in (Uniform(), Global(), Sensitivity()))
    return list(dict.fromkeys(tuple(plan.tolist()) for plan in found if plan is not None))


def plans_within(search: PlanSearch, limit: Limit) -> bool:
    """Whether any plan within the limit is known to be found."""
    return plans.uniform(search, limit) is not None or Global()(search, limit) is not None


def loss_of(search: PlanSearch, judge: Judge, candidate: Candidate) -> float:
    """A candidate's loss, without training."""
    return judge(search.widths_of(np.array(candidate, np.int64))).loss


def telling(judge: Judge, doing: str, total: int) -> "Tell":
    """A listener for a search that tells the judge's."""
    return lambda tried: judge.say(doing, tried.count, total, tried.best_loss)


class Tell(Protocol):
    """Hears of candidates as they are tried."""

    def __call__(self, tried: Tried[Candidate], /) -> None: ...


def required(judge: Judge | None, name: str) -> Judge:
    """The judge that an allocation cannot do without."""
    if judge is None:
        raise ConfigError(
            f"allocation: {name!r} measures networks on images, and none are given here; give some, or use 'uniform' "
            "or 'global'."
        )
    return judge
