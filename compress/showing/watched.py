"""Everyone who watches a run, together."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.events import Event, Listener
from compress.showing.json_lines import JsonLines
from compress.showing.remaining import Piece
from compress.showing.screen import Screen


@dataclass(frozen=True)
class Wanted:
    """What a user asked to see: a quiet terminal, JSON lines instead, TensorBoard, a project of Weights & Biases."""

    quiet: bool = False
    as_json: bool = False
    tensorboard: bool = False
    wandb: str | None = None


@dataclass
class Watchers:
    """Listens to a run's events and passes each on to all; `ended` tells them of the outcome before they close."""

    listeners: Sequence[Listener] = ()
    outcome: Any = field(default=None, init=False)

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        for listener in self.listeners:
            listener(event)

    def ended(self, outcome: Any) -> Any:
        """Hear of the outcome, which is given back."""
        self.outcome = outcome
        return outcome


@contextmanager
def watched(
    wanted: Wanted, out: Path, name: str, config: dict[str, Any], pieces: Sequence[Piece] = ()
) -> Iterator[Watchers]:
    """Whoever is to watch a run in the folder `out`, until it ends.

    Raises ConfigError for a package that is not installed, before anything is begun.
    """
    watchers = Watchers()
    with ExitStack() as stack:
        drawing: list[Any] = []
        if wanted.tensorboard:
            from compress.showing.tensorboard import TensorBoard

            drawing.append(TensorBoard(out))
        if wanted.wandb:
            from compress.showing.weights_and_biases import WeightsAndBiases

            drawing.append(WeightsAndBiases(out, wanted.wandb, name, config))
        for each in drawing:
            stack.callback(_close, each, watchers)
        screen = stack.enter_context(Screen(wanted.quiet or wanted.as_json, pieces))
        watchers.listeners = [JsonLines() if wanted.as_json else screen, *drawing]
        yield watchers


def _close(drawing: Any, watchers: Watchers) -> None:
    drawing.close(watchers.outcome)
