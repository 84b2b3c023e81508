"""What one training step with rounding costs against one float step, on two threads."""

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lines import Line, at_most
from quantization_files import in_order, pictures
from torch import nn

import compress.edits.learned as learned
from compress.data.synthetic import Synthetic
from compress.edits.ranges import MovingAverage
from compress.models import MODELS
from compress.net import Net, Spec, build
from compress.recipe import Apart, Training, optimizer_for
from compress.stages.base import Env
from compress.stages.quantize import Quantize, calibration_images, follow_ranges

CASES = ((32, 64), (96, 32))  # pixels, batch: as for CIFAR, and the published stem
ROUNDS, WARM_UP = 11, 2
THREADS = 2
CLASSES = 10
BOUNDS = {"ranges moving": 1.4, "ranges frozen": 1.25, "learned scales (LSQ)": None, "learned scales (PACT)": None}

Step = Callable[[], None]


def step_lines(*, quick: bool) -> list[Line]:
    """One line for each image size and each way of training with rounding; `quick` tries the flow on small batches."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        if quick:
            return case_lines(32, 4, rounds=1)
        return [line for size, batch in CASES for line in case_lines(size, batch, ROUNDS)]
    finally:
        torch.set_num_threads(before)


def case_lines(size: int, batch: int, rounds: int) -> list[Line]:
    """MobileNetV2 at one size, all ways taking turns step by step."""
    steps = steps_of(size, batch)
    times: dict[str, list[float]] = {way: [] for way in steps}
    for i in range(WARM_UP + rounds):
        for way in reversed(steps) if i % 2 else steps:
            began = time.perf_counter()
            steps[way]()
            times[way].append(time.perf_counter() - began)
    medians = {way: 1000 * statistics.median(seconds[WARM_UP:]) for way, seconds in times.items()}
    return [
        at_most(
            f"mobilenet_v2, {size} px, batch {batch}: a step, {way}, times a float step",
            medians[way] / medians["float"],
            bound,
            f"{{:.2f}}× ({medians['float']:.0f} → {medians[way]:.0f} ms)",
        )
        for way, bound in BOUNDS.items()
    ]


def steps_of(size: int, batch: int) -> dict[str, Step]:
    """A function for each way that makes one whole step: forward, backward, optimiser."""
    architecture = MODELS["mobilenet_v2"]()
    net = in_order(build(Spec(architecture=architecture, classes=CLASSES, image=(3, size, size)), seed=0))
    data = Synthetic(size=size, classes=CLASSES, samples=128)(0)
    env = Env(data=data, teachers=(), device=torch.device("cpu"), seed=0, stage="quantize")
    stage = Quantize(ranges=MovingAverage())
    rounding = stage.rounding(net, env, calibration_images(env, 128))[0].module
    images, labels = pictures(batch, size, seed=2), torch.arange(batch) % CLASSES
    images = images.contiguous(memory_format=torch.channels_last)
    modules: dict[str, nn.Module] = {"float": copy.deepcopy(net.module)}
    for way in BOUNDS:
        modules[way] = copy.deepcopy(rounding)
    follow_ranges(modules["ranges moving"], stage.ranges.momentum)  # type: ignore[union-attr]
    learned.learn_scales(modules["learned scales (LSQ)"], "lsq")
    learned.learn_scales(modules["learned scales (PACT)"], "pact")
    return {way: one_step(Net(net.spec, module), images, labels) for way, module in modules.items()}


def one_step(net: Net, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """A training step as the training loop makes it."""
    module = net.module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_for(module, Training(lr=1e-5), Apart(learned.scale_parameters(module)))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()

    return step
