"""Whether a run did what it was asked to: the budget, and whether anything was learnt at all."""

from collections.abc import Sequence

from compress.measure.accuracy import wilson
from compress.pipeline import Budget
from compress.report.content import Limit, Verdict
from compress.row import Row


def judge_budget(budget: Budget, result: Row, baseline: Row) -> tuple[Limit, ...]:
    """Each limit that the budget sets, with what was measured on the files.

    The accuracy drop is in points of the files' top-1; the ratios are against the baseline's float file.
    """
    measured = {
        "max_accuracy_drop": baseline.top1_onnx - result.top1_onnx,
        "max_bytes": result.bytes,
        "max_bytes_ratio": result.bytes / baseline.bytes,
        "max_macs_ratio": result.macs / baseline.macs if baseline.macs else 1.0,
        "max_latency_ratio": result.latency_ms.p50 / baseline.latency_ms.p50,
    }
    limits = {name: value for name, value in budget.model_dump().items() if value is not None}
    # A drop of 1.0 points computed from percentages comes out as 1.0000000000000142.
    return tuple(Limit(name, value, measured[name], measured[name] <= value + 1e-9) for name, value in limits.items())


def at_chance(row: Row, classes: int) -> bool:
    """Whether the 95 % interval of a file's accuracy does not exclude guessing."""
    return wilson(row.top1_onnx, row.samples)[0] <= 100 / classes


def judge_run(budget: Sequence[Limit], result: Row, classes: int, trained: bool) -> Verdict:
    """`untrained` where nothing was learnt on purpose; `fail` for a missed limit or a net at chance; else `pass`.

    Without training accuracy says nothing; the budget's lines still say which limits a design keeps.
    """
    if not trained:
        return "untrained"
    if not all(limit.ok for limit in budget):
        return "fail"
    return "fail" if at_chance(result, classes) else "pass"
