"""The sentences of a report: what came out, against what, and what deserves attention."""

import re
from collections.abc import Sequence

import compress.report.numbers as numbers
from compress.measure.accuracy import wilson
from compress.report.certainty import same
from compress.report.content import Limit, Report
from compress.report.headlines import ratio

LIMITS = {
    "max_accuracy_drop": "Accuracy lost against the baseline",
    "max_bytes": "File size",
    "max_bytes_ratio": "File size, share of the baseline's",
    "max_macs_ratio": "MACs, share of the baseline's",
    "max_latency_ratio": "Latency, share of the baseline's",
}
# The same inside a sentence, where several stand in a row.
MISSED = {
    "max_accuracy_drop": "accuracy",
    "max_bytes": "file size",
    "max_bytes_ratio": "file size against the baseline",
    "max_macs_ratio": "MACs against the baseline",
    "max_latency_ratio": "latency against the baseline",
}
INT8_FLAGS = ("vnni", "amx", "i8mm", "asimddp")
NO_INT8_FLAGS = "This CPU has no int8 dot-product instructions (VNNI); with them int8 is usually faster."


def sentence(report: Report) -> str:
    """The verdict as a product manager would say it."""
    row, reference = report.result, report.baseline_row
    if row == reference:
        return "No stage changed the net: the result is the baseline itself."
    better, same = [], []
    for field, equal in (("bytes", "large"), ("p50", "fast")):
        figure, word = ratio(report, row, reference, field)
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


def untrained(report: Report) -> str:
    """Why accuracy means nothing where the verdict is `untrained`."""
    if any(curve.records for curve in report.curves):
        return "This was no more than a trial (a smoke run)"
    return "Nothing was trained and no weights were given"


def _judged(report: Report) -> str:
    missed = [MISSED.get(limit.limit, limit.limit) for limit in report.budget if not limit.ok]
    total = len(report.budget)
    if report.verdict == "untrained":
        return f"{untrained(report)}, so accuracy is shown but not judged."
    if missed:
        names = _joined(missed, " and ")
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
    return tuple(_whole(text, report) for text in (*_slower_int8(report), *report.warnings))


def notes(report: Report) -> tuple[str, ...]:
    """The run's own notes."""
    return tuple(_whole(text, report) for text in report.notes)


def _whole(text: str, report: Report) -> str:
    """What a run says after `warning: ` as a sentence of its own; names of nets, layers and files stay as they are."""
    first = re.match(r"[a-z]+(-[a-z]+)* ", text)
    if first and first[0].rstrip() not in {row.net for row in (*report.rows, *report.alternatives)}:
        text = text[0].upper() + text[1:]
    return f"{text}." if text and (text[-1].isalnum() or text[-1] == ")") else text


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
        return f"{untrained(report)}, so these accuracies mean nothing."
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
    """What the corruptions are, how far the accuracies are known, and that the figures are no benchmark's."""
    shown = report.robustness[0].severity if report.robustness else 0
    known = _widest(report)
    return (
        f"Each accuracy under one corruption is known to about ±{known:.1f} points at worst (95 % interval). "
        f"Corruptions after Hendrycks and Dietterich (2019, arXiv:1903.12261), severity {shown} of 5, and no other. "
        "Their benchmarks' scores are means over all five and over fifteen corruptions, and cannot be read off here."
    )


def _widest(report: Report) -> float:
    """Half the widest 95 % interval among the accuracies on corrupted images, in points."""
    samples = max(report.result.samples, 0)
    shown = [value for line in report.robustness for value in (line.noise, line.blur, line.contrast)]
    ends = [wilson(min(max(value, 0.0), 100.0), samples) for value in shown if value is not None]
    return max(((high - low) / 2 for low, high in ends), default=0.0)


def over_seeds(report: Report) -> tuple[str, ...]:
    """What each stage gained over the baseline, a sentence a stage; none where there was one seed."""
    if report.seeds and report.verdict == "untrained":
        return (f"{untrained(report)}, so these accuracies mean nothing.",)
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


def allowed(limit: Limit, value: float) -> str:
    """The value of a limit in the limit's own unit."""
    if limit.limit == "max_accuracy_drop":
        return f"{value:.2f} points".replace("-", "−")
    if limit.limit == "max_bytes":
        return f"{value:,.0f} bytes"
    return f"{100 * value:.2f} %" if limit.limit.endswith("_ratio") else f"{value:g}"


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
        if not row.int8 or before is None or row.latency_ms.p50 < before.latency_ms.p50:
            continue
        if same(report, row.latency_ms.p50, before.latency_ms.p50):
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
