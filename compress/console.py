"""What a person reads: results, errors, and names that a terminal must not take for orders."""

import errno
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compress.errors import CompressError, ResourceError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_SAID = re.compile(r"No space left on device|os error (27|28|122)\b")
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
BAD_PATH = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)
WIDTH = 110  # columns off a terminal
WIDE = 10_000
# What a narrow terminal can do without, the least wanted first.
SPARED = ("params", "95 %", "agree %", "MMAC")
# Control characters, those that turn the direction of what follows, halves of surrogates, what XML has no place for.
UNSHOWN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def plain(text: str) -> str:
    """Text without the characters that could write to a terminal, or turn a line, behind one's back."""
    return UNSHOWN.sub("�", text)


def one_line(text: str) -> str:
    """A name as it is shown: `plain`, and on one line."""
    return plain(" ".join(text.split()))


def say(text: str, *, err: bool = False) -> None:
    """Print a result, whatever names it holds."""
    typer.echo(plain(text), err=err)


def marked(text: object) -> str:
    """Anything as text for rich, which would take `[bold]` for an order."""
    return escape(one_line(str(text)))


def clock(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 10 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def show_rows(report: Any) -> None:
    """Print the figures of a run's nets as a table."""
    columns: dict[str, list[str]] = {}
    for row in (*report.rows, *report.alternatives):
        cells = {
            "net": marked(row.net), "top-1 %": f"{row.top1_onnx:.2f}",
            "95 %": f"{row.top1_low:.1f}–{row.top1_high:.1f}", "agree %": f"{row.agreement:.2f}",
            "params": f"{row.params:,}", "MMAC": f"{row.macs / 1e6:.2f}", "kB": f"{row.bytes / 1000:,.0f}",
            "ms": f"{row.latency_ms.p50:.3f}",
        }  # fmt: skip
        for head, cell in cells.items():
            columns.setdefault(head, []).append(cell)
    console = Console(emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    table = _table(columns)
    for head in SPARED:
        if console.measure(table, options=console.options.update_width(WIDE)).maximum <= console.width:
            break
        del columns[head]
        table = _table(columns)
    console.print(table)


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(*columns, box=None)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def explain(error: BaseException) -> tuple[str, int]:
    """One message and the exit code for whatever went wrong."""
    if isinstance(error, CompressError):
        return f"error: {plain(str(error))}", error.exit_code
    known = _resource(error)
    if known is not None:
        return f"error: {plain(known)}", ResourceError.exit_code
    return (
        f"this is a bug of compress: {plain(f'{type(error).__name__}: {error}')}\n"
        "--debug shows where; please report it with the pipeline file",
        1,
    )


def _resource(error: BaseException) -> str | None:
    """A sentence for errors of disk, permissions and memory; None for others."""
    number, text = getattr(error, "errno", None), str(error)
    place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
    # Libraries written in C++ and Rust give the system's words, not its number.
    if number in NO_SPACE or NO_SPACE_SAID.search(text):
        free = shutil.disk_usage(".").free / 1e6
        return (
            f"the disk is full{place} ({free:.0f} MB free here); free some, or choose another folder with --out. "
            "Finished stages are kept"
        )
    if number in NO_ACCESS:
        return f"no permission to read or write{place}; mend it, or choose another folder with --out"
    if number in BAD_PATH and isinstance(error, OSError):
        return f"cannot read or write{place}: {error.strerror}; mend it, or choose another folder with --out"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory; lower training.batch_size, or the data's size. Finished stages are kept"
    return None
