"""Curves and results for Weights & Biases; its own variables, such as WANDB_MODE=offline, hold as everywhere."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from compress.errors import ConfigError, ResourceError
from compress.events import Event
from compress.showing.curves import Curves

MISSING = "--wandb: the package wandb is not installed; `pip install -e '.[wandb]'` does that"


class WeightsAndBiases:
    """Listens to a run's events and logs the figures of every epoch, and those of the nets in the end.

    Raises ConfigError where the package is not installed, ResourceError where it cannot begin.
    """

    def __init__(self, out: Path, project: str, name: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(MISSING) from None
        self.begin: Callable[[], Any] = partial(wandb.init, project=project, name=name, dir=str(out), config=config)
        self.run: Any = None
        self.curves = Curves()
        self.known: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Log an event's figures, if it has any; the first event, when the folder is this run's alone, begins."""
        if self.run is None:
            self.run = self.begun()
        point = self.curves.point(event)
        if point is None:
            return
        step = f"{point.net}/epoch"
        if point.net not in self.known:
            self.known.add(point.net)
            self.run.define_metric(f"{point.net}/*", step_metric=step)
        self.run.log({step: point.step, **{f"{point.net}/{key}": value for key, value in point.figures.items()}})

    def begun(self) -> Any:
        """The run as Weights & Biases has it."""
        try:
            return self.begin()
        except Exception as error:
            first = " ".join(str(error).split())
            raise ResourceError(
                f"--wandb: Weights & Biases cannot begin: {first}. `wandb login` once, or set WANDB_MODE=offline"
            ) from error

    def close(self, outcome: Any = None) -> None:
        """Log what the nets came to, if the run has an outcome, and end; without one it counts as failed."""
        if self.run is None:
            return
        if outcome is not None:
            for row in outcome.report.rows:
                figures = {
                    "top1": row.top1_onnx, "bytes": row.bytes, "macs": row.macs, "latency_ms": row.latency_ms.p50
                }  # fmt: skip
                self.run.summary.update({f"{row.net}/{key}": value for key, value in figures.items()})
            self.run.summary.update({"verdict": outcome.report.verdict})
        self.run.finish(exit_code=1 if outcome is None else outcome.exit_code)
