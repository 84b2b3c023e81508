"""What the pictures show, ready to draw: points, ranges, ticks, lines, colours. Draws nothing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import compress.report.labels as labels
import compress.report.numbers as numbers
from compress.report.certainty import interval
from compress.report.content import Report
from compress.report.references import published
from compress.report.timing import machine
from compress.row import Row

# Mid-tones that keep a contrast of at least 3 to 1 on white and on near-black.
COLOURS = {
    "teacher": "#8a63c4",
    "baseline": "#74808f",
    "stage": "#3278c4",
    "result": "#14916b",
    "alternative": "#c2701c",
    "other": "#1a8ca0",
    "reference": "#94791b",
}
SYMBOLS = {"alternative": "circle-open", "other": "diamond", "reference": "x-thin"}
MEANING = {
    "teacher": "teacher",
    "baseline": "baseline",
    "stage": "on the way",
    "result": "result",
    "alternative": "alternative, beside the way",
    "other": "result of another run",
    "reference": "published by others",
}
MOST_REFERENCES = 6
Others = Sequence[tuple[str, Report]]  # other runs of the same data, by name
BEFORE = "#c3cad2"
CYCLE = ("#3278c4", "#c2701c", "#14916b", "#8a63c4", "#c24a5a", "#74808f", "#1a8ca0", "#94791b")


@dataclass(frozen=True)
class Point:
    """One net: its role, name, figures, interval (low, high), all as they are drawn."""

    role: str
    name: str
    x: float
    y: float
    low: float
    high: float
    details: tuple[str, ...]

    @property
    def heights(self) -> tuple[float, float, float]:
        """(y, low, high)."""
        return self.y, self.low, self.high


@dataclass(frozen=True)
class Scatter:
    """Accuracy (per cent, linear) against something positive on a logarithmic axis.

    `offsets` say for each point where the middle of its label goes, in pixels to the right and down.
    """

    title: str
    x_title: str
    points: tuple[Point, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    ticks: tuple[float, ...]
    offsets: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Line:
    """One stage's course over its epochs."""

    stage: str
    colour: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


def accuracy_size(report: Report, others: Others = ()) -> Scatter:
    """Top-1 of the file against its megabytes, with what others published where the data set has such."""
    points = _points(report, others, lambda row: row.bytes / 1e6) + _references(report)
    return scatter("Accuracy against size", "File size (MB)", points, _texts(points))


def accuracy_latency(report: Report, others: Others = ()) -> Scatter:
    """Top-1 of the file against its median latency; of other runs those that were timed in the same way."""
    timed = [(name, other) for name, other in others if machine(other) == machine(report)]
    points = _points(report, timed, lambda row: row.latency_ms.p50)
    return scatter("Accuracy against latency", "Median latency (ms)", points, _texts(points))


def front(points: Sequence[Point]) -> list[Point]:
    """The points of this page's own files that none beats in both accuracy and cost, from left to right."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.role != "reference"), key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def pruned(report: Report) -> bool:
    """Whether any layer has fewer channels than it was given."""
    return any(layer.before != layer.after for layer in report.layers)


def exponents(ends: tuple[float, float]) -> list[float]:
    """A range as plotly wants it on a logarithmic axis."""
    return [math.log10(end) for end in ends]


def lines(report: Report, key: str) -> tuple[Line, ...]:
    """The figures under `key` of each stage that has some, epoch by epoch."""
    found = []
    for index, curve in enumerate(report.curves):
        known = [
            (float(record.get("epoch", n)), float(record[key]))
            for n, record in enumerate(curve.records, start=1)
            if not numbers.missing(record.get(key))
        ]
        if known:
            epochs, values = zip(*known, strict=True)
            found.append(Line(curve.stage, CYCLE[index % len(CYCLE)], epochs, values))
    return tuple(found)


def _points(report: Report, others: Others, x_of: Callable[[Row], float]) -> tuple[Point, ...]:
    own = [_point(report.role(row), row.net, row, x_of(row)) for row in (*report.rows, *report.alternatives)]
    return *own, *(_point("other", name, other.result, x_of(other.result)) for name, other in others)


def _references(report: Report) -> tuple[Point, ...]:
    """The published nets that are nearest to the result in size: more would hide it."""
    if report.verdict == "untrained":
        return ()
    size = report.result.bytes
    near = sorted(published(report.data), key=lambda each: abs(math.log(each.bytes / size)))[:MOST_REFERENCES]
    return tuple(
        Point(
            "reference", each.name, each.bytes / 1e6, each.top1, each.top1, each.top1,
            (f"{each.top1:.2f} %", numbers.scaled(each.bytes, "B"), each.source),
        )
        for each in near
    )  # fmt: skip


def _texts(points: Sequence[Point]) -> list[str]:
    return [labels.shortened(point.name) for point in points]


def scatter(title: str, x_title: str, points: tuple[Point, ...], texts: Sequence[str]) -> Scatter:
    """Points with their axes; `texts` are their labels, empty for none. There must be a point."""
    x_range = _wide([point.x for point in points])
    y_range = _tall(points)
    spots = [_spot(point, x_range, y_range) for point in points]
    offsets = labels.place(spots, texts, _rules(points, spots))
    return Scatter(title, x_title, points, x_range, y_range, log_ticks(*x_range), tuple(offsets))


def _rules(points: Sequence[Point], spots: Sequence[labels.Spot]) -> list[labels.Box]:
    """The lines of the front, which goes to the right and then up, as boxes."""
    known = {id(point): spot for point, spot in zip(points, spots, strict=True)}
    ends = [known[id(point)] for point in front(points)]
    found = []
    for (left, lower, *_), (right, upper, *_) in pairwise(ends):
        found += [(left, lower, right, lower), (right, upper, right, lower)]
    return found


def _point(role: str, name: str, row: Row, x: float) -> Point:
    y = row.top1_onnx
    details = (
        numbers.percent(y),
        numbers.scaled(row.bytes, "B"),
        numbers.milliseconds(row.latency_ms.p50),
        f"{numbers.scaled(row.macs)} MACs",
    )
    low, high = interval(row)
    return Point(role, name, max(x, 1e-6), y, min(low, y), max(high, y), details)


def _wide(values: Sequence[float]) -> tuple[float, float]:
    """A logarithmic range with room at both ends; at least a factor of 8, so that two ticks fall inside."""
    low, high = min(values), max(values)
    spread = max(1.0, math.sqrt(8 / (1.35**2 * high / low)))
    return low / 1.35 / spread, high * 1.35 * spread


def _tall(points: Sequence[Point]) -> tuple[float, float]:
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = max(0.5, 0.08 * (high - low))
    return low - margin, high + margin


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values between two positive ends, at most seven of them where that can be had."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = tuple(step * 10.0**n for n in decades for step in steps if low <= step * 10.0**n <= high)
        if len(ticks) <= 7:
            break
    return ticks


def _spot(point: Point, x_range: tuple[float, float], y_range: tuple[float, float]) -> labels.Spot:
    """(x, y, low, high) as fractions of the plot, counted from its upper left corner."""
    across = math.log(point.x / x_range[0]) / math.log(x_range[1] / x_range[0])
    y, low, high = ((y_range[1] - value) / (y_range[1] - y_range[0]) for value in point.heights)
    return across, y, low, high
