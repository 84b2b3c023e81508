"""The interactive charts of report.html, as the plain dictionaries that plotly.js draws."""

import math

import compress.report.bars as bars
import compress.report.charts as charts
import compress.report.labels as labels
from compress.report.axes import Figure, layout, safe
from compress.report.content import Report
from compress.report.waterfall import waterfalls


def figures(report: Report, others: charts.Others = ()) -> dict[str, Figure]:
    """Each chart by the id of the element it is drawn into, in the page's order; empty ones are left out."""
    found = {f"waterfall-{each.key}": bars.waterfall(each) for each in waterfalls(report)}
    found["accuracy-size"] = _scatter(charts.accuracy_size(report, others))
    found["accuracy-latency"] = _scatter(charts.accuracy_latency(report, others))
    layers = bars.shown_layers(report)
    if charts.pruned(report):
        found["channels"] = bars.channels(layers)
    if any(layer.macs_before for layer in layers):
        found["macs"] = bars.macs(layers)
    if any(layer.sensitivity is not None for layer in layers):
        found["sensitivity"] = bars.sensitivity(layers)
    if report.rounding:
        found["rounding"] = bars.rounding(report)
    if report.changes and bars.shown_classes(report.changes):
        found["classes"] = bars.classes(report.changes)
    if report.timings:
        found["latency"] = bars.latency(report)
    return found | _training(report)


def _training(report: Report) -> dict[str, Figure]:
    found = {}
    if charts.lines(report, "loss"):
        found["curves-loss"] = _curves(report, ("loss",), "Training loss", logarithmic=True)
    accuracies = ("accuracy", "val_accuracy")
    if any(charts.lines(report, key) for key in accuracies):
        found["curves-accuracy"] = _curves(report, accuracies, "Top-1 (%)", logarithmic=False)
    return found


def _scatter(scatter: charts.Scatter) -> Figure:
    points = scatter.points
    front = charts.front(points)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [point.x for point in front],
            "y": [point.y for point in front],
            "line": {"color": charts.COLOURS["baseline"], "width": 1, "dash": "dot", "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    traces += [marker(point, charts.COLOURS[point.role], charts.SYMBOLS.get(point.role, "circle")) for point in points]
    chart = scatter_layout(scatter)
    chart["annotations"] = [
        label(point, labels.shortened(point.name), offset)
        for point, offset in zip(points, scatter.offsets, strict=True)
    ]
    return {"data": traces, "layout": chart}


def scatter_layout(scatter: charts.Scatter) -> Figure:
    """The axes of a scatter chart."""
    chart = layout(330)
    chart["xaxis"] |= {
        "type": "log",
        "title": {"text": scatter.x_title},
        "range": charts.exponents(scatter.x_range),
        "tickvals": list(scatter.ticks),
        "ticktext": [f"{tick:g}" for tick in scatter.ticks],
    }
    chart["yaxis"] |= {
        "title": {"text": "Top-1 of the file (%)", "standoff": 12},
        "range": list(scatter.y_range),
        "nticks": 7,
    }
    return chart


def marker(point: charts.Point, colour: str, symbol: str) -> Figure:
    """One net with its interval and what is said of it under the pointer."""
    lines = (f"<b>{safe(point.name)}</b>", *point.details)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [point.x],
        "y": [point.y],
        "marker": {"color": colour, "size": 11, "symbol": symbol, "line": {"color": colour, "width": 2}},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [point.high - point.y],
            "arrayminus": [point.y - point.low],
            "color": _faint(colour),
            "thickness": 1.5,
            "width": 3,
        },
        "hovertext": ["<br>".join(lines)],
        "hoverinfo": "text",
    }


def label(point: charts.Point, text: str, offset: labels.Offset) -> Figure:
    """A point's label, with a line to it where it stands off."""
    # Plotly takes annotations on a logarithmic axis by their exponent.
    place: Figure = {"x": math.log10(point.x), "y": point.y, "text": safe(text)}
    if labels.touches(offset):
        return place | {"showarrow": False, "xshift": offset[0], "yshift": -offset[1]}
    line = {"arrowhead": 0, "arrowwidth": 1, "arrowcolor": charts.COLOURS["baseline"], "standoff": 7}
    return place | {"showarrow": True, "ax": offset[0], "ay": offset[1], **line}


def _curves(report: Report, keys: tuple[str, ...], title: str, *, logarithmic: bool) -> Figure:
    names = {"loss": "training loss", "accuracy": "training", "val_accuracy": "validation"}
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(line.epochs),
            "y": list(line.values),
            "line": {"color": line.colour, "width": 2, "dash": "dot" if key == "accuracy" else "solid"},
            "marker": {"size": 4 if len(line.epochs) > 1 else 8},
            "hovertext": [
                f"{safe(line.stage)}, epoch {epoch:g}<br>{names[key]} {value:.4g}"
                for epoch, value in zip(line.epochs, line.values, strict=True)
            ],
            "hoverinfo": "text",
        }
        for key in keys
        for line in charts.lines(report, key)
    ]
    chart = layout(300)
    lines = [line for key in keys for line in charts.lines(report, key)]
    epochs = [epoch for line in lines for epoch in line.epochs]
    margin = max(0.5, 0.02 * (max(epochs) - min(epochs)))
    chart["xaxis"] |= {"title": {"text": "Epoch"}, "range": [min(epochs) - margin, max(epochs) + margin]}
    if max(epochs) <= 12:
        chart["xaxis"]["dtick"] = 1
    values = [value for line in lines for value in line.values]
    kind = "log" if logarithmic and min(values) > 0 else "linear"
    chart["yaxis"] |= {"title": {"text": title, "standoff": 12}, "type": kind, "nticks": 7}
    ticks = charts.log_ticks(min(values), max(values)) if kind == "log" else ()
    if len(ticks) >= 2:
        chart["yaxis"] |= {"tickvals": list(ticks), "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"data": traces, "layout": chart}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.45)"
