"""How wide every coupled group becomes: a search over aligned widths for a number of multiply-accumulates.

Arithmetic on plain arrays. A plan is one integer a group, (groups,): the rung of the group's ladder of widths
on which it stands, 0 being its full width.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, floor, lcm

import numpy as np
from numpy.typing import NDArray

from compress.errors import ConfigError

SLACK = 0.98
ALIGNMENTS = (16, 8, 4, 2, 1)
MAX_REMOVED = 0.9
MAX_EXPANSIONS = 400

Floats = NDArray[np.float64]
Plan = NDArray[np.int64]


@dataclass(frozen=True)
class MacsModel:
    """The MACs of a network as a function of the widths of its coupled groups, exactly.

    Layer l costs `unit_macs`[l]·outputs·inputs/`parts`[l]; its (layers,) `outputs` and `inputs` shrink by
    `output_loss` and `input_loss` (layers, groups) for each channel that a group loses.
    """

    unit_macs: Floats
    outputs: Floats
    inputs: Floats
    parts: Floats
    output_loss: Floats
    input_loss: Floats

    def macs(self, removed: Floats) -> Floats:
        """MACs for one image, (plans,), after removing so many channels from every group, (plans, groups)."""
        outputs = self.outputs - removed @ self.output_loss.T
        inputs = (self.inputs - removed @ self.input_loss.T) / self.parts
        return (outputs * inputs) @ self.unit_macs  # exact: integers far below 2^53


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


@dataclass(frozen=True)
class Planned:
    """The width of every group after pruning, and `fixed`: whether it had no other at this alignment."""

    widths: list[int]
    fixed: list[bool]
    macs: int
    dense_macs: int
    align: int


def plan_widths(
    model: MacsModel,
    groups: Sequence[Scored],
    keep_macs: float,
    dense_macs: int | None = None,
    align: int | None = None,
) -> Planned:
    """Widths with which the network has between 98 and 100 % of `keep_macs`·`dense_macs`, nearly uniform.

    Without `dense_macs` the model's own are meant, without `align` the first of `ALIGNMENTS` that meets the
    target. Raises ConfigError, naming the nearest fractions that can be met, where none does.
    """
    present = int(model.macs(np.zeros((1, len(groups))))[0])
    dense_macs = dense_macs or present
    low, high = _window(keep_macs, dense_macs)
    if present < low:
        raise ConfigError(
            f"keep_macs: the network has only {present / dense_macs:.3f} of the unpruned MACs already, less "
            f"than the {keep_macs:g} asked for. Ask for less than it has."
        )
    searches = []
    for candidate in (align,) if align else ALIGNMENTS:
        search = PlanSearch(model, groups, candidate)
        plan = search.find(low, high)
        if plan is not None:
            widths = [rungs[rung] for rungs, rung in zip(search.ladders, plan, strict=True)]
            fixed = [len(rungs) == 1 for rungs in search.ladders]
            return Planned(widths, fixed, int(search.macs(plan[None])[0]), dense_macs, candidate)
        searches.append(search)
    raise ConfigError(_unmet(searches, keep_macs, dense_macs, align))


def _window(keep_macs: float, dense_macs: int) -> tuple[int, int]:
    return ceil(SLACK * keep_macs * dense_macs), floor(keep_macs * dense_macs)


def _unmet(searches: Sequence["PlanSearch"], keep_macs: float, dense_macs: int, align: int | None) -> str:
    """What to say when no plan was found: the nearest fractions below and above for which one is."""
    low, high = _window(keep_macs, dense_macs)
    seen = sorted(set().union(*(search.seen for search in searches)))
    nearest = []
    for side in ([m for m in reversed(seen) if m < low], [m for m in seen if m > high]):
        for macs in side[:5]:
            share = ceil(10_000 * macs / dense_macs) / 10_000
            if share < 1 and any(search.find(*_window(share, dense_macs)) is not None for search in searches):
                nearest.append(f"{share:.4f}")
                break
    widths = f" with widths in multiples of {align}" if align else ""
    smaller = " Or choose a smaller align." if align and align > 1 else ""
    advice = f"; the nearest that can: {' or '.join(nearest)}" if nearest else ". Let more layers be pruned"
    return f"keep_macs: {keep_macs:g} cannot be met{widths}{advice}.{smaller}"


class PlanSearch:
    """All plans of a network at one alignment.

    `ladders` are the widths that each group may have; `seen` collects the MACs of all plans looked at.
    """

    def __init__(self, model: MacsModel, groups: Sequence[Scored], align: int) -> None:
        self.model = model
        self.ladders = [ladder(group.width, align, group.bundle) for group in groups]
        self.seen: set[int] = set()
        self._last = np.array([len(rungs) - 1 for rungs in self.ladders])
        self._groups = np.arange(len(groups))
        self._widths = _padded(self.ladders)
        self._lost = _padded([g.lost(rungs).tolist() for g, rungs in zip(groups, self.ladders, strict=True)])

    def find(self, low: int, high: int) -> Plan | None:
        """The plan nearest to uniform with low ≤ MACs ≤ high, or None where none was found."""
        plan = np.zeros(len(self.ladders), np.int64)
        while self.macs(plan[None])[0] > high:
            step = self._uniform_step(plan)
            if step is None:
                return None
            plan = step
        return plan if self.macs(plan[None])[0] >= low else self._nearby(plan, low, high)

    def macs(self, plans: Plan) -> Floats:
        """MACs for one image of each plan: (plans, groups) to (plans,)."""
        removed = self._widths[:, 0] - self._widths[self._groups, plans]
        macs = self.model.macs(removed)
        self.seen.update(int(value) for value in macs)
        return macs

    def importance_lost(self, plans: Plan) -> Floats:
        """Importance that each plan removes: (plans, groups) to (plans,)."""
        lost: Floats = self._lost[self._groups, plans].sum(1)
        return lost

    def _uniform_step(self, plan: Plan) -> Plan | None:
        """One group one rung narrower: the group whose next rung is the nearest to a common ratio.

        Of several at the same ratio, the one that loses the least importance for the MACs it saves.
        """
        free = self._groups[plan < self._last]
        if not len(free):
            return None
        between = (self._widths[free, plan[free]] + self._widths[free, plan[free] + 1]) / 2
        removed_share = 1 - between / self._widths[free, 0]
        first = free[removed_share <= removed_share.min() + 1e-9]
        steps = plan + np.eye(len(plan), dtype=np.int64)[first]
        if len(steps) == 1:
            only: Plan = steps[0]
            return only
        saved = self.macs(plan[None]) - self.macs(steps)
        lost = self.importance_lost(steps) - self.importance_lost(plan[None])
        best: Plan = steps[np.argmin(lost / saved)]
        return best

    def _nearby(self, plan: Plan, low: int, high: int) -> Plan | None:
        """Best-first search from `plan` over single rungs up and down, nearest MACs first."""
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
            plans = plans[((plans >= 0) & (plans <= self._last)).all(1)]
            macs = self.macs(plans)
            inside = plans[(macs >= low) & (macs <= high)]
            if len(inside):
                best: Plan = inside[np.argmin(self.importance_lost(inside))]
                return best
            for candidate, distance in zip(plans, np.maximum(low - macs, macs - high), strict=True):
                if candidate.tobytes() not in known:
                    known.add(candidate.tobytes())
                    heapq.heappush(queue, (float(distance), next(order), candidate))
        return None


def _padded(rows: Sequence[Sequence[float]]) -> Floats:
    longest = max(len(row) for row in rows)
    return np.array([[*row, *[row[-1]] * (longest - len(row))] for row in rows], np.float64)
