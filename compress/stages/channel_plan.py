"""How wide every coupled group becomes: a search over aligned widths for a number of multiply-accumulates.

Arithmetic on plain arrays. A plan is one integer a group, (groups,): the rung of the group's ladder of widths
on which it stands, 0 being its full width.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import ceil, lcm

import numpy as np
from numpy.typing import NDArray

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


@dataclass
class PlanSearch:
    """All plans of a network at one alignment.

    `ladders` are the widths a group may have, `lost` the importance that is lost on each rung, both a
    sequence of rungs for each group; `seen` collects the MACs of all plans that were looked at.
    """

    model: MacsModel
    ladders: Sequence[Sequence[int]]
    lost: Sequence[Sequence[float]]
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._last = np.array([len(rungs) - 1 for rungs in self.ladders])
        self._groups = np.arange(len(self.ladders))
        self._widths = _padded(self.ladders)
        self._lost = _padded(self.lost)

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
            return steps[0]
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
