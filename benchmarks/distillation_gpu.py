"""CIFAR-100 on one big GPU, in 25 minutes: ResNet50 teaches the half-width MobileNetV2, by the papers and by us.

Trains the teacher, keeps its logits on all 162 views of the 50,000 images, times a plain loop, trains our best recipe
with three seeds, and then, as far as the time goes and the most important first, the papers' own recipe and every
method on logits beside its published figure. Everything is measured on the 10,000 test images after the last epoch;
nothing is chosen by them. `--only search` looks on held-out training images which of a few recipes is best, and later
calls take that one. Prints the table and writes benchmarks/distillation_gpu.json after every part. What is there in the
folder is not made again: a run that was stopped goes on where it was. `--trial` tries the flow on tiny nets in a
minute, on a CPU too.

    python benchmarks/distillation_gpu.py --data data/cifar100.npz [--minutes 25] [--jobs 3] [--only PART] [--best NAME]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from distillation_data import NoData
from distillation_gpu_place import Place, Result
from distillation_gpu_pool import Budget, Workers, trained
from distillation_gpu_runs import Run
from distillation_gpu_table import lines_of
from distillation_gpu_teacher import computed_targets, teacher_result, trained_teacher
from distillation_plain import Pictures, PlainLoop
from distillation_recipes import BEST, BY_PAPERS, METHODS, STUDENT
from lines import Line, conclude, record

from compress import net as nets
from compress.environment import environment

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "distillation_gpu.json"
CACHE = ROOT / "benchmarks" / "cache"
PARTS = ("teacher", "targets", "plain", "search", "students")
SEEDS = (0, 1, 2)
NOT_DONE = "not done: "
SEARCH_PART = 0.25  # of the epochs
PLAIN_STEPS, PLAIN_WARM_UP, PLAIN_WORKERS = 60, 15, 8
COMPILE_THREADS = "4"  # of each process, of which there are several


def main() -> None:
    """Do all parts that the time allows, print the table, exit 1 if a bound was missed."""
    chosen = options()
    if not chosen.trial and not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here; --trial tries the flow without one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Place(None if chosen.trial else chosen.data, chosen.folder, device, chosen.trial)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if not chosen.trial:
        forget_notes(RECORD)
    try:
        lines = Script(place, Budget(chosen.minutes), chosen).run()
    except NoData as error:
        sys.exit(str(error))
    sys.exit(conclude(lines, None if chosen.trial else RECORD))


def forget_notes(path: Path) -> None:
    """Take out of the record what an earlier call left undone: this one says anew what it leaves."""
    if path.exists():
        whole = json.loads(path.read_text())
        whole["lines"] = [line for line in whole["lines"] if not line["what"].startswith(NOT_DONE)]
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def options() -> argparse.Namespace:
    """What the command line asks for."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--data", type=Path, help="CIFAR-100: an .npz archive, or the folder of torchvision's")
    known.add_argument("--folder", type=Path, default=CACHE / "distillation-gpu", help="keeps nets, logits and results")
    known.add_argument("--minutes", type=float, default=25.0, help="after which everything has ended")
    known.add_argument("--jobs", type=int, default=3, help="students that are trained at a time")
    known.add_argument("--only", choices=PARTS, help="this part, and before it what it needs and is not there yet")
    known.add_argument("--best", choices=BEST, help="the recipe to take, without a search")
    known.add_argument("--trial", action="store_true", help="try the flow on tiny nets; nothing is recorded")
    chosen = known.parse_args()
    if chosen.data is None and not chosen.trial:
        known.error("give --data PATH, or --trial")
    return chosen


@dataclass
class Script:
    """All parts in their order, each written down when it is done."""

    place: Place
    budget: Budget
    chosen: argparse.Namespace
    found: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    def run(self) -> list[Line]:
        """The lines of everything that could be done."""
        data = self.place.images()
        self.budget.say(f"{len(data.train):,} training images, {len(data.test):,} test images, {self.place.device}")
        self.part("teacher", self.teacher)
        self.part("targets", self.targets)
        self.part("plain", self.plain)
        if {"search", "students"} & {*self.wanted}:
            self.students()
        return self.written()

    @property
    def wanted(self) -> Sequence[str]:
        """The parts to do: what one needs is done with it."""
        only = self.chosen.only
        needed = {"teacher": (), "targets": ("teacher",), "plain": ("teacher",)}
        if only is None:
            return [part for part in PARTS if part != "search"]  # it takes minutes that the others need
        return (*needed.get(only, ("teacher", "targets")), only)

    def part(self, name: str, does: Callable[[], None]) -> None:
        """Do a part if it is wanted and there is time, and write down what there is."""
        if name not in self.wanted:
            return
        if self.budget.left_s <= 0:
            self.budget.skip(name, "no time was left for it")
            return
        self.budget.say(f"{name} starts")
        does()
        self.written()

    def written(self) -> list[Line]:
        """The table so far, and in the record unless this is a trial."""
        lines = [*lines_of(self.found, self.results), *(Line(NOT_DONE + note, "", "") for note in self.budget.notes)]
        if lines and not self.place.trial:
            record(lines, environment(), RECORD)
        return lines or [Line("nothing was done", "", "")]

    def teacher(self) -> None:
        """Train it, unless that was done."""
        if self.place.teacher() is None:

            def say(event: dict[str, Any]) -> None:
                if event["epoch"] % 10 == 0 or event["epoch"] == event["epochs"]:
                    self.budget.say(f"  epoch {event['epoch']} of {event['epochs']}, loss {event['loss']:.3f}, "
                                    f"{event['images_per_s']:.0f} images/s")  # fmt: skip

            trained_teacher(self.place, say)
        self.found["teacher"] = teacher_result(self.place)
        self.budget.say(f"teacher: {self.found['teacher']['top1']:.2f} %, {self.found['teacher']['engine']}")

    def targets(self) -> None:
        """Keep the teacher's logits, unless that was done."""
        kept = self.place.folder / f"targets-{self.place.targets_key}.json"
        teacher = self.place.teacher()
        assert teacher is not None, "the teacher has just been trained"
        if not kept.exists() or self.place.targets() is None:
            last = time.perf_counter()

            def say(event: dict[str, Any]) -> None:
                nonlocal last
                if time.perf_counter() - last > 30:
                    last = time.perf_counter()
                    self.budget.say(f"  {100 * event['done'] / event['total']:.0f} % of {event['total']:,} views")

            kept.write_text(json.dumps(computed_targets(self.place, teacher, say)))
        self.found["targets"] = json.loads(kept.read_text())

    def plain(self) -> None:
        """Time a few steps of a loop as the papers' code has it, on this device."""
        teacher, data = self.place.teacher(), self.place.images()
        assert teacher is not None, "the teacher has just been trained"
        student = nets.build(self.place.spec(STUDENT), 0).module
        batch, trial = 64 if not self.place.trial else 16, self.place.trial
        workers = 0 if trial else min(PLAIN_WORKERS, os.cpu_count() or 1)
        loop = PlainLoop(
            student, teacher.module, Pictures(data), batch, lr=0.01, workers=workers, device=self.place.device
        )
        steps = 2 if trial else PLAIN_STEPS
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):  # as the papers' code sets it
            loop.steps(1 if trial else PLAIN_WARM_UP)
            began = time.perf_counter()
            loop.steps(steps)  # reads the loss in every step, so that nothing is left running
            step_s = (time.perf_counter() - began) / steps
        loop.close()
        epoch = len(data.train) // batch
        self.found["plain"] = {"step_ms": 1e3 * step_s, "steps": steps, "epoch_steps": epoch, "batch_size": batch}
        self.budget.say(f"plain loop: {1e3 * step_s:.1f} ms a step of {batch} images")

    def students(self) -> None:
        """The search or all students, as many at a time as there are jobs."""
        if self.place.on.type == "cuda":
            torch.cuda.empty_cache()
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", COMPILE_THREADS)  # for the processes to come
        with Workers(self.chosen.jobs) as pool:
            best = self.best(pool)
            self.found["best"] = best
            if "students" not in self.wanted:
                return
            first, rest = plan(best)
            # Alone on the GPU, since its time is one of the figures; warm, as three seeds in one process would be.
            self.train(pool, [first], jobs=1)
            self.train(pool, rest, self.chosen.jobs)

    def best(self, pool: Any) -> str:
        """The recipe to take: as asked for, or the winner of a search that was finished, or else the first."""
        if self.chosen.best is not None:
            return str(self.chosen.best)
        candidates = [Run("search", recipe, 0, held_out=True, part=SEARCH_PART) for recipe in BEST.values()]
        candidates = candidates[:2] if self.place.trial else candidates
        if "search" in self.wanted:
            self.train(pool, candidates, self.chosen.jobs)
        tops = {run.recipe.name: result["top1"] for run in candidates if (result := run.found(self.place))}
        self.found["search"] = tops
        default = next(iter(BEST))
        chosen = max(tops, key=lambda name: tops[name]) if len(tops) == len(candidates) else default
        self.budget.say(f"our best recipe: {chosen}")
        return chosen

    def train(self, pool: Any, runs: Sequence[Run], jobs: int) -> None:
        """Train what is not there yet and fits into the time; each result is written down when it is there."""
        for result in trained(pool, runs, jobs, self.place, self.budget, self.results):
            if "error" in result:
                self.budget.skip(result["name"], f"failed: {result['error']}")
            else:
                self.results.append(result)
                self.budget.say(f"{result['name']}: {result['top1']:.2f} %, {result['seconds']:.0f} s")
            self.written()


def plan(best: str) -> tuple[Run, list[Run]]:
    """What is trained: the first alone, the rest the most important first."""
    first, *others = (Run("best", BEST[best], seed) for seed in SEEDS)
    papers = {name: [Run("papers", recipe, seed) for seed in SEEDS] for name, recipe in BY_PAPERS.items()}
    methods = [Run("method", recipe, 0) for recipe in METHODS.values()]
    return first, [papers["kd"][0], *others, papers["alone"][0], *methods, *papers["kd"][1:], *papers["alone"][1:]]


if __name__ == "__main__":
    main()
