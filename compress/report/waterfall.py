"""What each stage did to accuracy, bytes, MACs and milliseconds, from the baseline to the result."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import compress.report.numbers as numbers
from compress.report.certainty import same
from compress.report.content import Report
from compress.report.tables import Cells, Table
from compress.row import Row

Kind = Literal["total", "better", "worse", "same"]

COLOURS = {"total": "#74808f", "better": "#14916b", "worse": "#c24a5a", "same": "#74808f"}
HEAD = ("Stage", "Accuracy", "File size", "MACs", "Latency", "Time spent")


@dataclass(frozen=True)
class Step:
    """One bar: from `start` to `end`, what is written beside it, and whether it is for better or worse."""

    name: str
    start: float
    end: float
    text: str
    kind: Kind


@dataclass(frozen=True)
class Waterfall:
    """One quantity along the way: the baseline, what each stage did to it, the result; `x_range` is the axis."""

    key: str
    title: str
    x_title: str
    steps: tuple[Step, ...]
    x_range: tuple[float, float]


@dataclass(frozen=True)
class Quantity:
    """How a quantity is read off a row, in the axis's unit, and written."""

    key: str
    title: str
    x_title: str
    of: Callable[[Row], float]
    shown: Callable[[float], str]
    more_is_better: bool = False


def way(report: Report) -> tuple[Row, ...]:
    """The baseline and what the stages made after it."""
    start = report.rows.index(report.baseline_row)
    return report.rows[start:]


def waterfalls(report: Report) -> tuple[Waterfall, ...]:
    """Each quantity's way; none where there is no stage, and none of accuracy where nothing was trained."""
    rows = way(report)
    if len(rows) < 2:
        return ()
    untrained = report.verdict == "untrained"
    return tuple(_waterfall(report, rows, each) for each in QUANTITIES if not (untrained and each.key == "accuracy"))


def table(report: Report) -> Table:
    """What each stage changed, and what all of them did together; teacher and baseline only took time."""
    rows = way(report)
    dash = numbers.MISSING
    body: list[Cells] = [
        (row.net, dash, dash, dash, dash, numbers.duration(row.seconds))
        for row in report.rows[: report.rows.index(rows[0]) + 1]
    ]
    for before, row in pairwise(rows):
        body.append((row.net, *_changes(report, before, row), numbers.duration(row.seconds)))
    if len(rows) > 2:
        total = numbers.duration(sum(row.seconds for row in report.rows))
        body.append(("all stages", *_changes(report, rows[0], rows[-1]), total))
    return Table("What each stage changed, against the net before it, and the time that it took", HEAD, tuple(body))


def _changes(report: Report, before: Row, row: Row) -> tuple[str, ...]:
    found = []
    for quantity in QUANTITIES:
        change, share = _change(report, quantity, before, row), _share(report, quantity, before, row)
        if quantity.key == "accuracy":
            found.append(numbers.MISSING if report.verdict == "untrained" else f"{change} points")
        else:
            found.append(f"{change} ({share})" if change != share else change)
    return tuple(found)


def _waterfall(report: Report, rows: tuple[Row, ...], quantity: Quantity) -> Waterfall:
    values = [quantity.of(row) for row in rows]
    low, high = min(values), max(values)
    if quantity.key == "accuracy":  # a tenth of a point would not be seen on an axis from 0
        margin = max(0.25 * (high - low), 0.2)
        floor, ceiling = max(low - margin, 0.0), high + 2 * margin
    else:
        floor, ceiling = 0.0, 1.4 * high or 1.0
    steps = [Step(rows[0].net, floor, values[0], quantity.shown(values[0]), "total")]
    for before, row in pairwise(rows):
        start, end = quantity.of(before), quantity.of(row)
        kind: Kind = "better" if (end > start) is quantity.more_is_better else "worse"
        text = _share(report, quantity, before, row)
        steps.append(Step(row.net, start, end, text, "same" if text.startswith("±") else kind))
    steps.append(Step("result", floor, values[-1], quantity.shown(values[-1]), "total"))
    x_title = f"{quantity.x_title}, not from 0" if floor else quantity.x_title
    return Waterfall(quantity.key, quantity.title, x_title, tuple(steps), (floor, ceiling))


def _change(report: Report, quantity: Quantity, before: Row, row: Row) -> str:
    """What became of a quantity in its own unit; what is too small to mean anything is no change."""
    share = _share(report, quantity, before, row)
    value = quantity.of(row) - quantity.of(before)
    return share if share.startswith("±") or quantity.key == "accuracy" else _signed(value, quantity.shown)


def _share(report: Report, quantity: Quantity, before: Row, row: Row) -> str:
    """The change in per cent of what it was, of accuracy in points."""
    was, now = quantity.of(before), quantity.of(row)
    if quantity.key == "accuracy":
        return _signed(round(now - was, 2), lambda points: f"{points:.2f}")
    if quantity.key == "latency" and same(report, was, now):
        return "±0 %"
    # A handful of bytes is no change.
    return _signed(round(100 * (now / was - 1)) if was else 0, lambda share: f"{share:.0f} %")


def _signed(value: float, shown: Callable[[float], str]) -> str:
    text = shown(abs(value))
    return f"±{text}" if value == 0 else f"{'+' if value > 0 else '−'}{text}"


QUANTITIES = (
    Quantity("accuracy", "Accuracy", "Top-1 of the file (%)", lambda row: row.top1_onnx, numbers.percent, True),
    Quantity("bytes", "File size", "MB", lambda row: row.bytes / 1e6, lambda mb: numbers.scaled(1e6 * mb, "B")),
    Quantity(
        "macs", "MACs", "Millions for one image", lambda row: row.macs / 1e6, lambda macs: numbers.scaled(1e6 * macs)
    ),
    Quantity("latency", "Latency", "Median (ms)", lambda row: row.latency_ms.p50, numbers.milliseconds),
)
