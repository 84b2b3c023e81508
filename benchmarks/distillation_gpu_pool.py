"""Several students at a time on one GPU, as far as the time goes."""

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from distillation_gpu_place import Place, Result
from distillation_gpu_runs import Run, train


@dataclass
class Budget:
    """The time there is, and what did not fit into it."""

    minutes: float
    began: float = field(default_factory=time.perf_counter)
    notes: list[str] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds until everything must have ended."""
        return self.began + 60 * self.minutes - time.perf_counter()

    def say(self, text: str) -> None:
        """Print a line with the minute it is."""
        print(f"{(time.perf_counter() - self.began) / 60:5.1f} min  {text}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Take note of what is not done."""
        self.notes.append(f"{what}: {why}")
        self.say(f"{what}: {why}")


class Workers:
    """Processes that train, started when there is something to train; what still runs at the end is ended."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.pool: Any = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *reason: object) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()

    def apply_async(self, does: Any, given: tuple[Any, ...]) -> Any:
        """As of a pool of the standard library."""
        if self.pool is None:
            self.pool = multiprocessing.get_context("spawn").Pool(self.jobs)
        return self.pool.apply_async(does, given)


def trained(
    pool: Any, runs: Sequence[Run], jobs: int, place: Place, budget: Budget, known: Sequence[Result]
) -> Iterator[Result]:
    """The results as they come, those of earlier runs first; `known` are all there are so far.

    What would not end in time is not begun, and what still runs when the time is over is left.
    """
    pending, running = deque[Run](), dict[Run, Any]()
    for run in runs:
        if (result := run.found(place)) is not None:
            yield result
        else:
            pending.append(run)
    while pending or running:
        while pending and len(running) < jobs:
            run = pending.popleft()
            due = expected_s(run, place, known)
            if due >= budget.left_s:
                budget.skip(run.name, f"not begun: {due:.0f} s due, {max(budget.left_s, 0):.0f} s left")
            else:
                running[run] = pool.apply_async(train, (place, run))
        for run in [run for run, result in running.items() if result.ready()]:
            yield running.pop(run).get()
        if budget.left_s <= 0:
            for run in running:
                budget.skip(run.name, "cut off: the time was over")
            running.clear()
        time.sleep(0.05)


def expected_s(run: Run, place: Place, known: Sequence[Result]) -> float:
    """How long a training takes, by the steps of those of its batch size, else of larger ones, before it."""
    training = run.training(place)
    larger = [each for each in known if each["batch_size"] >= training.batch_size]
    alike = [each for each in larger if each["batch_size"] == training.batch_size] or larger
    step_s = max((each["step_ms"] for each in alike), default=0.0) / 1e3
    return step_s * training.epochs * (len(place.images().train) // training.batch_size)
