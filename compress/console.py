"""What a person sees: a live line on a terminal while a run goes on, plain lines elsewhere; results; errors."""

import errno
import re
import shutil
import sys
import time
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from compress.errors import CompressError, ResourceError
from compress.events import Event

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_SAID = re.compile(r"No space left on device|os error (27|28|122)\b")
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
BAD_PATH = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)
SAY_EVERY_S = 10.0
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


class Screen:
    """Listens to a run's events and shows them; used as a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, highlight=False, emoji=False)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(24),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console, transient=True,
        )  # fmt: skip
        self.task: TaskID | None = None
        self.said = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:  # off a terminal it would print an empty line
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        kind = event["event"]
        if event.get("again"):
            return  # shown before an interruption, and told again for the files of the run alone
        if kind in ("step", "epoch"):
            self.training(event)
        elif kind == "progress":
            self.advancing(event)
        elif kind == "stage":
            self.say(f"[bold]{marked(event['stage'])}[/bold]: started")
        elif kind == "unchanged":
            stage, folder = marked(event["stage"]), marked(event["folder"])
            self.say(f"[bold]{stage}[/bold]: unchanged, taken over from {folder}")
        elif kind == "stage finished":
            self.close()
            self.say(f"[bold]{marked(event['stage'])}[/bold]: finished in {clock(event['seconds'])}")
        elif kind == "seed":
            self.say(f"seed {event['seed']} of 0 to {event['of'] - 1}")
        elif kind == "preflight":
            self.say("checking that every net can be built, pruned, quantized and exported")
        elif kind == "exporting":
            self.say(f"[bold]{marked(event['net'])}[/bold]: exporting, measuring accuracy of the file")
        elif kind == "measuring":
            self.say(f"timing {event['files']} files in turns")
        elif kind == "warning":
            self.say(f"[yellow]warning:[/yellow] {escape(plain(event['text']))}")
        else:
            self.after_interruption(event)

    def after_interruption(self, event: Event) -> None:
        """Say what a run found of an earlier one in its folder, and what it made of numbers that went wrong."""
        kind = event["event"]
        if kind == "resumed" and event["step"]:
            self.say(f"[bold]{marked(event['stage'])}[/bold]: taken up again at step {event['step']}")
        elif kind == "mended":
            self.say(f"[yellow]warning:[/yellow] {marked(event['stage'])}: {marked(event['text'])}")
        elif kind == "taken over":
            dead = f"pid {event['pid']} on host {marked(event['host'])}"
            self.say(f"the last run here, {dead}, ended without a word; this one takes over")
        elif kind == "changed":
            self.say(marked("since the last run here: " + "; ".join(event["fields"])))
            for what, stages in (("made again", event["rerun"]), ("taken over", event["kept"])):
                if stages:
                    self.say(marked(f"{what}: {', '.join(stages)}"))

    def training(self, event: Event) -> None:
        """Show how far a training is: a moving bar on a terminal, a line an epoch elsewhere."""
        figures = (
            f"epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.3f}  accuracy {event['accuracy']:.1f} %  "
            f"{event['images_per_s']:.0f} img/s  {clock(event['left_s'])} left"
        )
        if event["event"] == "epoch":
            figures += f"  val {event['val_accuracy']:.1f} %"
        if not self.live:
            if event["event"] == "epoch":
                self.say(f"{marked(event['stage'])}: {figures}")
            return
        total = event["epochs"] * event["steps"]
        done = (event["epoch"] - 1) * event["steps"] + event["step"]
        if self.task is None:
            self.task = self.progress.add_task(one_line(event["stage"]), total=total, figures="")
        self.progress.update(self.task, completed=done, total=total, figures=figures)

    def advancing(self, event: Event) -> None:
        """Show how far a search or an analysis is: a moving bar on a terminal, a line every ten seconds elsewhere."""
        figures = f"{event['doing']} {event['done']}/{event['of']}  {event['figures']}"
        if not self.live:
            if event["done"] == event["of"] or time.monotonic() - self.said > SAY_EVERY_S:
                self.said = time.monotonic()
                self.say(marked(f"{event['stage']}: {figures}"))
            return
        if self.task is None:
            self.task = self.progress.add_task(one_line(event["stage"]), total=event["of"], figures="")
        self.progress.update(self.task, completed=event["done"], total=event["of"], figures=one_line(figures))
        if event["done"] == event["of"]:
            self.close()

    def close(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, soft_wrap=True)


def show_rows(report: Any) -> None:
    """Print the figures of a run's nets as a table."""
    table = Table("net", "top-1 %", "95 %", "agree %", "params", "MMAC", "kB", "ms", box=None)
    for row in (*report.rows, *report.alternatives):
        table.add_row(
            marked(row.net), f"{row.top1_onnx:.2f}", f"{row.top1_low:.1f}–{row.top1_high:.1f}", f"{row.agreement:.2f}",
            f"{row.params:,}", f"{row.macs / 1e6:.2f}", f"{row.bytes / 1000:,.0f}", f"{row.latency_ms.p50:.3f}",
        )  # fmt: skip
    Console(width=110, emoji=False).print(table)


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
