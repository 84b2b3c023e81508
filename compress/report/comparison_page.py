"""The page, the tables and the charts of a comparison."""

import json
from collections.abc import Callable
from dataclasses import asdict

import compress.report.charts as charts
import compress.report.labels as labels
import compress.report.numbers as numbers
import compress.report.page as page
import compress.report.plots as plots
from compress.report.axes import Figure
from compress.report.comparison import Comparison, Entry, Run
from compress.report.tables import Cells, Table

TEMPLATE = "comparison.html.j2"
SYMBOLS = {"teacher": "diamond", "baseline": "square", "alternative": "circle-open"}
SHAPES = (("◆", "teacher"), ("■", "baseline"), ("●", "student"), ("○", "alternative"))
LABELLED = 10  # labels that a picture has room for
RUNS_HEAD = (
    "Run",
    "Verdict",
    "Teacher",
    "Teacher's",
    "Student",
    "Alone",
    "Distilled",
    "Gain",
    "Result",
    "Top-1",
    "Gain in all",
)
NETS_HEAD = (
    "Net",
    "Role",
    "Top-1",
    "95 %",
    "Gain",
    "Teacher's",
    "Parameters",
    "MACs",
    "File size",
    "Latency",
    "Front",
)
# Which columns hold figures.
RUNS_NUMERIC, NETS_NUMERIC = (3, 5, 6, 7, 9, 10), (2, 3, 4, 5, 6, 7, 8, 9)
NOTES = (
    "Gains are points of top-1 against the run's own baseline, the same student trained alone. A gain that is small "
    "beside the 95 % intervals (Wilson) may be chance.",
    "A net is on a front if none that can be compared with it is at least as good in accuracy and in size (or median "
    "latency), and better in one. Latencies within 2 % count as equal.",
    "A run's own files took turns when they were timed, those of different runs did not: small differences between "
    "runs may be the machine's mood. compress benchmark times any files in turns.",
)
NOT_TIMED = "*"


def render(comparison: Comparison) -> str:
    """The text of the page."""
    drawn = {entry.run for entry in _drawn(comparison)}
    marked = [entry.smallest or entry.fastest for entry in comparison.entries]
    return page.render(
        TEMPLATE,
        figures(comparison),
        comparison=comparison,
        runs=(runs(comparison), RUNS_NUMERIC, [False] * len(comparison.runs)),
        nets=(nets(comparison), NETS_NUMERIC, marked),
        legend=[(colour, run) for run, colour in _colours(comparison).items() if run in drawn],
        shapes=SHAPES,
        notes=NOTES,
    )


def runs(comparison: Comparison) -> Table:
    """A line for each run: its teacher, its student alone, distilled and at the end."""
    return Table("What each teacher made of its student", RUNS_HEAD, tuple(map(_run, comparison.runs)))


def nets(comparison: Comparison) -> Table:
    """A line for each net of all runs."""
    caption = "Every net: top-1, size and median latency of its own ONNX file"
    if not all(entry.timed for entry in comparison.entries):
        caption += f". {NOT_TIMED} not measured in the same way as the others: cannot be compared"
    return Table(caption, NETS_HEAD, tuple(map(_net, comparison.entries)))


def as_json(comparison: Comparison) -> str:
    """The comparison for machines, in ASCII: it may be printed to a terminal."""
    return json.dumps(asdict(comparison), indent=2, allow_nan=False)


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Each chart by the id of its element: all nets that can be compared, or all where none can."""
    drawn = _drawn(comparison)
    timed = [entry for entry in drawn if entry.timed]
    colours = _colours(comparison)
    found = {"accuracy-size": _scatter(drawn, colours, "File size (MB)", lambda e: e.bytes / 1e6, lambda e: e.smallest)}
    if timed:
        found["accuracy-latency"] = _scatter(
            timed, colours, "Median latency (ms)", lambda e: e.latency_ms, lambda e: e.fastest
        )
    return found


def _drawn(comparison: Comparison) -> list[Entry]:
    return [entry for entry in comparison.entries if entry.comparable] or list(comparison.entries)


def _run(run: Run) -> Cells:
    return (
        run.run,
        run.verdict,
        run.teacher_model or run.teacher or "none",
        numbers.percent(run.teacher_top1),
        run.student_model or numbers.MISSING,
        numbers.percent(run.baseline_top1),
        numbers.percent(run.distilled_top1),
        _gain(run.distilled_gain),
        run.result,
        numbers.percent(run.result_top1),
        _gain(run.result_gain),
    )


def _net(entry: Entry) -> Cells:
    fronts = ", ".join(word for word, on in (("size", entry.smallest), ("latency", entry.fastest)) if on)
    return (
        entry.label,
        f"{entry.role}, {'int8' if entry.int8 else 'float'}",
        numbers.percent(entry.top1),
        numbers.interval(entry.low, entry.high),
        _gain(entry.gain),
        numbers.percent(entry.teacher_top1),
        numbers.scaled(entry.params),
        numbers.scaled(entry.macs),
        numbers.scaled(entry.bytes, "B"),
        numbers.milliseconds(entry.latency_ms) + ("" if entry.timed else f" {NOT_TIMED}"),
        (fronts or numbers.MISSING) if entry.comparable else "not comparable",
    )


def _gain(points: float | None) -> str:
    if points is None:
        return numbers.MISSING
    rounded = round(points, 2)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else '±'}{abs(rounded):.2f}"


def _colours(comparison: Comparison) -> dict[str, str]:
    return {run.run: charts.CYCLE[i % len(charts.CYCLE)] for i, run in enumerate(comparison.runs)}


def _scatter(
    entries: list[Entry],
    colours: dict[str, str],
    x_title: str,
    x_of: Callable[[Entry], float],
    on_front: Callable[[Entry], bool],
) -> Figure:
    points = tuple(_point(entry, x_of(entry)) for entry in entries)
    # The colour tells the run; where the front is crowded the pointer tells the rest, and the table.
    named = sum(map(on_front, entries)) <= LABELLED
    texts = [labels.shortened(entry.net) if named and on_front(entry) else "" for entry in entries]
    scatter = charts.scatter("", x_title, points, texts)
    steps = sorted((point.x, point.y) for entry, point in zip(entries, points, strict=True) if on_front(entry))
    line: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in steps],
        "y": [y for _, y in steps],
        "line": {"color": charts.COLOURS["baseline"], "width": 1.5, "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
    }
    traces = [
        plots.marker(point, colours[entry.run], SYMBOLS.get(entry.role, "circle"))
        for entry, point in zip(entries, points, strict=True)
    ]
    layout = plots.scatter_layout(scatter)
    layout["annotations"] = [
        plots.label(point, text, offset)
        for point, text, offset in zip(points, texts, scatter.offsets, strict=True)
        if text
    ]
    return {"data": [line, *traces], "layout": layout}


def _point(entry: Entry, x: float) -> charts.Point:
    details = (
        entry.role,
        numbers.percent(entry.top1),
        numbers.scaled(entry.bytes, "B"),
        numbers.milliseconds(entry.latency_ms),
        f"{numbers.scaled(entry.macs)} MACs",
    )
    low, high = min(entry.low, entry.top1), max(entry.high, entry.top1)
    return charts.Point(entry.role, entry.label, max(x, 1e-6), entry.top1, low, high, details)
