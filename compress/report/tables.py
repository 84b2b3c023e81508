"""The tables of a report as plain text, shared by HTML and Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import compress.report.numbers as numbers
import compress.report.wording as wording
from compress.report.content import Report
from compress.row import Row

Cells = tuple[str, ...]

SHOWN_CLASSES = 20

LABELS = {
    "cpu": "CPU",
    "flags": "CPU flags",
    "gpu": "GPU",
    "python": "Python",
    "name": "Data set",
    "std": "Standard deviation",
    "class_names": "Class names",
    "sizes": "Images",
    "image": "Image (channels, height, width)",
}


@dataclass(frozen=True)
class Table:
    """A caption, a heading for each column, and the cells; the first cell of a row names it."""

    caption: str
    head: Cells
    body: tuple[Cells, ...]


STAGES_HEAD = (
    "Net",
    "Stage",
    "Top-1 of the file",
    "Top-1 in PyTorch",
    "95 % interval",
    "Top-5",
    "Agreement",
    "Parameters",
    "MACs",
    "File size",
    "p50",
    "p90",
    "p99",
    "Images/s",
    "Time spent",
)


def budget(report: Report) -> Table:
    """Each limit, what it allows, what was measured, whether it is met."""
    body = tuple(
        (
            wording.LIMITS.get(limit.limit, limit.limit),
            wording.allowed(limit, limit.value),
            wording.allowed(limit, limit.measured),
            "met" if limit.ok else "missed",
        )
        for limit in report.budget
    )
    head = ("Limit", "Allowed at most", "Measured", "Verdict")
    return Table("What was allowed, and what came out", head, body)


def figures(row: Row) -> Cells:
    """All figures of one row, in the order of STAGES_HEAD."""
    latency = row.latency_ms
    return (
        row.net,
        row.stage,
        numbers.percent(row.top1_onnx),
        numbers.percent(row.top1),
        numbers.interval(row.top1_low, row.top1_high),
        numbers.percent(row.top5),
        numbers.percent(row.agreement),
        numbers.scaled(row.params),
        numbers.scaled(row.macs),
        numbers.scaled(row.bytes, "B"),
        numbers.milliseconds(latency.p50),
        numbers.milliseconds(latency.p90),
        numbers.milliseconds(latency.p99),
        numbers.short(row.throughput),
        numbers.duration(row.seconds or None),
    )


def layers(report: Report) -> Table:
    """Channels of each layer before and after pruning, its share of the work, and what cutting it cost."""
    total = sum(layer.macs or 0 for layer in report.layers)
    with_macs = any(layer.macs_before for layer in report.layers)
    with_loss = any(layer.sensitivity is not None for layer in report.layers)
    head: Cells = ("Layer", "Before", "After", "Kept")
    head += ("MACs before", "MACs after", "Share of all") if with_macs else ()
    head += ("Lost when cut",) if with_loss else ()
    body = []
    for layer in report.layers:
        cells: Cells = (layer.name, numbers.count(layer.before), numbers.count(layer.after))
        cells += (f"{100 * layer.after / layer.before:.0f} %" if layer.before else numbers.MISSING,)
        if with_macs:
            share = f"{100 * (layer.macs or 0) / total:.1f} %" if total else numbers.MISSING
            cells += (numbers.scaled(layer.macs_before), numbers.scaled(layer.macs), share)
        if with_loss:
            cells += (numbers.MISSING if layer.sensitivity is None else f"{layer.sensitivity:.1f} points",)
        body.append(cells)
    return Table("Output channels of every layer, and its work", head, tuple(body))


def rounding(report: Report) -> Table:
    """Signal-to-noise behind each quantizer, in the order in which data pass."""
    body = tuple((each.layer, f"{each.db:.1f} dB") for each in report.rounding)
    return Table("What rounding leaves of the values behind each layer", ("Behind", "Signal to noise"), body)


def left_float(report: Report) -> Table:
    """What an int8 file computes in float, and why."""
    body = tuple((each.name, each.operator, each.reason) for each in report.left_float)
    return Table("What ONNX Runtime computes in float", ("Name", "Operator", "Why"), body)


def curves(report: Report) -> Table:
    """How each stage's training ended."""
    head = ("Stage", "Epochs", "Last loss", "Train top-1", "Val. top-1", "Best val.", "Images/s", "Time")
    body = []
    for curve in report.curves:
        last = curve.records[-1] if curve.records else {}
        validated = _column(curve.records, "val_accuracy")
        speeds = _column(curve.records, "images_per_s")
        body.append(
            (
                curve.stage,
                numbers.count(len(curve.records)),
                numbers.short(last.get("loss")),
                numbers.percent(last.get("accuracy")),
                numbers.percent(last.get("val_accuracy")),
                numbers.percent(max(validated, default=None)),
                numbers.short(sum(speeds) / len(speeds) if speeds else None),
                numbers.duration(sum(_column(curve.records, "seconds"))),
            )
        )
    return Table("How each stage's training ended", head, tuple(body))


def robustness(report: Report) -> Table:
    """Accuracy of each net's file on clean and on corrupted test images."""
    head = ("Net", "Clean", "Noise", "Blur", "Contrast", "Mean of the corrupted", "Against clean")
    body = tuple(
        (
            line.net,
            numbers.percent(line.clean),
            numbers.percent(line.noise),
            numbers.percent(line.blur),
            numbers.percent(line.contrast),
            numbers.percent(line.mean),
            numbers.points(line.mean - line.clean),
        )
        for line in report.robustness
    )
    return Table("Top-1 of each file on clean and on corrupted test images", head, body)


def seeds(report: Report) -> Table:
    """Accuracy of each net's files over several seeds, and the gain over the baseline of the same seed."""
    head = ("Net", "Each seed (%)", "Mean ± standard error (%)", "Standard deviation", "Against the baseline (points)")
    body = tuple(
        (
            line.net,
            ", ".join(f"{value:.2f}" for value in line.values),
            numbers.uncertain(line.mean, line.standard_error),
            f"{line.std:.2f}",
            numbers.uncertain(line.gain, line.gain_standard_error, signed=True),
        )
        for line in report.seeds
    )
    return Table("Top-1 of the files of each seed", head, body)


def environment(report: Report) -> Table:
    """The machine, the versions and the fingerprints."""
    return Table("Machine and versions", ("What", "Value"), _pairs(report.environment))


def data(report: Report) -> Table:
    """The data set."""
    return Table("Data", ("What", "Value"), _pairs(report.data))


def _pairs(mapping: Mapping[str, Any]) -> tuple[Cells, ...]:
    return tuple((LABELS.get(key) or _label(key), _plain(value)) for key, value in mapping.items())


def _label(key: str) -> str:
    return (key[:1].upper() + key[1:]).replace("_", " ")


def _plain(value: object) -> str:
    if value is None or value in ("", [], (), {}):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(_plain(item) for item in value[:SHOWN_CLASSES])
        rest = len(value) - SHOWN_CLASSES
        return shown if rest <= 0 else f"{shown} and {rest:,} more"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _column(records: tuple[Mapping[str, Any], ...], key: str) -> list[float]:
    return [record[key] for record in records if not numbers.missing(record.get(key))]
