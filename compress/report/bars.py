"""The charts of report.html that have a row for each stage, layer, class or file."""

import compress.report.charts as charts
import compress.report.numbers as numbers
from compress.measure.confusion import Changes, ClassAccuracy
from compress.report.axes import Figure, layout, named_rows, safe
from compress.report.content import Report
from compress.report.labels import shortened
from compress.report.layers import Layer
from compress.report.waterfall import COLOURS, Waterfall
from compress.row import Row

BAR_HEIGHT = 16
MOST_LAYERS = 80
MOST_CLASSES = 20
LONGEST_STEP = 16  # letters, so that bars and figures have room on a phone


def waterfall(fall: Waterfall) -> Figure:
    """One quantity from the baseline to the result: floating bars, each with its change beside it."""
    steps = fall.steps
    names = [shortened(step.name, LONGEST_STEP) for step in steps]
    trace: Figure = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(steps))),
        "base": [min(step.start, step.end) for step in steps],
        "x": [abs(step.end - step.start) for step in steps],
        "marker": {"color": [COLOURS[step.kind] for step in steps]},
        "width": 0.62,
        "hovertext": [f"{safe(step.name)}<br>{step.text}" for step in steps],
        "hoverinfo": "text",
    }
    chart = layout(64 + 30 * len(steps))
    chart["xaxis"] |= {"title": {"text": fall.x_title}, "range": list(fall.x_range), "nticks": 5}
    chart["yaxis"] |= named_rows(names)
    middle = sum(fall.x_range) / 2
    chart["annotations"] = [
        {
            "x": min(step.start, step.end) if beside_left else max(step.start, step.end),
            "y": i,
            "text": step.text,
            "showarrow": False,
            "xanchor": "right" if beside_left else "left",
            "xshift": -5 if beside_left else 5,
        }
        for i, step in enumerate(steps)
        for beside_left in (step.kind != "total" and min(step.start, step.end) > middle,)
    ]
    return {"data": [trace], "layout": chart}


def shown_layers(report: Report) -> tuple[Layer, ...]:
    """The layers that a picture has room for: all, or of very many those with most work, in the order of the net."""
    if len(report.layers) <= MOST_LAYERS:
        return report.layers
    busiest = sorted(report.layers, key=lambda layer: -(layer.macs_before or layer.before))[:MOST_LAYERS]
    return tuple(layer for layer in report.layers if layer in busiest)


def channels(layers: tuple[Layer, ...]) -> Figure:
    """Output channels before and after."""
    return _before_after(layers, [each.before for each in layers], [each.after for each in layers], "Output channels")


def macs(layers: tuple[Layer, ...]) -> Figure:
    """Multiply-accumulates before and after."""
    before, after = ([value or 0 for value in values] for values in zip(*map(_macs, layers), strict=True))
    return _before_after(layers, before, after, "MACs for one image")


def sensitivity(layers: tuple[Layer, ...]) -> Figure:
    """What cutting each layer cost, in points of accuracy."""
    known = [(each.name, each.sensitivity) for each in layers if each.sensitivity is not None]
    return _lollipops(
        [name for name, _ in known], [lost for _, lost in known], "Points lost, mean of all cuts", "points", zero=True
    )


def rounding(report: Report) -> Figure:
    """Signal-to-noise behind each quantizer."""
    return _lollipops(
        [each.layer for each in report.rounding], [each.db for each in report.rounding], "Signal to noise (dB)", "dB"
    )


def shown_classes(changes: Changes) -> tuple[ClassAccuracy, ...]:
    """The classes that a picture has room for: all, or of very many those whose accuracy changed most, if it did."""
    if len(changes.classes) <= MOST_CLASSES:
        return changes.classes
    by_change = sorted(changes.classes, key=lambda each: -abs(each.after - each.before))[:MOST_CLASSES]
    return tuple(each for each in by_change if each.after != each.before)


def classes(changes: Changes) -> Figure:
    """Accuracy of each class before and after; of many classes those that changed most."""
    shown = shown_classes(changes)
    rows = list(range(len(shown)))
    hover = [f"{safe(each.name)}, {each.samples} images<br>{each.before:.1f} % → {each.after:.1f} %" for each in shown]
    ways: Figure = {
        "type": "scatter", "mode": "lines", "hoverinfo": "skip", "line": {"color": COLOURS["total"], "width": 1.5},
        "x": [value for each in shown for value in (each.before, each.after, None)],
        "y": [value for row in rows for value in (row, row, None)],
    }  # fmt: skip
    common = {"type": "scatter", "mode": "markers", "y": rows, "hovertext": hover, "hoverinfo": "text"}
    open_, full = (
        {"color": COLOURS["total"], "size": 10, "symbol": "circle-open", "line": {"width": 2}},
        {"color": charts.COLOURS["stage"], "size": 8},
    )
    before = common | {"x": [each.before for each in shown], "marker": open_}
    after = common | {"x": [each.after for each in shown], "marker": full}
    chart = layout(64 + 22 * max(3, len(shown)))
    values = [value for each in shown for value in (each.before, each.after)]
    margin = max(1.0, 0.06 * (max(values) - min(values)))
    chart["xaxis"] |= {
        "title": {"text": "Right (%)"}, "nticks": 6,
        "range": [min(values) - margin, max(values) + margin],
    }  # fmt: skip
    chart["yaxis"] |= named_rows([shortened(each.name) for each in shown])
    return {"data": [ways, before, after], "layout": chart}


def latency(report: Report) -> Figure:
    """How all timed runs of each file are spread: box from 25 to 75 %, whiskers from 5 to 95 %."""
    rows = {row.net: row for row in (*report.rows, *report.alternatives)}
    shown = [each for each in report.timings if each.net in rows]
    traces: list[Figure] = [
        {
            "type": "box", "orientation": "h", "y": [i], "width": 0.5,
            "lowerfence": [each.ms[1]], "q1": [each.ms[2]], "median": [each.ms[3]], "q3": [each.ms[4]],
            "upperfence": [each.ms[5]],
            "line": {"color": _colour(report, rows[each.net]), "width": 1.5},
            "fillcolor": "rgba(0,0,0,0)", "hoverinfo": "x", "xhoverformat": ".3~r",
        }
        for i, each in enumerate(shown)
    ]  # fmt: skip
    chart = layout(64 + 34 * len(shown))
    ends = [value for each in shown for value in (each.ms[1], each.ms[5])]
    x_range = (min(ends) / 1.2, max(ends) * 1.2)
    ticks = charts.log_ticks(*x_range)
    chart["xaxis"] |= {
        "type": "log", "title": {"text": "Milliseconds"}, "range": charts.exponents(x_range),
        "tickvals": list(ticks), "ticktext": [f"{tick:g}" for tick in ticks],
    }  # fmt: skip
    chart["yaxis"] |= named_rows([shortened(each.net) for each in shown])
    return {"data": traces, "layout": chart}


def _colour(report: Report, row: Row) -> str:
    return charts.COLOURS[report.role(row)]


def _macs(layer: Layer) -> tuple[int | None, int | None]:
    return layer.macs_before, layer.macs


def _before_after(layers: tuple[Layer, ...], before: list[int], after: list[int], title: str) -> Figure:
    hover = [
        f"{safe(each.name)}<br>{numbers.scaled(was)} → {numbers.scaled(now)}"
        for each, was, now in zip(layers, before, after, strict=True)
    ]
    common = {
        "type": "bar", "orientation": "h", "y": list(range(len(layers))), "hovertext": hover, "hoverinfo": "text",
    }  # fmt: skip
    first = common | {"x": before, "marker": {"color": charts.BEFORE}, "width": 0.8}
    second = common | {"x": after, "marker": {"color": charts.COLOURS["stage"]}, "width": 0.44}
    chart = layout(70 + BAR_HEIGHT * max(4, len(layers)))
    chart |= {"barmode": "overlay", "hovermode": "y"}
    chart["xaxis"] |= {"title": {"text": title}, "rangemode": "tozero", "nticks": 5}
    chart["yaxis"] |= named_rows([shortened(each.name) for each in layers]) | {"tickfont": {"size": 10}}
    return {"data": [first, second], "layout": chart}


def _lollipops(names: list[str], values: list[float], title: str, unit: str, *, zero: bool = False) -> Figure:
    """A point for each name, in order from left to right; the names show under the pointer, the ends on the axis."""
    columns = list(range(1, len(values) + 1))
    trace: Figure = {
        "type": "scatter", "mode": "lines+markers", "x": columns, "y": values,
        "line": {"color": charts.COLOURS["stage"], "width": 1}, "marker": {"size": 6},
        "hovertext": [f"{safe(n)}<br>{v:.1f} {unit}" for n, v in zip(names, values, strict=True)], "hoverinfo": "text",
    }  # fmt: skip
    chart = layout(280)
    chart["xaxis"] |= {
        "title": {"text": "Layers, from the image on"},
        "nticks": 8,
        "range": [0.5, len(values) + 0.5],
    } | ({"dtick": 1} if len(values) <= 8 else {})
    chart["yaxis"] |= {"title": {"text": title, "standoff": 12}, "nticks": 6}
    low, high = min(0.0, *values) if zero else min(values), max(values)
    margin = 0.15 * (high - low) or 1.0  # room for the one label
    chart["yaxis"]["range"] = [low if zero else low - margin, high + margin]
    worst = max(range(len(values)), key=lambda i: values[i] if zero else -values[i])
    side = "right" if worst > len(values) / 2 else "left"
    chart["annotations"] = [{
        "x": columns[worst], "y": values[worst], "text": f"{safe(shortened(names[worst]))}: {values[worst]:.1f} {unit}",
        "showarrow": False, "xanchor": side, "yshift": 12 if zero else -12,
    }]  # fmt: skip
    return {"data": [trace], "layout": chart}
