"""Curves for TensorBoard, in the folder `tensorboard` of the run: what it calls a run is one net here."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.errors import ConfigError
from compress.events import Event
from compress.showing.curves import Curves, Point

FOLDER = "tensorboard"
MISSING = "--tensorboard: the package tensorboard is not installed; `pip install -e '.[tensorboard]'` does that"


class TensorBoard:
    """Listens to a run's events and writes the figures of every epoch.

    Raises ConfigError where the package is not installed.
    """

    def __init__(self, out: Path) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(MISSING)
        from torch.utils.tensorboard import SummaryWriter

        self.writer_to: Any = SummaryWriter
        self.folder = out / FOLDER
        self.curves = Curves()
        self.writer: Any = None
        self.last: tuple[str, int] = ("", 0)

    def __call__(self, event: Event) -> None:
        """Write an event's figures, if it has any."""
        point = self.curves.point(event)
        if point is not None:
            self.write(point)

    def write(self, point: Point) -> None:
        """Write a point; what an earlier attempt wrote from there on is no longer shown."""
        net, step = self.last
        if self.writer is None or point.net != net or point.step <= step:
            self.close()
            self.writer = self.writer_to(str(self.folder / point.net), purge_step=point.step)
        self.last = point.net, point.step
        for name, value in point.figures.items():
            self.writer.add_scalar(name, value, point.step)
        self.writer.flush()

    def close(self, outcome: Any = None) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
