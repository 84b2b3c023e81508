"""report.md: the same figures as tables, with the static pictures beside it."""

import re
from collections.abc import Collection

import compress.report.on_devices as on_devices
import compress.report.tables as tables
import compress.report.wording as wording
from compress.report.content import Report
from compress.report.tables import Table

PICTURES = {
    "accuracy-size.svg": "Top-1 accuracy of every net against the size of its file",
    "accuracy-latency.svg": "Top-1 accuracy of every net against its median latency",
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
    warnings = wording.warnings(report)
    if warnings:
        parts += ["## Warnings", _bullets(warnings)]
    parts += ["## At a glance", _table(_glance(report))]
    if report.budget:
        parts += ["## Budget", _table(tables.budget(report))]
    parts += ["## Every net on the way", _stages(report), escaped(wording.certainty(report))]
    parts += [_picture(name) for name in ("accuracy-size.svg", "accuracy-latency.svg") if name in pictures]
    if report.layers:
        parts += ["## Channels by layer", _picture("channels.svg"), _folded(tables.layers(report))]
    if report.curves:
        parts.append("## Training")
        parts += [_picture("curves.svg")] if "curves.svg" in pictures else []
        parts.append(_table(tables.curves(report), numeric_from=1))
    if report.robustness:
        parts += ["## On corrupted images", _table(tables.robustness(report), numeric_from=1)]
        parts += [escaped(text) for text in (wording.robustness(report), wording.severity(report)) if text]
    if report.seeds:
        parts += ["## Over several seeds", _table(tables.seeds(report), numeric_from=1)]
        if sentences := wording.over_seeds(report):
            parts.append(_bullets(sentences))
        parts.append(escaped(wording.spread(report)))
    if report.devices:
        parts += ["## On devices", _table(on_devices.table(report), numeric_from=2)]
        parts.append(_bullets(on_devices.sentences(report)))
    parts += ["## Where this comes from", _table(tables.environment(report)), _table(tables.data(report))]
    if report.notes:
        parts += ["### Notes", _bullets(report.notes)]
    if report.command:
        parts += ["### The command", _fenced(report.command, "sh")]
    if report.pipeline_yaml:
        parts += ["### The resolved pipeline", _fenced(report.pipeline_yaml, "yaml")]
    return "\n\n".join(parts) + "\n"


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
        for line in wording.headlines(report)
    )
    return Table("", ("", "Against the baseline", "Measured", "Against the teacher"), body)


def _stages(report: Report) -> str:
    rows = [tables.figures(row) for row in report.rows]
    for net, stage, *rest in map(tables.figures, report.alternatives):
        rows.append((net, f"{stage} (alternative)", *rest))
    text = _table(Table("", tables.STAGES_HEAD, tuple(rows)), numeric_from=2)
    best = wording.best_alternative(report)
    return f"{text}\n\n{escaped(best)}" if best else text


def _table(table: Table, numeric_from: int | None = None) -> str:
    align = ["---" if numeric_from is None or i < numeric_from else "---:" for i in range(len(table.head))]
    lines = [_line(table.head), "| " + " | ".join(align) + " |", *map(_line, table.body)]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def _folded(table: Table) -> str:
    return f"<details><summary>{table.caption}</summary>\n\n{_table(table, numeric_from=1)}\n\n</details>"


def _picture(name: str) -> str:
    return f"![{PICTURES[name]}](pictures/{name})"


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {_begun(escaped(line))}" for line in lines)


def _begun(text: str) -> str:
    """Text at the start of a block, where a sign or a number would make it a heading, a rule or a list."""
    return re.sub(r"^\s*(\d*)([-+#=.)])", r"\1\\\2", text)


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
