"""The large figures at the top of a report: the result against the baseline and the teacher."""

from dataclasses import dataclass

import compress.report.numbers as numbers
from compress.report.certainty import noise, same
from compress.report.content import Report
from compress.row import Row

WORDS = {"bytes": ("smaller", "larger"), "p50": ("faster", "slower"), "macs": ("fewer", "more")}
EQUAL = {"bytes": "same size", "p50": "same speed", "macs": "same number"}
APART = 1.05  # the least ratio that is not 1.0 in print
EXPLAINED = (
    "Large figures are against the baseline, the student net that was not compressed. Top-1 accuracy is the share of "
    "test images whose class is right; MACs are the multiplications, each with an addition, for one image."
)


@dataclass(frozen=True)
class Headline:
    """One large figure: what it is about, the comparison with the baseline, both values, the teacher's."""

    topic: str
    figure: str
    word: str
    values: str
    against_teacher: str


def headlines(report: Report) -> tuple[Headline, ...]:
    """Size, latency, MACs and accuracy of the result against the baseline and the teacher."""
    row, reference, teacher = report.result, report.baseline_row, report.teacher_row
    topics = [
        _headline(report, topic, field)
        for topic, field in (("File size", "bytes"), ("Latency, median", "p50"), ("MACs", "macs"))
    ]
    figure, _, unit = numbers.points(row.top1_onnx - reference.top1_onnx).partition(" ")
    beyond = ""
    if teacher is not None:
        beyond = f"{numbers.points(row.top1_onnx - teacher.top1_onnx)} against the teacher"
    values = f"{numbers.percent(row.top1_onnx)}, baseline {numbers.percent(reference.top1_onnx)}"
    if report.verdict == "untrained":
        figure, unit, beyond = numbers.MISSING, "not judged", ""
    accuracy = Headline("Top-1 accuracy", figure, unit, values, beyond)
    return (*topics, accuracy)


def ratio(report: Report, row: Row, reference: Row, field: str) -> tuple[str, str]:
    """(`7.5×`, `smaller`), or empty strings where the two are the same to one decimal of their ratio.

    `field` is `bytes`, `p50` or `macs`; latencies that this machine cannot tell apart are the same, too.
    """
    value, base = _figure(row, field), _figure(reference, field)
    if numbers.missing(value) or numbers.missing(base) or value <= 0 or base <= 0:
        return "", ""
    found = max(value / base, base / value)
    if found < APART or (field == "p50" and same(report, value, base)):
        return "", ""
    return numbers.times(found), WORDS[field][value > base]


def _headline(report: Report, topic: str, field: str) -> Headline:
    row, reference, teacher = report.result, report.baseline_row, report.teacher_row
    figure, word = ratio(report, row, reference, field)
    beyond = ""
    if teacher is not None:
        against, than = ratio(report, row, teacher, field)
        beyond = f"{against} {than} than the teacher" if against else f"{EQUAL[field]} as the teacher"
    value, base = _figure(row, field), _figure(reference, field)
    shown = f"{_shown(value, field)}, baseline {_shown(base, field)}"
    if not figure and max(value, base) >= APART * min(value, base):  # a latency, apart for no reason
        return Headline(topic, "≈ 1×", f"within noise ({100 * noise(report.control):.0f} %)", shown, beyond)
    return Headline(topic, figure or "1.0×", word or EQUAL[field], shown, beyond)


def _shown(value: float, field: str) -> str:
    return numbers.milliseconds(value) if field == "p50" else numbers.scaled(value, "B" if field == "bytes" else "")


def _figure(row: Row, field: str) -> float:
    return {"bytes": row.bytes, "p50": row.latency_ms.p50, "macs": row.macs}[field]
