"""How wide every coupled group becomes: a search over aligned widths for a cost.

Arithmetic on plain arrays. A plan is one integer a group, (groups,): the rung of the group's ladder of widths
on which it stands, 0 being its full width.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, lcm

import numpy as np
from numpy.typing import NDArray

from compress.errors import ConfigError
from compress.pruning.costs import Floats, LayerCosts

SLACK = 0.98
ALIGNMENTS = (16, 8, 4, 2, 1)
MAX_REMOVED = 0.9
MAX_EXPANSIONS = 400

Plan = NDArray[np.int64]


@dataclass(frozen=True)
class Limit:
    """What a plan may cost: at most `value`·`whole` and at least `slack` of that, in the unit of `whole`.

    `key` and `value` are what the user wrote, such as keep_macs and 0.5; `whole` is the dense network's cost where
    the value is a share of it, and 1 where it is an amount.
    """

    key: str
    value: float
    whole: float = 1.0
    slack: float = SLACK

    @property
    def high(self) -> float:
        """The most that a plan may cost."""
        return self.value * self.whole

    @property
    def low(self) -> float:
        """The least that a plan should cost: less would give away what could be kept."""
        return self.slack * self.high

    def at(self, cost: float) -> "Limit":
        """The limit that this cost just meets, its value rounded up to four digits, or to a whole number."""
        value = ceil(10_000 * cost / self.whole) / 10_000 if cost < 1000 * self.whole else ceil(cost / self.whole)
        return Limit(self.key, value, self.whole, self.slack)

    @property
    def shown(self) -> str:
        """Its value as a user would write it."""
        return shown(self.value, 4)


def shown(value: float, digits: int = 0) -> str:
    """A share, milliseconds or bytes as a user would write them; shares with so many digits, if any are asked for."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.{digits}f}" if digits else f"{value:.4g}"


def ladder(width: int, align: int, bundle: int) -> list[int]:
    """The widths that a group may have, widest first: its own, then multiples of `align` and `bundle`.

    None is below a tenth of its own: the layer would become a bottleneck that no recovery repairs.
    """
    unit = lcm(align, bundle)
    lowest = ceil(width * (1 - MAX_REMOVED))
    return [width, *range((width - 1) // unit * unit, max(lowest, unit) - 1, -unit)]


@dataclass(frozen=True)
class Scored:
    """A group to be cut: its width, how many channels go at once, and their importance, (width / bundle,)."""

    width: int
    bundle: int
    scores: Floats

    def lost(self, widths: Sequence[int]) -> Floats:
        """The importance that is lost when the least important bundles go until so many channels are left."""
        total = np.concatenate([[0.0], np.cumsum(np.sort(self.scores))]) * self.bundle
        lost: Floats = total[(self.width - np.array(widths)) // self.bundle]
        return lost

    def order(self) -> NDArray[np.int64]:
        """Its channels, (width,), least important bundle first; among equals, those of lower index."""
        size = self.width // self.bundle
        first = np.argsort(self.scores, kind="stable")
        return (first[:, None] + size * np.arange(self.bundle)).reshape(-1)


@dataclass(frozen=True)
class Planned:
    """The width of every group after pruning, and `fixed`: whether it had no other at this alignment."""

    widths: list[int]
    fixed: list[bool]
    cost: float
    align: int


class PlanSearch:
    """All plans of a network at one alignment.

    `ladders` are the widths that each group may have, `last` the last rung of each; `seen` collects the costs of all
    plans looked at.
    """

    def __init__(self, costs: LayerCosts, groups: Sequence[Scored], align: int) -> None:
        self.costs = costs
        self.ladders = [ladder(group.width, align, group.bundle) for group in groups]
        self.last = np.array([len(rungs) - 1 for rungs in self.ladders])
        self.seen: set[float] = set()
        self.groups = np.arange(len(groups))
        self.widths = padded(self.ladders)
        self._lost = padded([g.lost(rungs).tolist() for g, rungs in zip(groups, self.ladders, strict=True)])

    def cost(self, plans: Plan) -> Floats:
        """The cost of each plan: (plans, groups) to (plans,)."""
        costs = self.costs(self.widths[:, 0] - self.widths[self.groups, plans])
        self.seen.update(float(value) for value in costs)
        return costs

    def importance_lost(self, plans: Plan) -> Floats:
        """Importance that each plan removes: (plans, groups) to (plans,)."""
        lost: Floats = self._lost[self.groups, plans].sum(1)
        return lost

    def widths_of(self, plan: Plan) -> list[int]:
        """The width of every group."""
        return [rungs[rung] for rungs, rung in zip(self.ladders, plan, strict=True)]

    def descend(self, limit: Limit, step: "Step") -> Plan | None:
        """From full width one step at a time to within the limit; where a step jumps over it, plans near are searched.

        None where no plan was found.
        """
        plan = np.zeros(len(self.ladders), np.int64)
        while self.cost(plan[None])[0] > limit.high:
            lower = step(self, plan)
            if lower is None:
                return None
            plan = lower
        return plan if self.cost(plan[None])[0] >= limit.low else self.nearby(plan, limit)

    def steps(self, plan: Plan) -> Plan:
        """All plans in which one group stands one rung lower, (free groups, groups)."""
        steps: Plan = plan + np.eye(len(plan), dtype=np.int64)[plan < self.last]
        return steps

    def nearby(self, plan: Plan, limit: Limit) -> Plan | None:
        """Best-first search from `plan` over single rungs up and down, nearest cost first."""
        moves = np.eye(len(plan), dtype=np.int64)
        moves = np.concatenate([moves, -moves])
        order = count()
        queue = [(0.0, next(order), plan)]
        known = {plan.tobytes()}
        for _ in range(MAX_EXPANSIONS):
            if not queue:
                break
            plan = heapq.heappop(queue)[2]
            plans = plan + moves
            plans = plans[((plans >= 0) & (plans <= self.last)).all(1)]
            costs = self.cost(plans)
            inside = plans[(costs >= limit.low) & (costs <= limit.high)]
            if len(inside):
                best: Plan = inside[np.argmin(self.importance_lost(inside))]
                return best
            for candidate, distance in zip(plans, np.maximum(limit.low - costs, costs - limit.high), strict=True):
                if candidate.tobytes() not in known:
                    known.add(candidate.tobytes())
                    heapq.heappush(queue, (float(distance), next(order), candidate))
        return None


Step = Callable[[PlanSearch, Plan], Plan | None]
Allocate = Callable[[PlanSearch, Limit], Plan | None]


def nearly_uniform(search: PlanSearch, plan: Plan) -> Plan | None:
    """One group one rung narrower: the group whose next rung is the nearest to a common ratio.

    Of several at the same ratio, the one that loses the least importance for the cost it saves.
    """
    free = search.groups[plan < search.last]
    if not len(free):
        return None
    between = (search.widths[free, plan[free]] + search.widths[free, plan[free] + 1]) / 2
    removed_share = 1 - between / search.widths[free, 0]
    steps = search.steps(plan)[removed_share <= removed_share.min() + 1e-9]
    if len(steps) == 1:
        only: Plan = steps[0]
        return only
    saved = search.cost(plan[None]) - search.cost(steps)
    lost = search.importance_lost(steps) - search.importance_lost(plan[None])
    best: Plan = steps[np.argmin(lost / np.maximum(saved, 1e-12))]
    return best


def uniform(search: PlanSearch, limit: Limit) -> Plan | None:
    """The plan nearest to one ratio for all groups within the limit."""
    return search.descend(limit, nearly_uniform)


def plan_widths(
    costs: LayerCosts, groups: Sequence[Scored], limit: Limit, align: int | None = None, allocate: Allocate = uniform
) -> Planned:
    """Widths within a limit, shared out among the groups by `allocate`.

    Without `align` they are multiples of the first of `ALIGNMENTS` that meets the limit. Raises ConfigError, naming
    the nearest values that can be met, where none does.
    """
    present = float(costs(np.zeros((1, len(groups))))[0])
    if present < limit.low:
        of_what = "of the unpruned network's" if limit.whole != 1 else "in all"
        raise ConfigError(
            f"{limit.key}: the network has only {limit.at(present).shown} {of_what} already, less "
            f"than the {shown(limit.value)} asked for. Ask for less than it has."
        )
    planned, searches = find_widths(costs, groups, limit, align, allocate)
    if planned is None:
        raise ConfigError(_unmet(searches, limit, align))
    return planned


def find_widths(
    costs: LayerCosts, groups: Sequence[Scored], limit: Limit, align: int | None, allocate: Allocate
) -> tuple[Planned | None, list[PlanSearch]]:
    """As `plan_widths`, but None where no plan was found, with all that was searched."""
    searches: list[PlanSearch] = []
    for candidate in (align,) if align else ALIGNMENTS:
        search = PlanSearch(costs, groups, candidate)
        plan = allocate(search, limit)
        if plan is not None:
            fixed = [len(rungs) == 1 for rungs in search.ladders]
            return Planned(search.widths_of(plan), fixed, float(search.cost(plan[None])[0]), candidate), searches
        searches.append(search)
    return None, searches


def _unmet(searches: Sequence[PlanSearch], limit: Limit, align: int | None) -> str:
    """What to say when no plan was found: the nearest values below and above for which one is."""
    seen = sorted(set().union(*(search.seen for search in searches)))
    nearest = []
    for side in ([c for c in reversed(seen) if c < limit.low], [c for c in seen if c > limit.high]):
        for cost in side[:5]:
            other = limit.at(cost)
            if cost < seen[-1] and any(uniform(search, other) is not None for search in searches):
                nearest.append(other.shown)
                break
    widths = f" with widths in multiples of {align}" if align else ""
    smaller = " Or choose a smaller align." if align and align > 1 else ""
    advice = f"; the nearest that can: {' or '.join(nearest)}" if nearest else ". Let more layers be pruned"
    return f"{limit.key}: {shown(limit.value)} cannot be met{widths}{advice}.{smaller}"


def padded(rows: Sequence[Sequence[float]]) -> Floats:
    """Rows of different lengths as one array, the last number of each repeated."""
    longest = max(len(row) for row in rows)
    return np.array([[*row, *[row[-1]] * (longest - len(row))] for row in rows], np.float64)
