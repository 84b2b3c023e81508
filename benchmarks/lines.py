"""A line of a benchmark's table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.environment import environment

ROUNDING = 1e-9  # a mean of per cents that is the bound itself meets it


@dataclass(frozen=True)
class Line:
    """One figure: what, the bound in words, what was measured, whether it holds; None where nothing is promised."""

    what: str
    bound: str
    measured: str
    ok: bool | None = None


def at_most(what: str, value: float, bound: float | None, words: str = "{:.2f}") -> Line:
    """A figure that is to stay under a bound, if there is one; `words` is how it is written."""
    if bound is None:
        return Line(what, "", words.format(value))
    return Line(what, f"≤ {bound:g}", words.format(value), value <= bound + ROUNDING)


def at_least(what: str, value: float, bound: float | None, words: str = "{:.2f}") -> Line:
    """A figure that is to reach a bound, if there is one; `words` is how it is written."""
    if bound is None:
        return Line(what, "", words.format(value))
    return Line(what, f"≥ {bound:g}", words.format(value), value >= bound - ROUNDING)


def conclude(lines: Sequence[Line], path: Path | None) -> bool:
    """Print the table and write the record, or with None say that there is none; gives whether a bound was missed."""
    show(lines)
    if path is None:
        print("a quick run: these figures mean nothing, and nothing was recorded")
        return False
    record(lines, environment(), path)
    return any(line.ok is False for line in lines)


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    width = max(len(line.what) for line in lines)
    for line in lines:
        mark = {True: "ok", False: "MISS", None: ""}[line.ok]
        print(f"{mark:4}  {line.what:{width}}  {line.bound:8}  {line.measured}")


def record(lines: Sequence[Line], environment: dict[str, Any], path: Path) -> None:
    """Write the figures, in the place of earlier ones of the same name; all others stay."""
    kept = json.loads(path.read_text())["lines"] if path.exists() else []
    kept = [line for line in kept if line["what"] not in {new.what for new in lines}]
    whole = {"environment": environment, "lines": kept + [asdict(line) for line in lines]}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
