"""report.json: the same figures for machines, and the way back from them to a Report."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import compress.report.wording as wording
from compress.config import described
from compress.errors import ArtifactError
from compress.report.content import Report
from compress.report.legible import legible
from compress.spelling import nearest_file

FILE = "report.json"


def render(report: Report) -> str:
    """The text of report.json; figures that are not finite are written as null."""
    content = asdict(report)
    content["sentence"] = wording.sentence(report)
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(folder: Path) -> Report:
    """The report that was written to `folder`.

    Raises ArtifactError where its report.json is missing, unreadable or not such a report.
    """
    path = folder / FILE
    try:
        return legible(TypeAdapter(Report).validate_json(path.read_bytes()))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. {_why_missing(folder)}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first, *rest = described(error)
        more = f" (and {len(rest)} more)" if rest else ""
        raise ArtifactError(
            f"{path} is damaged or no report: {first}{more}. Run the pipeline again; what is done is kept."
        ) from None


def _why_missing(folder: Path) -> str:
    stages = sorted(each.parent.name for each in folder.glob("stages/*/stage.json"))
    if stages:
        done = f"finished {', '.join(stages)} and no report"
        return f"The run there {done}: run the pipeline again, what is done is kept."
    if (folder / "stages").is_dir():
        return "The run there has not finished a stage: run the pipeline again."
    near = "" if folder.is_dir() else nearest_file(folder, folder=True)
    return f"Give the folder of a finished run.{near}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
