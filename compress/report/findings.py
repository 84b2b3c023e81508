"""What did not work in a run, and what its figures do not say."""

from collections.abc import Iterator
from itertools import pairwise

import compress.report.numbers as numbers
import compress.report.timing as timing
import compress.report.wording as wording
from compress.report.certainty import interval, same
from compress.report.content import Report
from compress.row import Row


def disappointments(report: Report) -> tuple[str, ...]:
    """What was tried and brought nothing, each in a sentence with its figures."""
    found = []
    if report.verdict != "untrained":
        found += [*_distillation(report), *_alternatives(report)]
    found += [sentence for sentence in timing.int8(report) if not sentence.startswith("int8 pays")]
    return (*found, *_pruning(report))


def limits(report: Report) -> tuple[str, ...]:
    """What a reader must not conclude from the figures."""
    return tuple(filter(None, (
        wording.certainty(report) if report.result.samples else "There are no test images: accuracy says nothing.",
        _one_seed(report),
        timing.control(report),
        f"Latency holds for {timing.machine(report)}, and for no other device"
        + ("." if report.devices else ": models/bench.py measures the files on the device itself."),
        "" if report.robustness else "Only images like the test images were looked at; what noise, blur or bad light "
        "do to accuracy is measured where the pipeline has the key robustness.",
    )))  # fmt: skip


def _one_seed(report: Report) -> str:
    if report.seeds or report.verdict == "untrained":
        return ""
    return "All was trained once, with one seed; another seed gives other accuracies, and --seeds 3 tells by how much."


def _distillation(report: Report) -> Iterator[str]:
    base = report.baseline_row
    for row in report.rows:
        if row.stage == "distill" and report.teacher is not None and row.top1_onnx <= base.top1_onnx:
            yield (
                f"The teacher did not help: {row.net} comes to {numbers.percent(row.top1_onnx)}, the student trained "
                f"alone to {numbers.percent(base.top1_onnx)}{_overlap(row, base)}."
            )


def _alternatives(report: Report) -> Iterator[str]:
    best = max(report.alternatives, key=lambda row: row.top1_onnx, default=None)
    if best is not None and best.top1_onnx >= report.result.top1_onnx:
        yield (
            f"The short cut does as well: {best.net} comes to {numbers.percent(best.top1_onnx)}, the result to "
            f"{numbers.percent(report.result.top1_onnx)}{_overlap(best, report.result)}."
        )


def _pruning(report: Report) -> Iterator[str]:
    start = report.rows.index(report.baseline_row)
    for before, row in pairwise(report.rows[start:]):
        if row.stage != "prune" or row.int8 or before.int8 or row.macs >= before.macs:
            continue
        ms, base = row.latency_ms.p50, before.latency_ms.p50
        if ms >= base or same(report, ms, base):
            yield (
                f"Pruning brought no speed: {row.net} has {100 * (1 - row.macs / before.macs):.0f} % fewer MACs than "
                f"{before.net} and takes {numbers.milliseconds(ms)} against {numbers.milliseconds(base)}."
            )


def _overlap(row: Row, other: Row) -> str:
    (low, high), (other_low, other_high) = interval(row), interval(other)
    apart = low > other_high or other_low > high
    return "" if apart else " (the 95 % intervals overlap)"
