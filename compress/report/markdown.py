"""report.md: the same figures as tables, with the static pictures beside it."""

import re
from collections.abc import Collection

import compress.report.findings as findings
import compress.report.headlines as headlines
import compress.report.on_devices as on_devices
import compress.report.predictions as predictions
import compress.report.references as references
import compress.report.tables as tables
import compress.report.timing as timing
import compress.report.waterfall as waterfall
import compress.report.wording as wording
from compress.report.content import Report
from compress.report.tables import Table

PICTURES = {
    "accuracy-size.svg": "Top-1 accuracy of every net against the size of its file",
    "accuracy-latency.svg": "Top-1 accuracy of every net against its median latency",
    "waterfall.svg": "What each stage did to accuracy, file size, MACs and latency",
    "channels.svg": "Output channels of every convolution before and after pruning",
    "curves.svg": "Training loss and accuracy by epoch for each stage",
}


def render(report: Report, pictures: Collection[str]) -> str:
    """The text of report.md, which refers to the given pictures in the folder `pictures`."""
    parts = [
        f"# {escaped(report.name)}",
        f"**{report.verdict.capitalize()}.** {escaped(wording.judgement(report))}",
        escaped(wording.sentence(report)),
    ]
    parts += [escaped(text) for text in (predictions.in_images(report),) if text]
    warnings = wording.warnings(report)
    if warnings:
        parts += ["## Warnings", bullets(warnings)]
    parts += ["## At a glance", tabulated(_glance(report))]
    if report.budget:
        parts += ["## Budget", tabulated(tables.budget(report))]
    parts += ["## Every net on the way", _stages(report), escaped(wording.certainty(report))]
    if "waterfall.svg" in pictures:
        parts += ["## What each stage did", tabulated(waterfall.table(report), 1), _picture("waterfall.svg")]
    parts += ["## Accuracy against cost"]
    parts += [_picture(name) for name in ("accuracy-size.svg", "accuracy-latency.svg") if name in pictures]
    if references.published(report.data):
        parts.append(_folded(references.table(report.data)))
    parts += [*_layers(report, pictures), *_changes(report), *_latency(report)]
    if report.curves:
        parts.append("## Training")
        parts += [_picture("curves.svg")] if "curves.svg" in pictures else []
        parts.append(tabulated(tables.curves(report), numeric_from=1))
    if report.robustness:
        parts += ["## On corrupted images", tabulated(tables.robustness(report), numeric_from=1)]
        parts += [escaped(text) for text in (wording.robustness(report), wording.severity(report)) if text]
    if report.seeds:
        parts += ["## Over several seeds", tabulated(tables.seeds(report), numeric_from=1)]
        if sentences := wording.over_seeds(report):
            parts.append(bullets(sentences))
        parts.append(escaped(wording.spread(report)))
    if report.devices:
        parts += ["## On devices", tabulated(on_devices.table(report), numeric_from=2)]
        parts.append(bullets(on_devices.sentences(report)))
    parts += ["## Where this comes from", tabulated(tables.environment(report)), tabulated(tables.data(report))]
    if lost := findings.disappointments(report):
        parts += ["### What did not work", bullets(lost)]
    parts += ["### What these figures do not say", bullets(findings.limits(report))]
    if report.notes:
        parts += ["### Notes", bullets(wording.notes(report))]
    if report.command:
        parts += ["### The command", fenced(report.command, "sh")]
    if report.pipeline_yaml:
        parts += ["### The resolved pipeline", fenced(report.pipeline_yaml, "yaml")]
    return "\n\n".join(parts) + "\n"


def _layers(report: Report, pictures: Collection[str]) -> list[str]:
    parts = []
    if report.layers:
        parts = ["## Layers", *([_picture("channels.svg")] if "channels.svg" in pictures else [])]
        parts.append(_folded(tables.layers(report)))
    if report.rounding:
        parts.append(_folded(tables.rounding(report)))
    if report.left_float:
        parts.append(_captioned(tables.left_float(report)))
    return parts


def _changes(report: Report) -> list[str]:
    changes = report.changes
    if changes is None:
        return []
    parts = ["## What changed for the user", escaped(predictions.summary(changes))]
    parts += [escaped(text) for text in (predictions.by_chance(report),) if text]
    if changes.classes:
        parts.append(_folded(predictions.classes(changes)))
    if changes.confusions:
        parts.append(_captioned(predictions.confusions(changes), numeric_from=2))
    if changes.examples:
        parts.append(_folded(predictions.examples(changes)))
    return parts


def _latency(report: Report) -> list[str]:
    sentences = (*timing.int8(report), *filter(None, (timing.control(report),)))
    return ["## Latency", _captioned(timing.table(report), 1), *([bullets(sentences)] if sentences else [])]


def escaped(text: str) -> str:
    """The text with everything that Markdown or HTML would read as markup made harmless."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # GitHub makes links of bare addresses; what a name says leads nowhere.
    text = re.sub(r"\bwww\.", "www&#46;", text.replace("://", ":&#47;/"), flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text)


def _glance(report: Report) -> Table:
    body = tuple(
        (line.topic, f"{line.figure} {line.word}", line.values, line.against_teacher or "–")
        for line in headlines.headlines(report)
    )
    return Table("", ("", "Against the baseline", "Measured", "Against the teacher"), body)


def _stages(report: Report) -> str:
    rows = [tables.figures(row) for row in report.rows]
    for net, stage, *rest in map(tables.figures, report.alternatives):
        rows.append((net, f"{stage} (alternative)", *rest))
    text = tabulated(Table("", tables.STAGES_HEAD, tuple(rows)), numeric_from=2)
    best = wording.best_alternative(report)
    return f"{text}\n\n{escaped(best)}" if best else text


def tabulated(table: Table, numeric_from: int | None = None) -> str:
    """A table; columns from `numeric_from` on are aligned to the right."""
    align = ["---" if numeric_from is None or i < numeric_from else "---:" for i in range(len(table.head))]
    lines = [_line(table.head), "| " + " | ".join(align) + " |", *map(_line, table.body)]
    return "\n".join(lines)


def _captioned(table: Table, numeric_from: int | None = None) -> str:
    return f"{escaped(table.caption)}:\n\n{tabulated(table, numeric_from)}"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def _folded(table: Table) -> str:
    return f"<details><summary>{table.caption}</summary>\n\n{tabulated(table, numeric_from=1)}\n\n</details>"


def _picture(name: str) -> str:
    return f"![{PICTURES[name]}](pictures/{name})"


def bullets(lines: tuple[str, ...]) -> str:
    """A list."""
    return "\n".join(f"- {_begun(escaped(line))}" for line in lines)


def _begun(text: str) -> str:
    """Text at the start of a block, where a sign or a number would make it a heading, a rule or a list."""
    return re.sub(r"^\s*(\d*)([-+#=.)])", r"\1\\\2", text)


def fenced(text: str, language: str) -> str:
    """A block of code, whatever back-ticks it has."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
