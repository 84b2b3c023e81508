"""The figures of a run that make curves, for programs that draw them: one curve a figure and net."""

from typing import NamedTuple

from compress.events import Event

FIGURES = ("loss", "accuracy", "val_accuracy", "lr", "images_per_s", "seconds")


class Point(NamedTuple):
    """Figures of a net's training after so many epochs, or of a search after so many candidates."""

    net: str
    step: int
    figures: dict[str, float]


class Curves:
    """Listens to a run's events for points; of two nets of the same stage each has a name of its own."""

    def __init__(self) -> None:
        self.net = ""

    def point(self, event: Event) -> Point | None:
        """The point that an event stands for, None for any other; what was told before an interruption is no other."""
        kind = event["event"]
        if kind == "stage":
            self.net = event["folder"].rpartition("-")[0]  # `0-distill-<key>`: the key says nothing to people
        if event.get("again") or kind not in ("epoch", "progress"):
            return None
        found = {key: float(event[key]) for key in FIGURES if event.get(key) is not None}
        if kind == "progress":
            return (
                Point(self.net or event["stage"], event["done"], {"candidate": found["val_accuracy"]})
                if ("val_accuracy" in found)
                else None
            )
        found |= {f"loss_{name}": float(value) for name, value in _named(event.get("losses")).items()}
        return Point(self.net or event["stage"], event["epoch"], found)


def _named(losses: object) -> dict[str, float]:
    return losses if isinstance(losses, dict) else {}
