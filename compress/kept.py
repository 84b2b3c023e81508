"""Finished stages on disk: each in a folder under a key of everything that determines it.

A folder is written under a temporary name and renamed when it is whole, so that one that has its name is complete.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import net as nets
from compress.errors import ArtifactError
from compress.net import Net

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Finished:
    """A stage's result: its net, variants beside it by name, what it cost and what it had to say.

    `seconds` is what it took when it was run; `curve` has one record for each epoch.
    """

    stage: str
    key: str
    folder: Path
    net: Net
    seconds: float
    beside: Mapping[str, Net] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    curve: tuple[Mapping[str, Any], ...] = ()


def start(folder: Path) -> Path:
    """An empty folder to work in, beside the one that it will become."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish(unfinished: Path, result: Finished) -> None:
    """Write a result into the folder that `start` made and give it its name."""
    nets.save(result.net, unfinished)
    for name, net in result.beside.items():
        (unfinished / name).mkdir()
        nets.save(net, unfinished / name)
    summary = {
        "stage": result.stage,
        "key": result.key,
        "seconds": result.seconds,
        "beside": [*result.beside],
        "notes": result.notes,
        "warnings": result.warnings,
    }
    (unfinished / "stage.json").write_text(json.dumps(summary, indent=1) + "\n")
    shutil.rmtree(result.folder, ignore_errors=True)
    unfinished.rename(result.folder)


def load(folder: Path) -> Finished | None:
    """The result in a folder, None where there is none; raises ArtifactError where it is damaged."""
    if not folder.is_dir():
        return None
    path = folder / "stage.json"
    try:
        summary = json.loads(path.read_text())
        return Finished(
            stage=summary["stage"],
            key=summary["key"],
            folder=folder,
            net=nets.load(folder),
            seconds=float(summary["seconds"]),
            beside={name: nets.load(folder / name) for name in summary["beside"]},
            notes=tuple(summary["notes"]),
            warnings=tuple(summary["warnings"]),
            curve=read_curve(folder / "train.jsonl"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is missing or damaged; delete {folder} to run the stage again") from error


def read_curve(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The records of a train.jsonl, none where nothing was trained."""
    return tuple(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else ()
