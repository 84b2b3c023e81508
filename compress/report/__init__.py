"""Turns plain data into report.html, report.md, report.json and pictures. Knows no torch.

`write(report, folder)` writes all of them, `read(folder)` rebuilds the Report from report.json.
"""

import os
from pathlib import Path

from compress.errors import ResourceError
from compress.report import html, json, markdown, pictures
from compress.report.content import Curve, Layer, Limit, OverSeeds, Report, UnderCorruption, Verdict
from compress.report.json import read

__all__ = ["Curve", "Layer", "Limit", "OverSeeds", "Report", "UnderCorruption", "Verdict", "read", "write"]


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md, report.json and pictures/*.svg into `folder`, which is made if missing.

    The same report gives the same bytes. Each file is replaced as a whole, never left half written, and
    pictures of an earlier report that this one does not have are removed.

    Raises ResourceError where the folder cannot be written.
    """
    drawn = pictures.render(report)
    texts = {f"pictures/{name}": svg for name, svg in drawn.items()}
    texts[json.FILE] = json.render(report)
    texts["report.md"] = markdown.render(report, drawn)
    texts["report.html"] = html.render(report)
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for name in markdown.PICTURES.keys() - drawn.keys():
            (folder / "pictures" / name).unlink(missing_ok=True)
        for name, text in texts.items():
            _replace(folder / name, text)
    except OSError as error:
        raise ResourceError(
            f"the report cannot be written to {folder}: {error.strerror}. "
            "Check its permissions and free space, or choose another folder with --out."
        ) from None


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(text.encode())
    os.replace(part, path)
