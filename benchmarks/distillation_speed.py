"""How fast a student learns: kept targets against a loop with the teacher in it, and training against a plain loop."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distillation_peer import Peer
from lines import Line, at_least
from torch import nn

from compress.data import DATASETS
from compress.data.base import Data
from compress.losses import CrossEntropy, Loss
from compress.models import MODELS
from compress.recipe import Training
from compress.stages import Distill
from compress.training.objective import Tutor
from compress.training.targets import Targets, compute
from compress.training.train import Progress, fit

STUDENT, TEACHER = "mobilenet_v2_cifar", "resnet50_cifar"
CLASSES, SIDE, BATCH = 100, 32, 64
COMPILED, PLAIN, TRAINING = 25.0, 15.0, 1.5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Extent:
    """How much is measured: images of ours a round, steps of the other loop a round, rounds that count."""

    images: int = 1024
    distilling_steps: int = 1
    training_steps: int = 8
    rounds: int = 5
    student: str = STUDENT
    teacher: str = TEACHER


QUICK = Extent(128, 1, 1, 1, teacher=STUDENT)


@dataclass(frozen=True)
class Speeds:
    """Images a second of our loop and of the plain one, medians over the rounds, and the median of their ratios."""

    ours: float
    plain: float
    ratio: float

    def words(self, mark: str = "{:.1f}") -> str:
        """How the ratio is written."""
        return f"{mark}× ({self.ours:.0f} against {self.plain:.1f} images/s)"


def speed_lines(*, quick: bool) -> list[Line]:
    """Distilling and plain training, each with and without compiling, taking turns with the plain loop."""
    torch.set_num_threads(os.cpu_count() or 1)
    extent = QUICK if quick else Extent()
    data = made_up(extent.images)
    distilling, training = {}, {}
    with tempfile.TemporaryDirectory(prefix="compress-bench-") as folder:
        targets = made_up_targets(Path(folder), data)
        for compiled in ways():
            distilling[compiled] = against(extent, data, compiled, targets)
            training[compiled] = against(extent, data, compiled, None)
    title = f"{extent.student} from {extent.teacher}, batch {BATCH}, {torch.get_num_threads()} threads"
    return [*_distilling(title, distilling), _training(extent, training)]


def _distilling(title: str, found: dict[str, Speeds]) -> list[Line]:
    without = found["off"]
    lines = [at_least(f"{title}: cached targets, not compiled", without.ratio, PLAIN, without.words())]
    if len(found) == 1:
        return [Line(f"{title}: cached targets, compiled", "", "not measured: this engine cannot compile"), *lines]
    best = max(found.values(), key=lambda speeds: speeds.ratio)
    note = "" if best is not without else "; compiling does not pay here"
    return [
        at_least(f"{title}: cached targets, compiled where that pays", best.ratio, COMPILED, best.words() + note),
        *lines,
    ]


def _training(extent: Extent, found: dict[str, Speeds]) -> Line:
    best = max(found.values(), key=lambda speeds: speeds.ratio)
    each = ", ".join(f"{speeds.ratio:.2f}× with compile: {way}" for way, speeds in found.items())
    title = f"{extent.student}, batch {BATCH}, {torch.get_num_threads()} threads: a training step"
    return at_least(title, best.ratio, TRAINING, f"{best.words('{:.2f}')}; {each}")


def ways() -> Sequence[str]:
    """What `training.compile` may say, the quicker to measure first."""
    return ("off", "on") if "compile" in Training.model_fields else ("off",)


def against(extent: Extent, data: Data, compiled: str, targets: Targets | None) -> Speeds:
    """Our loop and the plain one in turns: an epoch of ours, some steps of theirs, and again.

    The plain loop takes its turn when an epoch of ours has ended, so that both see the same machine.
    """
    torch.manual_seed(0)
    plain = Peer(extent.student, extent.teacher if targets is not None else None, data, BATCH)
    steps = extent.training_steps if targets is None else extent.distilling_steps
    ours_s, plain_s = [], []
    last = time.perf_counter()

    def turn(epoch: int) -> None:
        nonlocal last
        ours_s.append(time.perf_counter() - last)
        plain_s.append(plain.steps(steps))
        last = time.perf_counter()

    losses: tuple[Loss, ...] = (CrossEntropy(),) if targets is None else Distill().losses
    tutors = [] if targets is None else [Tutor(fresh(extent.teacher), targets=targets)]
    student = fresh(extent.student)
    options = {"compile": compiled} if "compile" in Training.model_fields else {}
    training = papers_training(epochs=1 + extent.rounds, **options)
    fit(
        student, data, training, losses, tutors=tutors, device=CPU, seed=0, progress=Progress("bench"), after_epoch=turn
    )
    plain.close()
    # The first of each warms up, and compiles.
    ours = [extent.images / seconds for seconds in ours_s[1:]]
    theirs = [steps * BATCH / seconds for seconds in plain_s[1:]]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Speeds(statistics.median(ours), statistics.median(theirs), ratio)


def papers_training(**changes: Any) -> Training:
    """The papers' recipe (Tian et al. 2020, arXiv:1910.10699, sec. 4), as far as it decides a step's time."""
    known = {"batch_size": BATCH, "optimizer": "sgd", "lr": 0.01, "schedule": "constant", "augment": "shift_flip"}
    return Training.model_validate(known | changes)


def fresh(name: str) -> nn.Module:
    """A net with random weights."""
    return MODELS[name].model_validate({})(CLASSES, (3, SIDE, SIDE))  # type: ignore[attr-defined]


def made_up(images: int) -> Data:
    """Images of CIFAR's shape; the validation split is as small as it can be, since we are timed with it."""
    made = DATASETS["synthetic"].model_validate({"size": SIDE, "classes": CLASSES, "samples": images})(0)  # type: ignore[attr-defined]
    return replace(made, val=made.val.first(2), mirror=True)


def made_up_targets(folder: Path, data: Data) -> Targets:
    """A file of logits on all views, mapped into memory as any; what they say does not matter for the time."""
    random = torch.Generator().manual_seed(0)

    def ask(images: torch.Tensor) -> torch.Tensor:
        return 4 * torch.randn(len(images), CLASSES, generator=random)

    return compute(
        folder, "made-up", ask, data.train.images, CLASSES, kind="shift_flip", mirror=True, size=SIDE, batch=4096
    )
