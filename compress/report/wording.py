"""The sentences of a report: what came out, against what, and what deserves attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import compress.report.numbers as numbers
from compress.report.content import Limit, Report
from compress.row import Row

LIMITS = {
    "max_accuracy_drop": "Accuracy lost against the baseline",
    "max_bytes": "File size",
    "max_bytes_ratio": "File size, share of the baseline's",
    "max_macs_ratio": "MACs, share of the baseline's",
    "max_latency_ratio": "Latency, share of the baseline's",
}
# Two per cent are the machine's mood, not a difference.
SLOWER = 1.02
INT8_FLAGS = ("vnni", "amx", "i8mm", "asimddp")
NO_INT8_FLAGS = "This CPU has no int8 dot-product instructions (VNNI); with them int8 is usually faster."


@dataclass(frozen=True)
class Headline:
    """One large figure: what it is about, the comparison with the baseline, both values, the teacher's."""

    topic: str
    figure: str
    word: str
    values: str
    against_teacher: str


def sentence(report: Report) -> str:
    """The verdict as a product manager would say it."""
    row, reference = report.result, report.baseline_row
    if row == reference:
        return "No stage changed the net: the result is the baseline itself."
    better, same = [], []
    for value, base, words, equal in (
        (row.bytes, reference.bytes, ("smaller", "larger"), "large"),
        (row.latency_ms.p50, reference.latency_ms.p50, ("faster", "slower"), "fast"),
    ):
        figure, word = _ratio(value, base, words)
        if figure:
            better.append(f"{figure} {word}")
        else:
            same.append(f"as {equal}")
    gained = round(row.top1_onnx - reference.top1_onnx, 1)
    if report.verdict != "untrained":
        if gained:
            better.append(f"{abs(gained):.1f} points {'more' if gained > 0 else 'less'} accurate")
        else:
            same.append("as accurate")
    file = f"The {'int8' if row.int8 else 'float'} file is"
    if not better:
        return f"{file} {_joined(same, ' and ')} as the baseline."
    ending = f", and {_joined(same, ' and ')}" if same else ""
    return f"{file} {_joined(better, ' and ')} than the baseline{ending}."


def judgement(report: Report) -> str:
    """What the verdict rests on."""
    return " ".join(filter(None, (_judged(report), _first_seed(report))))


def _judged(report: Report) -> str:
    missed = [LIMITS.get(limit.limit, limit.limit) for limit in report.budget if not limit.ok]
    total = len(report.budget)
    if report.verdict == "untrained":
        return "Nothing was trained and no weights were given, so accuracy is shown but not judged."
    if missed:
        names = _joined([name[0].lower() + name[1:] for name in missed], " and ")
        if total == 1:
            return f"The one limit of the budget is missed: {names}."
        return f"{len(missed)} of the {total} limits of the budget {_is(missed)} missed: {names}."
    if report.verdict == "fail":
        return "A check failed; the warnings say which."
    if not total:
        return "All checks passed. No budget was set."
    if total == 1:
        return "The one limit of the budget is met."
    return f"All {total} limits of the budget are met."


def certainty(report: Report) -> str:
    """How far the accuracies can be trusted, from the result's own interval."""
    row = report.result
    half = (row.top1_high - row.top1_low) / 2
    return (
        f"With {row.samples:,} test images each accuracy is known to about ±{half:.1f} points "
        "(95 % interval after Wilson)."
    )


def warnings(report: Report) -> tuple[str, ...]:
    """Where int8 is slower than float on this machine, then the run's own warnings."""
    return (*_slower_int8(report), *report.warnings)


def best_alternative(report: Report) -> str:
    """The result beside the most accurate alternative: what the way was worth against the short cut."""
    if not report.alternatives or report.verdict == "untrained":
        return ""
    best = max(report.alternatives, key=lambda row: row.top1_onnx)
    gained = round(report.result.top1_onnx - best.top1_onnx, 1)
    where = f"{abs(gained):.1f} points {'above' if gained > 0 else 'below'}" if gained else "level with"
    return (
        f"The result, {report.result.net} ({numbers.percent(report.result.top1_onnx)}), is {where} "
        f"the best alternative, {best.net} ({numbers.percent(best.top1_onnx)})."
    )


def robustness(report: Report) -> str:
    """What distilling and the whole way did to accuracy on corrupted images, against the student trained alone."""
    known = {line.net: line for line in report.robustness}
    reference = known.get(report.baseline)
    if reference is None:
        return ""
    if report.verdict == "untrained":
        return "Nothing was trained and no weights were given, so these accuracies mean nothing."
    distilled = next((row for row in reversed(report.rows) if row.stage == "distill"), report.result)
    found = []
    for row in dict.fromkeys((distilled, report.result)):
        line = known.get(row.net)
        if line is None or line == reference:
            continue
        on_corrupted, on_clean = line.mean - reference.mean, line.clean - reference.clean
        found.append(f"{row.net} {numbers.points(on_corrupted)} on corrupted and {numbers.points(on_clean)} on clean")
    return f"Against the baseline: {'; '.join(found)} images." if found else ""


def severity(report: Report) -> str:
    """What the corruptions are, and that the figures are no benchmark's."""
    shown = report.robustness[0].severity if report.robustness else 0
    return (
        f"Corruptions after Hendrycks and Dietterich (2019, arXiv:1903.12261), severity {shown} of 5, and no other. "
        "Their benchmarks' scores are means over all five and over fifteen corruptions, and cannot be read off here."
    )


def over_seeds(report: Report) -> tuple[str, ...]:
    """What each stage gained over the baseline, a sentence a stage; none where there was one seed."""
    if report.seeds and report.verdict == "untrained":
        return ("Nothing was trained and no weights were given, so these accuracies mean nothing.",)
    reference = next((line.values for line in report.seeds if line.net == report.baseline), ())
    found = []
    for line in report.seeds:
        if line.gain is None or line.gain_standard_error is None:
            continue
        count, gain = len(line.values), round(line.gain, 2)
        how = f"{abs(gain):.2f} ± {line.gain_standard_error:.2f} points"
        where = f"{how} {'above' if gain > 0 else 'below'} the baseline" if gain else f"level with the baseline ({how})"
        better = sum(mine > theirs for mine, theirs in zip(line.values, reference, strict=True))
        found.append(f"Over {count} seeds {line.net} is {where}, better with {better} of {count}.")
    return tuple(found)


def spread(report: Report) -> str:
    """What seeds share, what ± means and what it leaves out."""
    return (
        "A seed decides the weights that are drawn and all chance in training; data and teachers are the same, and the "
        "first seed is the run shown above. ± is the standard error over the seeds: of the mean, and against the "
        "baseline of the differences between nets of the same seed. That the test images are a sample is not in it."
    )


def _first_seed(report: Report) -> str:
    line = next((line for line in report.seeds if line.net == report.result.net), None)
    if line is None or report.verdict == "untrained":
        return ""
    return (
        f"Judged is the first of {len(line.values)} seeds ({numbers.percent(line.values[0])}); the mean of all is "
        f"{numbers.uncertain(line.mean, line.standard_error)} %."
    )


def headlines(report: Report) -> tuple[Headline, ...]:
    """Size, latency, MACs and accuracy of the result against the baseline and the teacher."""
    row, reference, teacher = report.result, report.baseline_row, report.teacher_row
    topics = [
        _headline("File size", row, reference, teacher, "bytes", ("smaller", "larger"), "same size"),
        _headline("Latency, median", row, reference, teacher, "p50", ("faster", "slower"), "same speed"),
        _headline("MACs", row, reference, teacher, "macs", ("fewer", "more"), "same number"),
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


def allowed(limit: Limit, value: float) -> str:
    """The value of a limit in the limit's own unit."""
    if limit.limit == "max_accuracy_drop":
        return f"{value:.2f} points".replace("-", "−")
    if limit.limit == "max_bytes":
        return f"{value:,.0f} bytes"
    return f"{100 * value:.2f} %" if limit.limit.endswith("_ratio") else f"{value:g}"


def _headline(
    topic: str, row: Row, reference: Row, teacher: Row | None, field: str, words: tuple[str, str], equal: str
) -> Headline:
    value, base = _figure(row, field), _figure(reference, field)
    figure, word = _ratio(value, base, words)
    beyond = ""
    if teacher is not None:
        ratio, than = _ratio(value, _figure(teacher, field), words)
        beyond = f"{ratio} {than} than the teacher" if ratio else f"{equal} as the teacher"
    values = f"{_shown(value, field)}, baseline {_shown(base, field)}"
    return Headline(topic, figure or "1.0×", word or equal, values, beyond)


def _shown(value: float, field: str) -> str:
    return numbers.milliseconds(value) if field == "p50" else numbers.scaled(value, "B" if field == "bytes" else "")


def _figure(row: Row, field: str) -> float:
    return {"bytes": row.bytes, "p50": row.latency_ms.p50, "macs": row.macs}[field]


def _ratio(value: float, reference: float, words: tuple[str, str]) -> tuple[str, str]:
    """(`7.5×`, `smaller`), or empty strings where the two are the same to one decimal of their ratio."""
    if numbers.missing(value) or numbers.missing(reference) or value <= 0 or reference <= 0:
        return "", ""
    ratio = max(value / reference, reference / value)
    if ratio < 1.05:
        return "", ""
    return numbers.times(ratio), words[0] if value < reference else words[1]


def not_faster(onnx: str) -> str:
    """How a warning begins that a run gives of an int8 file, with the causes behind it."""
    return f"{onnx} is not faster than"


def _slower_int8(report: Report) -> list[str]:
    found = []
    flags = str(report.environment.get("flags") or "").lower()
    lacking = bool(flags) and not any(name in flags for name in INT8_FLAGS)
    why = f" {NO_INT8_FLAGS}" if lacking else ""
    for index, row in enumerate(report.rows):
        before = next((other for other in reversed(report.rows[:index]) if not other.int8), None)
        if not row.int8 or before is None or row.latency_ms.p50 < SLOWER * before.latency_ms.p50:
            continue
        if any(text.startswith(not_faster(row.onnx)) for text in report.warnings):
            continue  # the run said so itself, and looked for the causes
        found.append(
            f"int8 is slower than float on this machine: {row.net} takes "
            f"{numbers.milliseconds(row.latency_ms.p50)}, {before.net} in float "
            f"{numbers.milliseconds(before.latency_ms.p50)}.{why}"
        )
    return found


def _joined(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + last + words[-1]


def _is(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"
