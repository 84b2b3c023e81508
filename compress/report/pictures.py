"""The static pictures beside report.md: SVG by matplotlib, the same bytes for the same report."""

import io
import warnings
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

import compress.report.charts as charts
import compress.report.labels as labels
from compress.report.bars import shown_layers
from compress.report.content import Report
from compress.report.layers import Layer
from compress.report.waterfall import COLOURS, Waterfall, waterfalls

LONGEST = 48  # letters of a layer's or a stage's name
INK, RULE = "#27303b", "#e3e7ec"

# Text stays text, so that a reader's own fonts show every script. A dollar sign starts no formula here.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compress",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.dpi": 72,
}


def render(report: Report, others: charts.Others = ()) -> dict[str, str]:
    """SVG text by file name; pictures with nothing to show are left out."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The reader's fonts draw the text; what matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # So many or so long names that no room is left for the plot: the table has them all.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        found = {
            "accuracy-size.svg": _scatter(charts.accuracy_size(report, others)),
            "accuracy-latency.svg": _scatter(charts.accuracy_latency(report, others)),
        }
        if falls := waterfalls(report):
            found["waterfall.svg"] = _waterfalls(falls)
        if charts.pruned(report):
            found["channels.svg"] = _channels(shown_layers(report))
        if any(charts.lines(report, key) for key in ("loss", "accuracy", "val_accuracy")):
            found["curves.svg"] = _curves(report)
        return {name: _svg(figure) for name, figure in found.items()}


def _scatter(scatter: charts.Scatter) -> Figure:
    # Points are pixels at 72 dpi; the axes get the size that the labels were placed for.
    width, height = 560, 380
    plot_width, plot_height = labels.PLOT_WIDTHS[-1], labels.PLOT_HEIGHT
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((70 / width, 75 / height, plot_width / width, plot_height / height))
    axes.set(xscale="log", xlim=scatter.x_range, ylim=scatter.y_range)
    axes.set(title=scatter.title, xlabel=scatter.x_title, ylabel="Top-1 of the file (%)")
    axes.set_xticks(scatter.ticks, [f"{tick:g}" for tick in scatter.ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    front = charts.front(scatter.points)
    line: dict[str, Any] = {"drawstyle": "steps-post", "color": charts.COLOURS["baseline"], "linewidth": 1}
    axes.plot([p.x for p in front], [p.y for p in front], ":", label="Pareto front", **line)
    shown: set[str] = set()
    for point, offset in zip(scatter.points, scatter.offsets, strict=True):
        _point(axes, point, offset, meaning=None if point.role in shown else charts.MEANING[point.role])
        shown.add(point.role)
    figure.legend(loc="lower center", ncols=4, fontsize=9, handletextpad=0.2, columnspacing=1.2)
    return figure


def _point(axes: Any, point: charts.Point, offset: labels.Offset, meaning: str | None) -> None:
    colour = charts.COLOURS[point.role]
    axes.vlines(point.x, point.low, point.high, colors=colour, alpha=0.45, linewidth=1.5)
    face = "white" if point.role == "alternative" else colour
    style = {"color": colour, "markerfacecolor": face, "markersize": 8, "zorder": 3}
    shape = {"other": "D", "reference": "x"}.get(point.role, "o")
    axes.plot(point.x, point.y, shape, label=meaning, **style)
    line = {"arrowstyle": "-", "color": charts.COLOURS["baseline"], "shrinkB": 6}
    axes.annotate(
        labels.shortened(point.name),
        (point.x, point.y),
        xytext=(offset[0], -offset[1]),
        textcoords="offset points",
        ha="center",
        va="center",
        arrowprops=None if labels.touches(offset) else line,
        bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )


def _waterfalls(falls: tuple[Waterfall, ...]) -> Figure:
    # All sizes are known, so nothing has to be laid out: pixels at 72 dpi.
    width, plot_width, left = 720, 200, 125
    steps, rows = len(falls[0].steps), -(-len(falls) // 2)
    plot_height = 24 * steps
    height = rows * (plot_height + 84)
    figure = Figure(figsize=(width / 72, height / 72))
    for i, fall in enumerate(falls):
        x, y = left + (i % 2) * width // 2, height - (i // 2 + 1) * (plot_height + 84) + 50
        axes = figure.add_axes((x / width, y / height, plot_width / width, plot_height / height))
        axes.set(title=fall.title, xlabel=fall.x_title, xlim=fall.x_range, ylim=(steps - 0.4, -0.6))
        axes.set_yticks(range(steps), [labels.shortened(step.name) for step in fall.steps])
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=4)
        _steps(axes, fall)
    return figure


def _steps(axes: Any, fall: Waterfall) -> None:
    for i, step in enumerate(fall.steps):
        low, high = sorted((step.start, step.end))
        axes.barh(i, high - low, left=low, height=0.62, color=COLOURS[step.kind])
        inside = step.kind != "total" and low > sum(fall.x_range) / 2
        place = {"xytext": (-5 if inside else 5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(step.text, (low if inside else high, i), ha="right" if inside else "left", **place)


def _channels(layers: tuple[Layer, ...]) -> Figure:
    count = len(layers)
    height = 80 + 13 * max(4, count)
    figure = Figure(figsize=(8, height / 72), layout="constrained")
    axes = figure.subplots()
    positions = range(count)
    before, after = [layer.before for layer in layers], [layer.after for layer in layers]
    axes.barh(positions, before, height=0.8, color=charts.BEFORE, label="before")
    axes.barh(positions, after, height=0.44, color=charts.COLOURS["stage"], label="after")
    axes.set_yticks(positions, [_short(layer.name) for layer in layers], fontsize=8)
    axes.set_ylim(max(4, count) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="Output channels")
    figure.legend(loc="outside upper center", ncols=2, title="Channels by layer")
    return figure


def _curves(report: Report) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    known: dict[str, Any] = {}
    for line in charts.lines(report, "loss"):
        (known[line.stage],) = left.plot(line.epochs, line.values, ".-", color=line.colour, markersize=4)
    for key, style in (("accuracy", ":"), ("val_accuracy", "-")):
        for line in charts.lines(report, key):
            (known[line.stage],) = right.plot(
                line.epochs, line.values, style, color=line.colour, marker=".", markersize=4
            )
    losses = [value for line in charts.lines(report, "loss") for value in line.values]
    if losses and min(losses) > 0:
        left.set_yscale("log")
        # The usual labels of a logarithmic axis are formulas, which STYLE turns off.
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
    left.set(title="Training loss", xlabel="Epoch")
    right.set(title="Top-1 (%), training dotted", xlabel="Epoch")
    figure.legend(known.values(), map(_short, known), loc="outside lower center", ncols=min(5, len(known)))
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
