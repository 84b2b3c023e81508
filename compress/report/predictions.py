"""What changed for the user of the model, as tables and sentences, shared by HTML and Markdown."""

import compress.report.numbers as numbers
from compress.measure.confusion import Changes
from compress.report.content import Report
from compress.report.tables import Table

CHANCE = 0.05


def in_images(report: Report) -> str:
    """The accuracies as images out of a thousand, and whether chance could explain the difference."""
    if report.verdict == "untrained" or not report.result.samples:
        return ""
    now, was = (round(10 * row.top1_onnx) for row in (report.result, report.baseline_row))
    if report.result == report.baseline_row:
        return f"Of 1,000 images such as the test images it gets about {now:,} right."
    text = f"Of 1,000 images such as the test images it gets about {now:,} right; the baseline, about {was:,}."
    return f"{text} {by_chance(report)}".strip()


def by_chance(report: Report) -> str:
    """Whether the test images can tell the result from the baseline (McNemar's exact test at 5 %)."""
    changes = report.changes
    if changes is None or report.verdict == "untrained":
        return ""
    if changes.worse == changes.better:
        return "The test images cannot tell the two apart."
    if changes.p_value >= CHANCE:
        return f"So small a difference may be chance (p\u00a0=\u00a0{changes.p_value:.2f})."
    p_value = "<\u00a00.001" if changes.p_value < 0.001 else f"=\u00a0{changes.p_value:.3f}"
    return f"The difference is more than chance (p\u00a0{p_value})."


def summary(changes: Changes) -> str:
    """How many images changed sides, in one sentence."""
    total = changes.worse + changes.better + changes.other
    if not total:
        return f"{changes.after} predicts the same as {changes.before} for each of the {changes.samples:,} test images."
    text = (
        f"{changes.after} predicts another class than {changes.before} for {total:,} of the {changes.samples:,} test "
        f"images: {_turned(changes.worse, 'right', 'wrong')}, {_turned(changes.better, 'wrong', 'right')}"
    )
    if not changes.other:
        return f"{text}."
    return f"{text}, {changes.other:,} {'is' if changes.other == 1 else 'are'} wrong in another way."


def classes(changes: Changes) -> Table:
    """Accuracy of each class, those that lost most first."""
    shown = sorted(changes.classes, key=lambda each: each.after - each.before)
    body = tuple(
        (
            each.name,
            numbers.count(each.samples),
            numbers.percent(each.before),
            numbers.percent(each.after),
            numbers.points(each.after - each.before),
        )
        for each in shown
    )
    return Table(
        f"Accuracy by class, {changes.before} and {changes.after}",
        ("Class", "Images", "Before", "After", "Change"),
        body,
    )


def confusions(changes: Changes) -> Table:
    """Mistakes that the result makes more often than the baseline."""
    body = tuple(
        (each.label, each.predicted, numbers.count(each.before), numbers.count(each.after))
        for each in changes.confusions
    )
    return Table("Mistakes made more often, in test images", ("Class", "Taken for", "Before", "After"), body)


def examples(changes: Changes) -> Table:
    """Images of which the two files say different things, by their numbers in the predictions."""
    body = tuple((str(each.sample), each.label, each.before, each.after) for each in changes.examples)
    return Table("Test images whose prediction changed", ("Image", "Class", "Before", "After"), body)


def _turned(count: int, before: str, after: str) -> str:
    were, are = ("was", "is") if count == 1 else ("were", "are")
    return f"{count:,} {were} {before} and {are} {after} now"
