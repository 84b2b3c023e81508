"""The plain loop in a process of its own, so that no setting of ours, such as the allocator's, changes it."""

import multiprocessing
import time
from multiprocessing.connection import Connection

import torch
from distillation_plain import Pictures, PlainLoop

from compress.data.base import Data
from compress.models import MODELS


class Peer:
    """Takes its turn when it is asked to, and waits without working otherwise."""

    def __init__(self, student: str, teacher: str | None, data: Data, batch_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        given = (theirs, torch.get_num_threads(), student, teacher, data, batch_size)
        self.process = context.Process(target=_taking_turns, args=given, daemon=True)
        self.process.start()

    def steps(self, count: int) -> float:
        """Seconds that so many steps take."""
        self.ours.send(count)
        return float(self.ours.recv())

    def close(self) -> None:
        """End the process."""
        self.ours.send(0)
        self.process.join()


def _taking_turns(
    asked: Connection, threads: int, student: str, teacher: str | None, data: Data, batch_size: int
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    nets = [
        None if name is None else MODELS[name].model_validate({})(data.classes, data.image)  # type: ignore[attr-defined]
        for name in (student, teacher)
    ]
    assert nets[0] is not None
    loop = PlainLoop(nets[0], nets[1], Pictures(data), batch_size, lr=0.01)
    while count := asked.recv():
        began = time.perf_counter()
        loop.steps(count)
        asked.send(time.perf_counter() - began)
