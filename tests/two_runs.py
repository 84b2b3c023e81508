"""Pairs of processes that run a pipeline together, for test_distributed_runs.py.

Each has the variables that torchrun would set and is a fork of this one, which has imported everything: the imports of
a process take longer than such a run.

two_runs.py FOLDER: makes the runs of FOLDER/runs.json one after the other. Writes for each process NAME-RANK.log, what
it printed, and NAME-RANK.jsonl, its rows of each batch; and ended.json, how each one ended and when.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from tiny import Tiny
from torch import Tensor, nn
from torch.distributed import TCPStore

import compress
from compress import cli
from compress.config import Config
from compress.distributed.slices import own
from compress.errors import ExportError
from compress.files.lock import locked
from compress.losses import LOSSES
from compress.losses.base import Batch
from compress.models import MODELS
from compress.running.conclusion import Conclusion, Outcome
from compress.weighting import Weight

PROCESSES = 2


class Smooth(Tiny):
    """Without kinks: beside one, the last bit of an activation may decide about a whole gradient."""

    name: ClassVar[str] = "smooth"

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        net: Any = super().__call__(classes, image)
        net.stem[2], net.middle[2] = nn.SiLU(), nn.SiLU()
        return net  # type: ignore[no-any-return]


class Watched(Config):
    """Adds nothing to the sum of the losses; writes down this process's images, and sends it signals."""

    name: ClassVar[str] = "watched"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    weight: Weight = 1.0
    log: ClassVar[Path | None] = None
    signals: ClassVar[dict[str, int]] = {}
    calls: ClassVar[int] = 0

    def __call__(self, batch: Batch) -> Tensor:
        if self.log is not None:
            Watched.calls += 1
            if number := self.signals.get(str(self.calls)):
                self.log.with_suffix(".signalled").write_text(str(time.time()))
                os.kill(os.getpid(), number)
            with self.log.open("a") as file:
                file.write(json.dumps([batch.epoch, len(batch.indices), own(batch.indices).tolist()]) + "\n")
        return 0.0 * batch.student.logits.sum()


MODELS.setdefault(Smooth.name, Smooth)
LOSSES.setdefault(Watched.name, Watched)


def unproven(*_: Any) -> Outcome:
    """In place of a conclusion, for runs of which the nets are enough."""
    raise ExportError("not proven")


def called(pipeline: dict[str, Any], out: str) -> None:
    """Run a pipeline from Python, and once more; what comes back is printed."""
    for _ in range(2):
        events: list[Any] = []
        rows = compress.run(pipeline, out=out, device="cpu", emit=events.append)
        kinds = sorted({event["event"] for event in events})
        print(json.dumps([str(rows.folder), rows.verdict, [row.top1_onnx for row in rows], kinds]))


def forked(folder: Path, run: dict[str, Any], rank: int, port: int) -> int:
    """Start a process of a run; gives its id."""
    if pid := os.fork():
        return pid
    place = folder / f"{run['name']}-{rank}"
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    Watched.log, Watched.signals = place.with_suffix(".jsonl"), run["signals"][rank]
    if "fails" in run:
        Conclusion.draw = unproven  # type: ignore[method-assign]
    output = os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv, code = ["compress", *run.get("words", [])], 1
    try:
        with chdir(folder):
            if "words" in run:
                cli.main()
            else:
                called(run["pipeline"], run["name"])
                code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def made(folder: Path, run: dict[str, Any]) -> list[list[float]]:
    """The exit code and the time of the end of each process of a run."""
    # As torchrun does, which outlives the processes that it starts.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with locked(folder / run["held"]) if "held" in run else nullcontext():
        processes = [forked(folder, run, rank, store.port) for rank in range(PROCESSES)]
        ended: dict[int, list[float]] = {}
        while len(ended) < PROCESSES:
            pid, status = os.wait()
            ended[pid] = [os.waitstatus_to_exitcode(status), time.time()]
    return [ended[pid] for pid in processes]


def make_operators_once() -> None:
    """As in conftest: torch.onnx makes a table of operators at every export, which takes longer than the export."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        ONNXRegistry.from_torchlib()
    except (ImportError, AttributeError):
        return


@contextmanager
def quickly() -> Iterator[None]:
    """Without what takes most of a small run's time and is the same in several processes."""
    with (
        patch("compress.running.runner.preflight", lambda *_, **__: None),
        patch("compress.measure.latency.TURN_S", 0.002),
        patch("compress.running.runner.endings_of", lambda pipeline, *_: [None] * len(pipeline.stages)),
    ):
        yield


def main(folder: Path) -> None:
    """All runs."""
    make_operators_once()
    with quickly():
        ended = {run["name"]: made(folder, run) for run in json.loads((folder / "runs.json").read_text())}
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
