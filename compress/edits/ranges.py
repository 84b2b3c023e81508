"""From what was seen of an activation to the range that its integers cover.

An estimator is a frozen object that is called with `Seen` and gives (minimum, maximum). `MovingRange` does the same
while a net is trained, batch by batch.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.edits.rounding import in_memory_order

BINS = 2048
FRACTIONS = np.linspace(1.0, 0.3, 71)
THRESHOLD_STEP = 8  # bins between two thresholds that `kl` tries
UNSEEN = 1e-6  # of all counts are spread evenly, so that a bin that was never met is unlikely, not impossible


@dataclass(frozen=True)
class Seen:
    """What passed one quantizer during calibration.

    `histogram` counts values other than 0 in equal bins between `low` ≤ 0 and `high` ≥ 0, `count` counts all values.
    `batches` are the extremes (minimum, maximum) of each batch, in order. The integers are `smallest` to `largest`;
    `symmetric` ones have zero point 0.
    """

    histogram: np.ndarray
    low: float
    high: float
    count: float
    batches: tuple[tuple[float, float], ...] = ()
    symmetric: bool = False
    smallest: int = 0
    largest: int = 255

    @property
    def width(self) -> float:
        """Of one bin."""
        return (self.high - self.low) / len(self.histogram)

    @property
    def centres(self) -> np.ndarray:
        """Of the bins."""
        return self.low + self.width * (np.arange(len(self.histogram)) + 0.5)

    @property
    def furthest(self) -> float:
        """The largest distance from 0."""
        return max(-self.low, self.high)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to choose: no width, or only zeros."""
        return self.high <= self.low or not self.histogram.any()


class Estimator(Protocol):
    """Chooses the range of one quantizer, (minimum, maximum), minimum ≤ 0 ≤ maximum."""

    name: ClassVar[str]

    def __call__(self, seen: Seen) -> tuple[float, float]: ...


class MinMax(Config):
    """Everything that was seen (Jacob et al. 2018, arXiv:1712.05877, sec. 3)."""

    name: ClassVar[str] = "min_max"

    def __call__(self, seen: Seen) -> tuple[float, float]:
        return seen.low, seen.high


class MovingAverage(Config):
    """Averages of the batches' extremes, each weighing `momentum` of the next (Jacob et al. 2018, sec. 3.1)."""

    name: ClassVar[str] = "moving_average"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def __call__(self, seen: Seen) -> tuple[float, float]:
        if not seen.batches:
            return seen.low, seen.high
        average = np.array(seen.batches[0])
        for extremes in seen.batches[1:]:
            average = self.momentum * average + (1 - self.momentum) * np.array(extremes)
        return min(float(average[0]), 0.0), max(float(average[1]), 0.0)


class Percentile(Config):
    """All but the outermost values of each side (Wu et al. 2020, arXiv:2004.09602, sec. 5).

    At most 100 - `percentile` per cent of all values, zeros among them, lie below the range, and as many above; of a
    symmetric quantizer, outside. Inside a bin values count as evenly spread.
    """

    name: ClassVar[str] = "percentile"
    percentile: Annotated[float, Field(ge=50, le=100)] = 99.99

    def __call__(self, seen: Seen) -> tuple[float, float]:
        if seen.empty:
            return seen.low, seen.high
        outside = (1 - self.percentile / 100) * seen.count
        edges = np.linspace(seen.low, seen.high, len(seen.histogram) + 1)
        below = np.concatenate([[0.0], np.cumsum(seen.histogram)])
        if seen.symmetric:
            furthest = _distance_leaving(outside, edges, below, seen.furthest)
            return -furthest, furthest
        above = below[-1] - below
        low = float(np.interp(outside, below, edges))
        high = float(np.interp(outside, above[::-1], edges[::-1]))
        # Where fewer values than may be cut are not zero, nothing would be left: then nothing is cut.
        low, high = min(low, 0.0), max(high, 0.0)
        return (low, high) if high > low else (seen.low, seen.high)


class Mse(Config):
    """The part of the range that rounds what was seen with the least squared error.

    Tried are the extremes times 1.00, 0.99 … 0.30 (Krishnamoorthi 2018, arXiv:1806.08342, sec. 3.3; the criterion of
    Banner et al. 2019, arXiv:1810.05723, eq. 2, evaluated on the histogram instead of a fitted density).
    """

    name: ClassVar[str] = "mse"

    def __call__(self, seen: Seen) -> tuple[float, float]:
        if seen.empty:
            return seen.low, seen.high
        low, high = (-seen.furthest, seen.furthest) if seen.symmetric else (seen.low, seen.high)
        values = seen.centres
        errors = []
        for fraction in FRACTIONS:
            scale, zero_point = _grid(seen, low, high, fraction)
            whole = np.clip(np.round(values / scale) + zero_point, seen.smallest, seen.largest)
            rounded = (whole - zero_point) * scale
            # Inside a bin as wide as a step the centre tells nothing; step²/12 is the error of an even spread.
            inside = np.clip(values, fraction * low, fraction * high) == values
            errors.append(seen.histogram @ np.where(inside, scale**2 / 12, (values - rounded) ** 2))
        fraction = FRACTIONS[int(np.argmin(errors))]
        return float(fraction * low), float(fraction * high)


class Kl(Config):
    """The part of the range whose rounded distribution tells most of the real one (Migacz 2017, GTC talk S7310).

    For thresholds t, P is the histogram cut to [-t, t] with what lies outside added to its outermost bins, and Q the
    cut histogram as integers tell it: the counts of each integer, spread evenly over its bins that are not empty. Least
    KL(P‖Q) wins. Each integer's bins are those that the quantizer would round to it, so that one- and two-sided values
    get all the levels they would have. From KL is taken what chance alone makes it, half a bin's worth for each degree
    of freedom (Miller 1955), or a few hundred values would be cut for being few.
    """

    name: ClassVar[str] = "kl"

    def __call__(self, seen: Seen) -> tuple[float, float]:
        if seen.empty:
            return seen.low, seen.high
        tried = np.arange(seen.furthest, 0, -THRESHOLD_STEP * seen.width)
        ranges = [self._range(seen, float(threshold)) for threshold in tried]
        # Below one bin a level P and Q are the same by construction, and only what is cut would count.
        fine = [pair for pair in ranges if pair[1] - pair[0] >= (seen.largest - seen.smallest + 1) * seen.width]
        divergences = [self._divergence(seen, *pair) for pair in fine]
        return fine[int(np.argmin(divergences))] if fine else ranges[0]

    def _range(self, seen: Seen, threshold: float) -> tuple[float, float]:
        if seen.symmetric:
            return -threshold, threshold
        return max(seen.low, -threshold), min(seen.high, threshold)

    def _divergence(self, seen: Seen, low: float, high: float) -> float:
        """KL(P‖Q) for one range, in nats."""
        scale, zero_point = _grid(seen, low, high)
        values, total = seen.centres, seen.histogram.sum()
        kept = np.flatnonzero((values >= low) & (values <= high))
        p = seen.histogram[kept].copy()
        inner = p.copy()
        p[0] += seen.histogram[: kept[0]].sum()
        p[-1] += seen.histogram[kept[-1] + 1 :].sum()
        whole = np.round(values[kept] / scale) + zero_point
        integer = np.clip(whole, seen.smallest, seen.largest).astype(int) - seen.smallest
        filled = p > 0
        in_integer, bins = np.bincount(integer, inner), np.bincount(integer, filled)
        q = np.where(filled, (in_integer / np.maximum(bins, 1))[integer], 0.0)[filled]
        p = p[filled] / total
        q = (1 - UNSEEN) * q / max(q.sum(), 1.0) + UNSEEN / len(q)
        by_chance = (len(p) - np.count_nonzero(bins)) / (2 * total)
        return float(p @ np.log(p / q) - by_chance)


class Dynamic(Config):
    """Ranges taken from each batch by the runtime itself, as ONNX's DynamicQuantizeLinear does (ONNX 1.6, 2019).

    Nothing is calibrated, and no estimator is called. Slow for convolutions.
    """

    name: ClassVar[str] = "dynamic"


ESTIMATORS: dict[str, type[Estimator]] = {kind.name: kind for kind in (MinMax, MovingAverage, Percentile, Mse, Kl)}
RANGES: dict[str, type[Estimator | Dynamic]] = {**ESTIMATORS, Dynamic.name: Dynamic}


def _grid(seen: Seen, low: float, high: float, fraction: float = 1.0) -> tuple[float, int]:
    """Scale and zero point of a range, or of a fraction of it."""
    if seen.symmetric:
        return fraction * high / seen.largest, 0
    scale = fraction * (high - low) / (seen.largest - seen.smallest)
    return scale, round(-fraction * low / scale) + seen.smallest


def _distance_leaving(outside: float, edges: np.ndarray, below: np.ndarray, furthest: float) -> float:
    """The distance t from 0 beyond which `outside` values lie, both sides together."""
    distances = np.unique(np.abs(np.concatenate([edges, [0.0]])))
    above = below[-1] - below
    # Beyond the ends of the histogram interpolation keeps the end's value, which is none left.
    left = np.interp(-distances, edges, below) + np.interp(distances, edges, above)
    return float(np.interp(outside, left[::-1], distances[::-1])) or furthest


class Grid(Protocol):
    """What this module needs of a quantizer."""

    scale: Tensor
    zero_point: Tensor
    low: float
    high: float
    smallest: int
    largest: int
    symmetric: bool

    def set_range(self, minimum: float, maximum: float) -> None: ...


class MovingRange(nn.Module):
    """Lets a quantizer's range follow the batches of training, by moving averages of their extremes.

    Jacob et al. 2018 (arXiv:1712.05877, sec. 3.1): m ← momentum·m + (1 - momentum)·extreme, from the range that the
    quantizer has when this is made. Once `frozen` nothing changes any more. Extremes that are not finite are passed
    over. Nothing of this is saved: what stays are the quantizer's scale and zero point.
    """

    def __init__(self, quantizer: Grid, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum, self.frozen = momentum, False
        scale, zero_point = quantizer.scale.item(), int(quantizer.zero_point)
        self.minimum = (quantizer.smallest - zero_point) * scale
        self.maximum = (quantizer.largest - zero_point) * scale

    @torch.no_grad()
    def forward(self, x: Tensor, quantizer: Grid) -> None:
        """See the values of one batch, of any shape, before they are rounded."""
        if self.frozen:
            return
        # Two numbers read back cost a CPU less than arithmetic on tensors of one element, and a GPU one wait.
        low, high = torch.stack(torch.aminmax(in_memory_order(x.detach()))).tolist()
        if math.isfinite(low):
            self.minimum += (1 - self.momentum) * (low - self.minimum)
        if math.isfinite(high):
            self.maximum += (1 - self.momentum) * (high - self.maximum)
        quantizer.set_range(self.minimum, self.maximum)


def within_bounds(scale: Tensor, zero_point: Tensor, quantizer: Grid) -> Tensor:
    """The scale, or the largest one with which neither end of the range passes the quantizer's `low` and `high`.

    By float32's last digit 255·(6/255) exceeds 6; a runtime then keeps the clip, and the convolution in float.
    """
    for bound, end in ((quantizer.high, quantizer.largest), (quantizer.low, quantizer.smallest)):
        # A bound of 0 is kept by the zero point, which is then the grid's own end.
        if bound and abs(bound) != float("inf") and not quantizer.symmetric:
            steps = (end - zero_point).double()
            largest = torch.nextafter((bound / steps).float(), torch.zeros_like(scale))
            scale = torch.where((steps * scale / bound) > 1, largest, scale)
    return scale
