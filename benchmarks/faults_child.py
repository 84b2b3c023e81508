"""A `compress` in a process of its own that has all modules already, and that can be made to die at a chosen place."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.onnx

from compress import cli
from compress.export import onnx as exporting
from compress.files import durable
from compress.running import conclusion, kept, proof, runner
from compress.training import checkpoint, loop, state

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "tiny.py"

# Where a process can be killed: what is called there, and whether it dies before or after the call.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "before a step": (loop.Loop, "step", True),
    "between gradients and optimiser": (loop.Loop, "gradients", False),
    "between optimiser and schedule": (state.State, "advance", True),
    "after a step": (state.State, "advance", False),
    "before a checkpoint": (checkpoint.Keeper, "_write", True),
    "after a checkpoint": (checkpoint.Keeper, "_write", False),
    "before fsync": (os, "fsync", True),
    "before a rename": (os, "replace", True),
    "after a rename": (os, "replace", False),
    "before a stage is put in place": (kept, "_put_in_place", True),
    "after a stage is put in place": (kept, "_put_in_place", False),
    "during an export": (exporting.Exporter, "__call__", True),
    "after an export": (exporting.Exporter, "__call__", False),
    "before a file is proven": (proof.Prover, "layers", True),
    "before files are timed": (conclusion, "measure_with_control", True),
    "before the report": (runner, "write", True),
    "after the report": (runner, "write", False),
}
HALF = "in the middle of a write"


@dataclass(frozen=True)
class Death:
    """Where a process is killed: at the `count`-th time that it comes to `point`, or after `seconds`."""

    point: str = ""
    count: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.point} {self.count}" if self.point else f"after {self.seconds:.2f} s"


class Runs:
    """Starts processes that are forked from one that has loaded everything."""

    def __init__(self) -> None:
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["faults_child"])

    def start(self, words: Sequence[str], log: Path, death: Death | None = None) -> BaseProcess:
        """Begin a `compress` with these words; what it says goes to `log`."""
        process = self.context.Process(target=_main, args=(list(words), log, death))
        process.start()
        return process

    def run(self, words: Sequence[str], log: Path, death: Death | None = None, limit_s: float = 300.0) -> int:
        """The exit code, minus the signal's number where one ended it; one that hangs raises TimeoutError."""
        process = self.start(words, log, death)
        process.join(death.seconds if death is not None and death.seconds else limit_s)
        if process.is_alive():
            process.kill()
            process.join()
            if death is None or not death.seconds:
                raise TimeoutError(f"`compress {' '.join(words)}` took more than {limit_s:.0f} s; see {log}")
        assert process.exitcode is not None
        return process.exitcode


def _main(words: list[str], log: Path, death: Death | None) -> None:
    """What the new process does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    file = log.open("a")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    if death is not None and death.point:
        arm(death)
    sys.argv = ["compress", *words]
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            cli.main()
        except SystemExit as end:
            file.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)


def arm(death: Death) -> None:
    """See that this process dies there, as with SIGKILL: nothing gets a chance to tidy up."""
    left = [death.count]
    if death.point == HALF:
        patched(durable, "write", functools.partial(_half, left))
        return
    owner, name, before = POINTS[death.point]

    def dying(real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        left[0] -= 1
        if before and left[0] == 0:
            die()
        found = real(*args, **more)
        if not before and left[0] == 0:
            die()
        return found

    patched(owner, name, dying)


def _half(left: list[int], real: Callable[..., Any], path: Path, content: bytes | str, **more: Any) -> Any:
    left[0] -= 1
    if left[0]:
        return real(path, content, **more)
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + durable.UNFINISHED).write_bytes(raw[: len(raw) // 2])
    die()
    return None


def patched(owner: Any, name: str, instead: Callable[..., Any]) -> None:
    """Let `instead(real, …)` be called in the place of a function or method."""
    real = getattr(owner, name)
    setattr(owner, name, functools.wraps(real)(lambda *args, **more: instead(real, *args, **more)))


def die() -> None:
    """Be killed, now."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal may take a moment
