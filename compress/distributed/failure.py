"""How one process tells the others of an error, so that all end alike."""

import re
from typing import Any

from compress import errors
from compress.errors import CompressError, ResourceError

SOURCE = re.compile(r"^\[[^\]]*\] *")  # of the library, that its words begin with


class Lost(ResourceError):
    """Another process is gone or silent, and left no word of why."""

    def __init__(self, rank: int, size: int, what: str, seconds: float, error: RuntimeError) -> None:
        said = SOURCE.sub("", str(error).strip()).partition("\n")[0].partition(". ")[0]
        super().__init__(
            f"process {rank} of {size} lost another one while {what}: it was ended from outside, or gave no answer for "
            f"{seconds:g} s ({said}). The same command, started again, goes on from the last checkpoint"
        )


def described(error: BaseException) -> dict[str, Any]:
    """An error as JSON can say it."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return {"exit": error.code if isinstance(error, SystemExit) else 130}
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"kinds": kinds, "text": str(error), "errno": getattr(error, "errno", None)}


def rebuilt(said: dict[str, Any], before: str = "") -> BaseException:
    """The error that `described` told of, of the nearest known class, so that it ends with the same exit code."""
    if "exit" in said:
        return SystemExit(said["exit"])
    if isinstance(said["errno"], int):
        return OSError(said["errno"], before + said["text"])
    known: dict[str, Any] = {**vars(errors), "MemoryError": MemoryError}
    kind = next((known[name] for name in said["kinds"] if name in known), None)
    if kind is None:
        return CompressError(f"{before}{said['kinds'][0]}: {said['text']}")  # a bug, as it is where it was raised
    return kind(before + said["text"])  # type: ignore[no-any-return]
