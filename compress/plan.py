"""What a run would do and cost, without training: `compress show`."""

import time
from dataclasses import dataclass, replace

import torch

from compress.console import clock
from compress.data import Data, MissingData
from compress.edits.macs import count_macs
from compress.loop import batch_size_for
from compress.net import Net
from compress.pipeline import Pipeline
from compress.preflight import stand_in
from compress.recipe import Training
from compress.smoke import made_up, without_fetching
from compress.sources import Sources
from compress.stages import Distill, Env, untrained
from compress.stages.base import losses_of, trainings_of
from compress.stages.soft_labels import SoftLabels

IMAGES = 16
BATCH, LARGE = 32, 96  # images timed together, an eighth of them from 96 pixels on
# Images in the training and test split of data that are known without being there.
KNOWN = {"cifar10": (45_000, 10_000), "cifar100": (45_000, 10_000)}
REPORT_BYTES = 6_000_000
BACKWARD = 2.0  # a backward pass costs about two forward passes


@dataclass(frozen=True)
class Step:
    """One net of the plan: parameters, MACs for one image, bytes of its ONNX file, and seconds to make it.

    `epochs` is None where nothing is to be trained, `seconds` where the number of images is not known.
    """

    net: str
    params: int
    macs: int
    bytes: int
    epochs: int | None
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """The resolved pipeline with its costs; `remarks` say what was assumed."""

    name: str
    data: str
    steps: tuple[Step, ...]
    disk_bytes: int
    remarks: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Time for all stages, None where it is not known."""
        known = [step.seconds for step in self.steps]
        return None if None in known else sum(s for s in known if s is not None)


def plan(pipeline: Pipeline) -> Plan:
    """Build and cut every net untrained, time a forward pass of each on this CPU, and add up.

    Raises what a run would for data that are broken and nets that cannot be built; missing data are stood in for.
    """
    sources, images, remarks = look_at_data(pipeline)
    data = sources.data
    few = data.smaller(IMAGES)
    student = stand_in(pipeline.student, data, pipeline.seed)
    steps, lesson = [], 0.0
    for i, (name, given) in enumerate(zip(pipeline.teacher_names, pipeline.teacher, strict=True)):
        teacher = stand_in(given.model, sources.of_teacher(i), pipeline.seed)
        took = forward_seconds(teacher)
        lesson += took
        steps.append(alone(name, teacher, given.training, images, took))
    own = forward_seconds(student)
    steps.append(alone("baseline", student, pipeline.baseline.training, images, own))
    net, soft, kept_bytes = student, SoftLabels(), 0
    for stage in pipeline.stages:
        soft = stage.soft_labels if isinstance(stage, Distill) else replace(soft, asked=False)
        env = Env(data=few, teachers=(), device=torch.device("cpu"), seed=pipeline.seed, stage=stage.name)
        net = untrained(stage)(net, env)
        epochs = sum(training.epochs for training in trainings_of(stage))
        if said := soft.describe(losses_of(stage), stage.training, data):
            remarks.append(f"{stage.name}: {said}")
            if soft.kept(losses_of(stage), stage.training, data):
                kept_bytes = max(kept_bytes, len(pipeline.teacher) * soft.bytes(stage.training, data))
        asked = soft.asked_per_image(losses_of(stage), stage.training, data)
        steps.append(step(stage.name, net, stage.training, epochs, images, forward_seconds(net), asked * lesson))
    # Weights are kept in float32 beside each file.
    disk = sum(4 * s.params + s.bytes for s in steps) + kept_bytes + REPORT_BYTES
    return Plan(pipeline.name, describe(pipeline, data, images), tuple(steps), disk, tuple(remarks))


def look_at_data(pipeline: Pipeline) -> tuple[Sources, int | None, list[str]]:
    """The data or a stand-in, the number of training images if known, and what was assumed."""
    try:
        found = without_fetching(pipeline)
    except MissingData as error:
        images = KNOWN.get(pipeline.data.name, (None, None))[0]
        return (
            made_up(pipeline, IMAGES),
            images,
            [f"the data are missing ({error}); sizes below are for stand-ins"],
        )
    return found, found.data.samples, list(found.data.warnings)


def describe(pipeline: Pipeline, data: Data, images: int | None) -> str:
    """The data in one line."""
    size = "×".join(map(str, data.image))
    count = "an unknown number of" if images is None else f"{images:,}"
    return f"{pipeline.data.name}: {count} training images of {size}, {data.classes} classes"


def alone(name: str, net: Net, training: Training | None, images: int | None, own: float) -> Step:
    """A line of the plan for a net that nobody teaches, or that is left as it is."""
    if training is None:
        return replace(step(name, net, Training(), 0, images, own, 0.0), epochs=None)
    return step(name, net, training, training.epochs, images, own, 0.0)


def step(name: str, net: Net, training: Training, epochs: int, images: int | None, own: float, lesson: float) -> Step:
    """A line of the plan; for one image a forward pass takes `own` seconds, its teachers' take `lesson`."""
    seconds: float | None = 0.0
    if epochs:
        seconds = None
        if images is not None:
            size = batch_size_for(images, training.batch_size)
            seconds = epochs * (images // size) * size * own * (1 + BACKWARD) + images * lesson
    return Step(name, net.params, macs_of(net), net.params * (1 if net.int8 else 4), epochs, seconds)


def macs_of(net: Net) -> int:
    """Multiply-accumulates for one image."""
    return count_macs(net.module, net.example(1))


def forward_seconds(net: Net) -> float:
    """Seconds a forward pass takes for one image here, as it is run in training; the quicker of two after a first."""
    batch = BATCH if net.spec.image[1] < LARGE else BATCH // 8
    images, taken = net.example(batch).contiguous(memory_format=torch.channels_last), []
    net.module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            net.module(images)
            taken.append(time.perf_counter() - began)
    return min(taken[1:]) / batch


def render(plan: Plan) -> str:
    """The plan as text."""
    lines = [
        f"{plan.name}",
        f"data  {plan.data}",
        "",
        f"{'net':12} {'epochs':>7} {'parameters':>12} {'MMAC':>10} {'file kB':>9}  time",
    ]
    for each in plan.steps:
        epochs = "–" if each.epochs is None else str(each.epochs)
        took = "unknown" if each.seconds is None else clock(each.seconds)
        lines.append(
            f"{each.net:12} {epochs:>7} {each.params:12,} {each.macs / 1e6:10.2f} {each.bytes / 1000:9,.0f}  "
            f"about {took}"
        )
    total = "unknown until the data are there" if plan.seconds is None else f"about {clock(plan.seconds)} on this CPU"
    lines += ["", f"time  {total}", f"disk  about {plan.disk_bytes / 1e6:,.0f} MB"]
    return "\n".join([*lines, *(f"note  {remark}" for remark in plan.remarks)])
