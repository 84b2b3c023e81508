"""A run for machines: each event as one JSON object a line, the result or the error last."""

import json
import math
import sys
from dataclasses import asdict
from typing import Any, TextIO

from compress.events import Event


class JsonLines:
    """Listens to a run's events and writes them to a file, at once."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file or sys.stdout

    def __call__(self, event: Event) -> None:
        """Write an event; one that was told before an interruption is not written again."""
        if not event.get("again"):
            self.file.write(f"{json_of(event)}\n")
            self.file.flush()


def result(outcome: Any) -> Event:
    """What a run came to, as its last event: the verdict, the exit code, the rows, and where the report stands."""
    report, folder = outcome.report, outcome.folder
    failure = outcome.failure
    return {
        "event": "result", "name": report.name, "verdict": report.verdict, "exit_code": outcome.exit_code,
        "failure": None if failure is None else str(failure), "folder": str(folder),
        "report": str(folder / "report.json"), "budget": [asdict(each) for each in report.budget],
        "rows": [asdict(row) for row in report.rows], "alternatives": [asdict(row) for row in report.alternatives],
        "baseline": report.baseline, "teacher": report.teacher,
    }  # fmt: skip


def json_of(value: Any, indent: int | None = None) -> str:
    """Anything of plain data as JSON; numbers that are not finite become null, which JSON has no other word for."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
