"""The interactive charts of report.html, as the plain dictionaries that plotly.js draws."""

import math
from html import escape
from typing import Any

import compress.report.charts as charts
import compress.report.labels as labels
from compress.report.content import Report

Figure = dict[str, Any]

# Text and rules get their colours from the style sheet, so that dark mode and print need no second drawing.
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12}
BAR_HEIGHT = 16


def figures(report: Report) -> dict[str, Figure]:
    """Each chart by the id of the element it is drawn into; those with nothing to show are left out."""
    found = {
        "accuracy-size": _scatter(charts.accuracy_size(report)),
        "accuracy-latency": _scatter(charts.accuracy_latency(report)),
    }
    if report.layers:
        found["channels"] = _channels(report)
    if charts.lines(report, "loss"):
        found["curves-loss"] = _curves(report, ("loss",), "Training loss", logarithmic=True)
    accuracies = ("accuracy", "val_accuracy")
    if any(charts.lines(report, key) for key in accuracies):
        found["curves-accuracy"] = _curves(report, accuracies, "Top-1 (%)", logarithmic=False)
    return found


def _scatter(scatter: charts.Scatter) -> Figure:
    points = scatter.points
    way = [point for point in points if point.role not in ("teacher", "alternative")]
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [point.x for point in way],
            "y": [point.y for point in way],
            "line": {"color": charts.COLOURS["baseline"], "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for point in points:
        symbol = "circle-open" if point.role == "alternative" else "circle"
        traces.append(marker(point, charts.COLOURS[point.role], symbol))
    layout = scatter_layout(scatter)
    layout["annotations"] = [
        label(point, labels.shortened(point.name), offset)
        for point, offset in zip(points, scatter.offsets, strict=True)
    ]
    return {"data": traces, "layout": layout}


def scatter_layout(scatter: charts.Scatter) -> Figure:
    """The axes of a scatter chart."""
    layout = _layout(330)
    layout["xaxis"] |= {
        "type": "log",
        "title": {"text": scatter.x_title},
        "range": [math.log10(end) for end in scatter.x_range],
        "tickvals": list(scatter.ticks),
        "ticktext": [f"{tick:g}" for tick in scatter.ticks],
    }
    layout["yaxis"] |= {
        "title": {"text": "Top-1 of the file (%)", "standoff": 12},
        "range": list(scatter.y_range),
        "nticks": 7,
    }
    return layout


def marker(point: charts.Point, colour: str, symbol: str) -> Figure:
    """One net with its interval and what is said of it under the pointer."""
    lines = (f"<b>{_safe(point.name)}</b>", *point.details)
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
    place: Figure = {"x": math.log10(point.x), "y": point.y, "text": _safe(text)}
    if labels.touches(offset):
        return place | {"showarrow": False, "xshift": offset[0], "yshift": -offset[1]}
    line = {"arrowhead": 0, "arrowwidth": 1, "arrowcolor": charts.COLOURS["baseline"], "standoff": 7}
    return place | {"showarrow": True, "ax": offset[0], "ay": offset[1], **line}


def _channels(report: Report) -> Figure:
    names = [_safe(layer.name) for layer in report.layers]
    hover = [f"{_safe(layer.name)}<br>{layer.before:,} → {layer.after:,}" for layer in report.layers]
    common = {"type": "bar", "orientation": "h", "y": names, "hovertext": hover, "hoverinfo": "text"}
    before = common | {
        "x": [layer.before for layer in report.layers],
        "marker": {"color": charts.BEFORE},
        "width": 0.8,
    }
    after = common | {
        "x": [layer.after for layer in report.layers],
        "marker": {"color": charts.COLOURS["stage"]},
        "width": 0.44,
    }
    layout = _layout(70 + BAR_HEIGHT * max(4, len(names)))
    layout |= {"barmode": "overlay", "hovermode": "y"}
    layout["xaxis"] |= {"title": {"text": "Output channels"}, "rangemode": "tozero"}
    layout["yaxis"] |= {
        "type": "category",
        "autorange": "reversed",
        "tickvals": names,
        "tickfont": {"size": 10},
        "showgrid": False,
        "ticklabelstandoff": 4,
    }
    return {"data": [before, after], "layout": layout}


def _curves(report: Report, keys: tuple[str, ...], title: str, *, logarithmic: bool) -> Figure:
    names = {"loss": "training loss", "accuracy": "training", "val_accuracy": "validation"}
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(line.epochs),
            "y": list(line.values),
            "line": {"color": line.colour, "width": 2, "dash": "dot" if key == "accuracy" else "solid"},
            "marker": {"size": 4},
            "hovertext": [
                f"{_safe(line.stage)}, epoch {epoch:g}<br>{names[key]} {value:.4g}"
                for epoch, value in zip(line.epochs, line.values, strict=True)
            ],
            "hoverinfo": "text",
        }
        for key in keys
        for line in charts.lines(report, key)
    ]
    layout = _layout(300)
    layout["xaxis"] |= {"title": {"text": "Epoch"}, "rangemode": "tozero"}
    lines = [line for key in keys for line in charts.lines(report, key)]
    if max(epoch for line in lines for epoch in line.epochs) <= 12:
        layout["xaxis"]["dtick"] = 1
    values = [value for line in lines for value in line.values]
    kind = "log" if logarithmic and min(values) > 0 else "linear"
    layout["yaxis"] |= {"title": {"text": title, "standoff": 12}, "type": kind, "nticks": 7}
    ticks = charts.log_ticks(min(values), max(values)) if kind == "log" else ()
    if len(ticks) >= 2:
        layout["yaxis"] |= {"tickvals": list(ticks), "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"data": traces, "layout": layout}


def _layout(height: int) -> Figure:
    axis = {"fixedrange": True, "automargin": True, "zeroline": False, "showline": False}
    return {
        "height": height,
        "margin": {"l": 10, "r": 12, "t": 10, "b": 10},
        "font": FONT,
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.45)"


def _safe(text: str) -> str:
    """Plotly reads a subset of HTML in its texts, and formulas between dollar signs."""
    return escape(text, quote=False).replace("$", "&#36;")
