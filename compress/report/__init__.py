"""Turns plain data into report.html, report.md, report.json and pictures. Knows no torch.

`write(report, folder)` writes all of them, `read(folder)` rebuilds the Report from report.json.
"""

from pathlib import Path

from compress import durable
from compress.report import html, json, markdown, pictures
from compress.report.content import Curve, Layer, Limit, OverSeeds, Report, UnderCorruption, Verdict
from compress.report.json import read
from compress.report.legible import legible

__all__ = ["Curve", "Layer", "Limit", "OverSeeds", "Report", "UnderCorruption", "Verdict", "read", "write"]


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md, report.json and pictures/*.svg into `folder`, which is made if missing.

    The same report gives the same bytes. Each file is replaced as a whole, never left half written, and
    pictures of an earlier report that this one does not have are removed.

    Raises ResourceError where the folder cannot be written.
    """
    report = legible(report)
    drawn = pictures.render(report)
    texts = {f"pictures/{name}": svg for name, svg in drawn.items()}
    texts[json.FILE] = json.render(report)
    texts["report.md"] = markdown.render(report, drawn)
    texts["report.html"] = html.render(report)
    for name, text in texts.items():
        durable.write(folder / name, text)
    for name in markdown.PICTURES.keys() - drawn.keys():
        durable.remove(folder / "pictures" / name)
