"""Which rank every layer gets: the least energy lost for a given number of multiply-accumulates.

Each layer has a few ranks to choose from, costs and losses add up, and so this is the multiple-choice knapsack problem.
It is solved by dynamic programming over the layers, exactly but for the width of a bucket of costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from compress.pruning.costs import Floats
from compress.pruning.plan import MAX_REMOVED, Limit

BUCKETS = 5000  # of the present cost; of all that fall into one bucket, only the plan that loses least is followed


@dataclass(frozen=True)
class Options:
    """What a layer may become: its `ranks`, 0 for as it is, with the `macs` and the loss of each, (options,).

    The loss is -log of the share of the squared singular values that is kept: the sum over layers is smallest where the
    product of the shares is largest (Zhang et al. 2016, arXiv:1505.06798, rank selection for the whole model).
    """

    ranks: tuple[int, ...]
    macs: Floats
    lost: Floats


def rank_options(outputs: int, inputs: int, positions: int, energy: Floats, align: int) -> Options:
    """The ranks of an (outputs, inputs) matrix, applied `positions` times, that cost less than the matrix itself.

    They are multiples of `align`; none is below a tenth of the full rank, as in channel pruning. `energy` are the
    squared singular values, largest first, (full rank,).
    """
    full = min(outputs, inputs)
    last = (outputs * inputs - 1) // (outputs + inputs)  # rank·(outputs + inputs) < outputs·inputs
    first = max(align, ceil(ceil(full * (1 - MAX_REMOVED)) / align) * align)
    ranks = np.arange(first, last + 1, align, dtype=np.int64)
    kept = np.minimum(np.cumsum(energy)[ranks - 1] / energy.sum(), 1) if energy.any() else np.ones(len(ranks))
    macs = np.concatenate([[outputs * inputs], ranks * (outputs + inputs)]) * float(positions)
    return Options((0, *ranks.tolist()), macs, np.concatenate([[0.0], -np.log(kept)]))


class RankSearch:
    """All plans of a network: which costs can be reached, and with which ranks.

    `rest` are the multiply-accumulates of the layers that stay as they are.
    """

    def __init__(self, layers: Sequence[Options], rest: float) -> None:
        self.layers = layers
        self.present = rest + sum(float(options.macs[0]) for options in layers)
        costs, lost = np.array([float(rest)]), np.zeros(1)
        self._steps: list[NDArray[np.int64]] = []
        for options in layers:
            costs, lost, step = _added(costs, lost, options, self.present / BUCKETS)
            self._steps.append(step)
        self.costs, self._lost = costs, lost

    def best(self, limit: Limit) -> list[int] | None:
        """The ranks within the limit that lose least, 0 for a layer as it is; None where there are none."""
        inside = np.flatnonzero((self.costs >= limit.low) & (self.costs <= limit.high))
        if not len(inside):
            return None
        state, ranks = int(inside[np.argmin(self._lost[inside])]), []
        for options, step in zip(reversed(self.layers), reversed(self._steps), strict=True):
            state, choice = divmod(int(step[state]), len(options.ranks))
            ranks.append(options.ranks[choice])
        return ranks[::-1]

    def beside(self, limit: Limit) -> list[float]:
        """The nearest costs below and above the limit that are reached by factorising anything."""
        below = self.costs[self.costs < limit.low]
        above = self.costs[(self.costs > limit.high) & (self.costs < self.present)]
        return [*below[-1:].tolist(), *above[:1].tolist()]


def _added(costs: Floats, lost: Floats, options: Options, bucket: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Every plan so far with every option of one more layer; in each bucket of costs the one that loses least.

    The last result says where each came from: plan · options + option. Costs come out sorted.
    """
    sums = (costs[:, None] + options.macs).ravel()
    losses = (lost[:, None] + options.lost).ravel()
    place = np.floor(sums / bucket)
    order = np.lexsort((losses, place))
    best = order[np.concatenate([[True], np.diff(place[order]) > 0])]
    return sums[best], losses[best], best
