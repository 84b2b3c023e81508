"""What checkpoints cost: the time that writing them takes, as a part of training time at the usual interval."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import Line, at_most

from compress.data.synthetic import Synthetic
from compress.losses import CrossEntropy
from compress.models import MODELS
from compress.net import Spec, build
from compress.recipe import Training
from compress.training.checkpoint import EVERY_S, Checkpoints, Keeper
from compress.training.train import Progress, fit

NETS = {"mobilenet_v2_cifar": 128, "resnet50_cifar": 32}  # with batch sizes that a step of a second goes with
SAVES = 5


def overhead_lines(work: Path, *, quick: bool) -> list[Line]:
    """One line for each net."""
    return [overhead_line(work, name, batch, 1 if quick else SAVES, quick) for name, batch in NETS.items()]


def overhead_line(work: Path, name: str, batch: int, saves: int, quick: bool) -> Line:
    """Train with the largest state there is, momentum and a moving average, and keep a checkpoint after each step."""
    shutil.rmtree(work, ignore_errors=True)
    spec = Spec(architecture=MODELS[name](), classes=10, image=(3, 32, 32))
    data = Synthetic(size=32, classes=10, samples=batch * (saves + 1))(seed=0)
    training = Training(epochs=1, batch_size=batch, optimizer="sgd", lr=0.01, ema=0.99, compile="off")
    taken: list[float] = []
    real = Keeper.save

    def timed(keeper: Keeper, *args: Any) -> None:
        began = time.perf_counter()
        real(keeper, *args)
        taken.append(time.perf_counter() - began)

    Keeper.save = timed  # type: ignore[method-assign]
    try:
        store = Checkpoints(work, 0)
        module = build(spec, 0).module
        fit(module, data, training, [CrossEntropy()], device=torch.device("cpu"), seed=0, progress=Progress("overhead"),
            keeper=store.next())  # fmt: skip
    finally:
        Keeper.save = real  # type: ignore[method-assign]
        shutil.rmtree(work, ignore_errors=True)
    seconds = float(np.median(taken))
    return at_most(
        f"part of training time that checkpoints take, one every {EVERY_S:.0f} s, {name}, %",
        100 * seconds / (EVERY_S + seconds),
        None if quick else 2.0,
        "{:.2f} (" + f"{seconds:.2f} s each)",
    )
