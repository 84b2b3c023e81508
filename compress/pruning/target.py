"""What a pruned network may cost, in the units that users have: shares, bytes, milliseconds.

Bytes and milliseconds are those of the file that the pipeline ends with. They are predicted, then measured on such a
file, and the prediction is corrected until the measurement is within the limit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

import compress.pruning.costs as costs
import compress.pruning.latency as latency
from compress.errors import ConfigError
from compress.pruning.channels import Prunable
from compress.pruning.costs import LayerCosts
from compress.pruning.latency import Sample
from compress.pruning.plan import ALIGNMENTS, Allocate, Limit, Planned, find_widths, plan_widths, shown, uniform

ATTEMPTS = 12
NUDGE = 0.01
WIDEST = 0.3  # band about a predicted cost in which plans are looked for
TOLERANCE = 0.95  # of the limit: a file within 5 % of it meets it
PROBES = (0.75, 0.5, 0.3)  # shares of the MACs at which layers are measured


@dataclass(frozen=True)
class Measured:
    """A plan whose file was measured: `value` in the unit of its limit."""

    planned: Planned
    value: float


@dataclass
class Target:
    """A limit on what the file of the pruned network costs, and how to predict and measure it.

    `measure` gives the cost of the network with these widths; with None the prediction has to do. What is measured
    meets the limit from `tolerance` of it on.
    """

    limit: Limit
    costs: LayerCosts
    measure: Callable[[list[int]], float] | None = None
    tolerance: float = TOLERANCE
    notes: list[str] = field(default_factory=list)

    def plan(self, prunable: Prunable, align: int | None, allocate: Allocate = uniform) -> Measured:
        """Widths that meet the limit, measured if that can be; raises ConfigError where none do."""
        if self.measure is None:
            planned = plan_widths(self.costs, prunable.scored, self.limit, align, allocate)
            return Measured(planned, planned.cost)
        present = float(self.costs(np.zeros((1, len(prunable.groups))))[0])
        aim = self.limit.high * (1 + self.tolerance) / 2
        tried: dict[tuple[int, ...], Measured] = {}
        predicted = aim
        for _ in range(ATTEMPTS):
            planned = self._planned(prunable, align, allocate, predicted)
            known = tried.get(tuple(planned.widths))
            if known is not None:  # widths come in steps, and this step leads nowhere new
                predicted *= 1 - NUDGE if known.value > aim else 1 + NUDGE
                continue
            found = tried[tuple(planned.widths)] = Measured(planned, self.measure(planned.widths))
            if self.tolerance * self.limit.high <= found.value <= self.limit.high:
                break
            predicted = prediction_for(aim, [(0.0, 0.0), (present, present), *_pairs(tried.values())])
        best = min(tried.values(), key=lambda each: abs(each.value - aim))
        self._judge(best)
        return best

    def _planned(self, prunable: Prunable, align: int | None, allocate: Allocate, predicted: float) -> Planned:
        """A plan of about this predicted cost; where widths are too coarse for that, somewhat further from it."""
        band = 0.4 * (1 - self.tolerance)
        while band < WIDEST:
            high, low = predicted * (1 + band / 2), predicted * (1 - band / 2)
            wanted = Limit(self.limit.key, high / self.limit.whole, self.limit.whole, low / high)
            # Another alignment than the first is a coarser remedy than another cost.
            planned, _ = find_widths(self.costs, prunable.scored, wanted, align or ALIGNMENTS[0], allocate)
            if planned is not None:
                return planned
            band *= 2
        return plan_widths(self.costs, prunable.scored, self.limit, align, allocate)

    def _judge(self, best: Measured) -> None:
        key, asked, got = self.limit.key, shown(self.limit.value), shown(best.value / self.limit.whole)
        if best.value > self.limit.high / TOLERANCE or (self.tolerance > TOLERANCE and best.value > self.limit.high):
            raise ConfigError(
                f"{key}: {asked} cannot be met; the nearest plan's file has {got} by measurement. "
                "Ask for more, or let more layers be pruned."
            )
        self.notes.append(f"{key} {asked}: the file of the planned widths has {got} by measurement.")


def _pairs(tried: Iterable[Measured]) -> list[tuple[float, float]]:
    return [(each.planned.cost, each.value) for each in tried]


def prediction_for(aim: float, pairs: Sequence[tuple[float, float]]) -> float:
    """The prediction at which `aim` would be measured: on the line between the nearest (predicted, measured) about it.

    Raises ValueError without a pair on either side.
    """
    below = max((pair for pair in pairs if pair[1] <= aim), key=lambda pair: pair[1])
    above = min((pair for pair in pairs if pair[1] > aim), key=lambda pair: pair[1])
    return below[0] + (aim - below[1]) / (above[1] - below[1]) * (above[0] - below[0])


def probes(prunable: Prunable, align: int | None) -> Iterator[list[int]]:
    """Widths at which layers are measured for a latency model: as they are, and evenly narrower ones, aligned."""
    whole = float(prunable.macs(np.zeros((1, len(prunable.groups))))[0])
    yield [group.width for group in prunable.groups]
    for share in PROBES:
        try:
            yield plan_widths(prunable.macs, prunable.scored, Limit("keep_macs", share, whole, 0.9), align).widths
        except ConfigError:
            continue  # a narrow network has fewer widths to try


def latency_costs(prunable: Prunable, measured: list[Sample]) -> LayerCosts:
    """Milliseconds of the network as a function of its widths, fitted to measured layers."""
    elements = costs.elements(prunable.module, prunable.positions, prunable.groups)
    return latency.fitted(prunable.macs, elements, measured)
