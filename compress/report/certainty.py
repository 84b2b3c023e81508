"""How far the figures of a report can be trusted: what two latencies differ by for no reason, accuracy's interval."""

from compress.measure.accuracy import wilson
from compress.report.content import Report
from compress.row import Control, Row

# Two per cent are the machine's mood, not a difference.
SLOWER = 1.02


def noise(control: Control | None) -> float:
    """The share by which two medians must differ to mean anything: 2 %, or more where the A/A control says so."""
    return SLOWER - 1 if control is None else max(SLOWER - 1, control.noise, apart(control))


def apart(control: Control) -> float:
    """The share by which the slower of a control's two medians is above the other."""
    return max(control.ratio, 1 / control.ratio) - 1 if control.ratio > 0 else 0.0


def same(report: Report, ms: float, other: float) -> bool:
    """Whether two median latencies are the same for all that can be told on this machine."""
    return max(ms, other) <= (1 + noise(report.control)) * min(ms, other)


def interval(row: Row) -> tuple[float, float]:
    """The 95 % interval (per cent) of the file's own accuracy, which may differ from the PyTorch net's."""
    return wilson(min(max(row.top1_onnx, 0.0), 100.0), max(row.samples, 0))
