"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

import re
import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from compress.events import Event

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text without the control characters that could write to a terminal behind one's back."""
    return CONTROL.sub("�", text)


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
        self.console = Console(file=sys.stderr, highlight=False)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[figures]}"),
            console=self.console, transient=True,
        )  # fmt: skip
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        kind = event["event"]
        if kind in ("step", "epoch"):
            self.training(event)
        elif kind == "stage":
            self.say(f"[bold]{event['stage']}[/bold]: training")
        elif kind == "unchanged":
            self.say(f"[bold]{event['stage']}[/bold]: unchanged, taken over from {event['folder']}")
        elif kind == "stage finished":
            self.close()
            self.say(f"[bold]{event['stage']}[/bold]: finished in {clock(event['seconds'])}")
        elif kind == "preflight":
            self.say("checking that every net can be built, pruned, quantized and exported")
        elif kind == "exporting":
            self.say(f"[bold]{escape(event['net'])}[/bold]: exporting, measuring accuracy of the file")
        elif kind == "measuring":
            self.say(f"timing {event['files']} files in turns")
        elif kind == "warning":
            self.say(f"[yellow]warning:[/yellow] {escape(plain(event['text']))}")

    def training(self, event: Event) -> None:
        figures = (
            f"epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.3f}  accuracy {event['accuracy']:.1f} %  "
            f"{event['images_per_s']:.0f} img/s  {clock(event['left_s'])} left"
        )
        if event["event"] == "epoch":
            figures += f"  val {event['val_accuracy']:.1f} %"
        if not self.live:
            if event["event"] == "epoch":
                self.say(f"{event['stage']}: {figures}")
            return
        total = event["epochs"] * event["steps"]
        done = (event["epoch"] - 1) * event["steps"] + event["step"]
        if self.task is None:
            self.task = self.progress.add_task(event["stage"], total=total, figures="")
        self.progress.update(self.task, completed=done, figures=figures)

    def close(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, soft_wrap=True)
