"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from compress.console import clock, marked, one_line
from compress.events import Event
from compress.showing.bars import Bar, Bars
from compress.showing.remaining import Piece, Remaining
from compress.showing.said import figures, said

SAY_EVERY_S = 10.0


class Screen:
    """Listens to a run's events and shows them; used as a context manager. `pieces` are what the run will make."""

    def __init__(self, quiet: bool = False, pieces: Sequence[Piece] = ()) -> None:
        self.console = Console(file=sys.stderr, highlight=False, emoji=False)
        self.quiet = quiet
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self.remaining = Remaining(pieces)
        self.now: Bar | None = None  # the stage under way
        self.spoke = time.monotonic()
        self.display = Live(get_renderable=self.bars, console=self.console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.live:
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:  # off a terminal it would print an empty line
            self.display.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.get("again"):
            return  # shown before an interruption, and told again for the files of the run alone
        self.remaining(event)
        kind = event["event"]
        if kind in ("step", "epoch"):
            self.training(event)
        elif kind == "progress":
            self.advancing(event)
        else:
            if kind in ("stage", "stage finished", "unchanged", "exporting"):
                self.now = None
            line = said(event)
            if line is not None:
                self.say(line)

    def bars(self) -> Bars:
        """The run's bar and that of the stage under way, as they are now."""
        whole, piece = self.remaining, self.remaining.piece
        found = []
        if piece is not None and len(whole.pieces) > 1:
            texts, left = [f"net {whole.at + 1}/{len(whole.pieces)}"], whole.left_s
            if whole.all_made:
                texts = ["all nets made; proving and timing their files"]
            elif left is not None:
                texts.insert(0, f"≈ {clock(left)} left")
            found.append(Bar("run", whole.share, tuple(texts)))
        return Bars([*found, self.now] if self.now is not None else found)

    def training(self, event: Event) -> None:
        """Show how far a training is: its bar on a terminal; elsewhere a line an epoch, in long ones every ten
        seconds.
        """
        texts = figures(event, self.remaining.stage_left_s)
        self.now = Bar(one_line(event["stage"]), self.remaining.done, texts)
        if event["event"] == "epoch" or self.silent_for_long():
            self.off_terminal(f"{event['stage']}: {', '.join(texts)}")

    def advancing(self, event: Event) -> None:
        """Show how far a search or an analysis is, likewise."""
        texts = (f"{event['doing']} {event['done']}/{event['of']}", event["figures"])
        self.now = Bar(one_line(event["stage"]), event["done"] / max(event["of"], 1), tuple(map(one_line, texts)))
        if event["done"] == event["of"] or self.silent_for_long():
            self.off_terminal(f"{event['stage']}: {', '.join(texts)}")

    def silent_for_long(self) -> bool:
        """Whether nothing was said for ten seconds."""
        return time.monotonic() - self.spoke > SAY_EVERY_S

    def off_terminal(self, text: str) -> None:
        """Say what a bar shows where there is none."""
        if not self.live:
            self.say(marked(text))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.spoke = time.monotonic()
        if not self.quiet:
            self.console.print(text, soft_wrap=True)
