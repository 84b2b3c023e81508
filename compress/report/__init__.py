"""Turns plain data into report.html, report.md, report.json and pictures. Knows no torch.

`write(report, folder)` writes all of them, `read(folder)` rebuilds the Report from report.json.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from compress.errors import ConfigError
from compress.files import durable
from compress.report import html, json, markdown, model_card, pictures
from compress.report.charts import Others
from compress.report.comparison import data_of
from compress.report.content import Curve, Limit, OverSeeds, Report, UnderCorruption, Verdict
from compress.report.json import read
from compress.report.layers import Layer, LeftFloat, Rounding
from compress.report.legible import legible

__all__ = [
    "Curve", "Layer", "LeftFloat", "Limit", "OverSeeds", "Report", "Rounding", "UnderCorruption", "Verdict", "read",
    "write",
]  # fmt: skip


def write(report: Report, folder: Path, others: Mapping[str, Report] = MappingProxyType({})) -> None:
    """Write report.html, report.md, report.json and pictures/*.svg into `folder`, which is made if missing.

    Where it has models, a model card (models/README.md) is written too. The results of `others`, runs of the same
    data by name, are drawn beside this one's. The same report gives the same bytes. Each file is replaced as a whole,
    never left half written, and pictures of an earlier report that this one does not have are removed.

    Raises ResourceError where the folder cannot be written, ConfigError for a run of other data among `others`.
    """
    report = legible(report)
    beside = comparable(report, {legible(name): legible(other) for name, other in others.items()})
    drawn = pictures.render(report, beside)
    texts = {f"pictures/{name}": svg for name, svg in drawn.items()}
    texts[json.FILE] = json.render(report)
    texts["report.md"] = markdown.render(report, drawn)
    texts["report.html"] = html.render(report, beside)
    if (folder / "models").is_dir():
        texts["models/README.md"] = model_card.render(report)
    for name, text in texts.items():
        durable.write(folder / name, text)
    for name in markdown.PICTURES.keys() - drawn.keys():
        durable.remove(folder / "pictures" / name)


def comparable(report: Report, others: Mapping[str, Report]) -> Others:
    """Other runs with their names; raises ConfigError where one was tested on other images."""
    for name, other in others.items():
        if data_of(other) != data_of(report):
            raise ConfigError(
                f"{name} was trained or tested on other images ({data_of(other)}, this run on {data_of(report)}), so "
                "their accuracies cannot stand in one picture; leave it out, or see `compress compare`"
            )
    return tuple(others.items())
