"""How much of a run is done, and about how long the rest takes: from what it plans and how fast it has been so far."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.events import Event


@dataclass(frozen=True)
class Piece:
    """One net to be made: its `work` in any unit that is the same for all, and the `kind` of net that does it."""

    name: str
    work: float
    kind: str


class Remaining:
    """Listens to a run that makes `pieces` in this order, each one begun or found finished.

    A kind of net that has not been trained yet is taken to be as fast as the last one that was.
    """

    def __init__(self, pieces: Sequence[Piece], clock: Callable[[], float] = time.monotonic) -> None:
        self.pieces, self.clock = pieces, clock
        self.at, self.done = -1, 0.0  # the piece under way, and how much of it
        self.began = (0.0, 0.0)  # when its training was first heard of, and how much was done by then
        self.stage_left_s: float | None = None
        self.speeds: dict[str, float] = {}  # seconds for a unit of work, the latest last

    def __call__(self, event: Event) -> None:
        """Hear of an event."""
        kind = event["event"]
        if kind in ("stage", "unchanged"):
            self.at, self.done, self.stage_left_s = self.at + 1, float(kind == "unchanged"), None
            self.began = (0.0, 0.0)
        elif kind in ("step", "epoch"):
            self.trained(event)
        elif kind == "stage finished":
            self.done, self.stage_left_s = 1.0, 0.0
            self.measured(event["seconds"], 1.0)

    def trained(self, event: Event) -> None:
        """Take in how far a training is; one of several in a stage only knows of its own end."""
        self.done = ((event["epoch"] - 1) * event["steps"] + event["step"]) / (event["epochs"] * event["steps"])
        now = self.clock()
        if not self.began[0]:
            self.began = (now, self.done)
        left = event["left_s"]
        if "phase" in event:
            spent, more = now - self.began[0], self.done - self.began[1]
            left = spent / more * (1 - self.done) if more > 0 else None
        self.stage_left_s = left
        if left is not None and self.done < 1:
            self.measured(left, 1 - self.done)

    def measured(self, seconds: float, share: float) -> None:
        """Remember how fast nets of the present kind are trained."""
        piece = self.piece
        if piece is not None and piece.work > 0 and seconds > 0:
            self.speeds.pop(piece.kind, None)
            self.speeds[piece.kind] = seconds / (share * piece.work)

    @property
    def piece(self) -> Piece | None:
        """The piece under way."""
        return self.pieces[self.at] if 0 <= self.at < len(self.pieces) else None

    @property
    def share(self) -> float | None:
        """The share of the run's work that is done; None where there is none to count."""
        total = sum(piece.work for piece in self.pieces)
        piece = self.piece
        done = sum(each.work for each in self.pieces[: max(self.at, 0)]) + (self.done * piece.work if piece else 0)
        return min(done / total, 1.0) if total else None

    @property
    def left_s(self) -> float | None:
        """Seconds that all trainings still take, None before anything was measured."""
        if not self.speeds:
            return None
        latest = next(reversed(self.speeds.values()))
        now, left = self.piece, self.stage_left_s
        if left is None:
            left = (1 - self.done) * now.work * self.speeds.get(now.kind, latest) if now else 0.0
        return left + sum(each.work * self.speeds.get(each.kind, latest) for each in self.pieces[self.at + 1 :])

    @property
    def all_made(self) -> bool:
        """Whether no net is left to be made."""
        return self.at == len(self.pieces) - 1 and self.done >= 1
