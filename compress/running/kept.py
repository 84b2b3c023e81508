"""Finished stages on disk: each in a folder under a key of everything that determines it.

A folder is written under a temporary name and renamed when it is whole, so that one that has its name is complete. Its
stage.json is written last and has the SHA-256 of every other file and of itself: nothing is taken over that is not, bit
for bit, what was written.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import net as nets
from compress.errors import ArtifactError
from compress.files import checksums, durable
from compress.net import Net

CHECKPOINTS = "checkpoints"
SUMMARY = "stage.json"


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


def unfinished_of(folder: Path) -> Path:
    """The folder in which a stage works, beside the one that it will become."""
    return folder.with_name(folder.name + durable.UNFINISHED)


def start(folder: Path) -> Path:
    """A folder to work in, empty but for the checkpoints of an earlier process that did not come to the end.

    Raises ResourceError where it cannot be made.
    """
    unfinished = unfinished_of(folder)
    if unfinished.is_symlink() or unfinished.is_file():
        durable.remove(unfinished)
    for each in durable.folder(unfinished).iterdir():
        if each.is_symlink() or not each.is_dir():
            durable.remove(each)
        elif each.name != CHECKPOINTS:
            shutil.rmtree(each, ignore_errors=True)
    return unfinished


def give_up(unfinished: Path) -> None:
    """Leave nothing of a stage that did not come to its end but its checkpoints, or all that only lacks its name."""
    if not any((unfinished / CHECKPOINTS).glob("*")) and not (unfinished / SUMMARY).exists():
        shutil.rmtree(unfinished, ignore_errors=True)


def finish(unfinished: Path, result: Finished) -> None:
    """Write a result into the folder that `start` made and give it its name. Raises ResourceError.

    Checkpoints go when all else is there: at no instant is there less than what the stage has come to.
    """
    nets.save(result.net, unfinished)
    for name, net in result.beside.items():
        nets.save(net, unfinished / name)
    summary = {
        "stage": result.stage,
        "key": result.key,
        "seconds": result.seconds,
        "beside": [*result.beside],
        "notes": result.notes,
        "warnings": result.warnings,
        "files": checksums.digests(unfinished, _files(unfinished)),
    }
    checksums.write(unfinished / SUMMARY, summary)
    _put_in_place(unfinished, result.folder)


def load(folder: Path) -> Finished | None:
    """The result in a folder, None where there is none; raises ArtifactError where it is damaged.

    One that was whole when its process died, and only lacked its name, gets it now.
    """
    if not folder.is_dir():
        unfinished = unfinished_of(folder)
        if not (unfinished / SUMMARY).is_file() or not _whole(unfinished):
            return None
        _put_in_place(unfinished, folder)
    summary = _checked(folder)
    path = folder / SUMMARY
    try:
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


def require_whole(folder: Path) -> None:
    """See that the net of a stage, or one beside it in a folder of the stage's, is as it was written.

    Raises ArtifactError that names the file.
    """
    _checked(folder if (folder / SUMMARY).exists() else folder.parent)


def read_curve(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The records of a train.jsonl, none where nothing was trained; half a line at its end is left out."""
    return tuple(json.loads(line) for line in durable.lines(path))


def _put_in_place(unfinished: Path, folder: Path) -> None:
    shutil.rmtree(unfinished / CHECKPOINTS, ignore_errors=True)
    durable.rename(unfinished, folder)


def _checked(folder: Path) -> dict[str, Any]:
    """What stage.json says of a folder; raises ArtifactError where any file is not as it was written."""
    summary = checksums.read(folder / SUMMARY)
    for name, what in checksums.damage(folder, summary.get("files", {})).items():
        raise ArtifactError(f"{folder / name} {what}")
    return summary


def _whole(folder: Path) -> bool:
    try:
        _checked(folder)
    except ArtifactError:
        return False
    return True


def _files(folder: Path) -> Iterator[Path]:
    """All files of a stage but its checkpoints."""
    for path in folder.rglob("*"):
        if path.is_file() and CHECKPOINTS not in path.relative_to(folder).parts:
            yield path
