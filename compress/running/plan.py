"""What a run would do and cost, without training: `compress show`."""

import time
from dataclasses import dataclass, replace

import torch

from compress.architecture.judging import FOR_STATISTICS, MOST
from compress.architecture.methods import Uniform
from compress.architecture.sharing import SAMPLED
from compress.architecture.space import Choices, Rungs
from compress.data import Data, MissingData
from compress.edits.macs import count_macs
from compress.export.size import expected_bytes
from compress.export.targets import TARGETS, Target
from compress.net import Net, Spec, build
from compress.pipeline import Pipeline
from compress.recipe import Training
from compress.running.ending import int8_in_the_end
from compress.running.preflight import stand_in
from compress.running.smoke import made_up, without_fetching
from compress.running.sources import Sources
from compress.stages import BornAgain, Distill, Env, Mutual, Search, Stage, untrained
from compress.stages.base import losses_of, trainings_of
from compress.stages.mutual import drawn
from compress.stages.soft_labels import SoftLabels
from compress.training.loop import batch_size_for

IMAGES = 16
BATCH, LARGE = 32, 96  # images timed together, an eighth of them from 96 pixels on
# Images in the training and test split of data that are known without being there.
KNOWN = {"cifar10": (45_000, 10_000), "cifar100": (45_000, 10_000)}
REPORT_BYTES = 6_000_000
BACKWARD = 2.0  # a backward pass costs about two forward passes


@dataclass(frozen=True)
class Step:
    """One net of the plan: parameters, MACs for one image, bytes to expect of its file, and what it takes to make it.

    `epochs` is None where nothing is to be trained; `images`, all that are seen in training, and `seconds` are None
    where the number of images is not known. `beside` are nets that are trained along and measured too.
    """

    net: str
    model: str
    params: int
    macs: int
    bytes: int
    epochs: int | None
    images: int | None
    seconds: float | None
    beside: tuple["Step", ...] = ()

    @property
    def disk_bytes(self) -> int:
        """What stays of it: weights in float32 beside each file."""
        return 4 * self.params + self.bytes + sum(each.disk_bytes for each in self.beside)


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


@dataclass(frozen=True)
class Costs:
    """What training costs here: `images` in an epoch, None where that is not known, and `judged` on validation.

    A forward pass of all teachers takes `lesson` seconds for an image, that of a net what `forward_seconds` says.
    Files are made for `target`.
    """

    target: Target
    images: int | None
    judged: int
    lesson: float = 0.0

    def seen(self, training: Training, epochs: int) -> int | None:
        """How many images so many epochs show: the last batch of each is left out where it is not full."""
        if self.images is None:
            return None if epochs else 0
        size = batch_size_for(self.images, training.batch_size)
        return epochs * (self.images // size) * size

    def asking(self, times: float) -> float:
        """Seconds for asking the teachers that often of every image."""
        return times * self.lesson * (self.images or 0)


def plan(pipeline: Pipeline) -> Plan:
    """Build and cut every net untrained, time a forward pass of each on this CPU, and add up.

    Raises what a run would for data that are broken and nets that cannot be built; missing data are stood in for.
    """
    sources, images, remarks = look_at_data(pipeline)
    data = sources.data
    student = stand_in(pipeline.student, data, pipeline.seed)
    steps, costs = [], Costs(TARGETS[pipeline.export.target], images, len(data.val))
    for i, (name, given) in enumerate(zip(pipeline.teacher_names, pipeline.teacher, strict=True)):
        teacher = stand_in(given.model, sources.of_teacher(i), pipeline.seed)
        took = forward_seconds(teacher)
        costs = replace(costs, lesson=costs.lesson + took)
        steps.append(alone(name, teacher, given.training, costs, took))
    steps.append(alone("baseline", student, pipeline.baseline.training, costs, forward_seconds(student)))
    net, soft, kept_bytes = student, SoftLabels(), 0
    few = data.smaller(IMAGES)
    for stage in pipeline.stages:
        soft = stage.soft_labels if isinstance(stage, Distill) else replace(soft, asked=False)
        env = Env(
            data=few, teachers=(), device=torch.device("cpu"), seed=pipeline.seed, stage=stage.name,
            int8=int8_in_the_end(pipeline),
        )  # fmt: skip
        before, net = net, untrained(stage)(net, env)
        if said := soft.describe(losses_of(stage), stage.training, data):
            remarks.append(f"{stage.name}: {said}")
            if soft.kept(losses_of(stage), stage.training, data):
                kept_bytes = max(kept_bytes, len(pipeline.teacher) * soft.bytes(stage.training, data))
        asked = soft.asked_per_image(losses_of(stage), stage.training, data)
        steps.append(of_stage(stage, before, net, costs, costs.asking(asked), pipeline.seed))
    disk = sum(each.disk_bytes for each in steps) + kept_bytes + REPORT_BYTES
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


def alone(name: str, net: Net, training: Training | None, costs: Costs, own: float) -> Step:
    """A line of the plan for a net that nobody teaches, or that is left as it is."""
    if training is None:
        return replace(step(name, net, Training(), 0, costs, own), epochs=None)
    return step(name, net, training, training.epochs, costs, own)


def step(name: str, net: Net, training: Training, epochs: int, costs: Costs, own: float, lessons: float = 0.0) -> Step:
    """A line of the plan; a forward pass takes `own` seconds for one image, and all lessons `lessons` seconds."""
    seen = costs.seen(training, epochs)
    seconds = None if seen is None else seen * own * (1 + BACKWARD) + (lessons if epochs else 0.0)
    size = expected_bytes(net, costs.target)
    return Step(name, net.spec.architecture.name, net.params, macs_of(net), size, epochs, seen, seconds)


def of_stage(stage: Stage, before: Net, net: Net, costs: Costs, lessons: float, seed: int) -> Step:
    """A line of the plan for a stage that makes `net` of the net before it, with all that it trains on the way."""
    own, epochs = forward_seconds(net), sum(training.epochs for training in trainings_of(stage))
    found = step(stage.name, net, stage.training, epochs, costs, own, lessons)
    if isinstance(stage, BornAgain):  # each generation is asked in every step of the next
        return later(found, (found.images or 0) * own)
    if isinstance(stage, Mutual):
        peers = [
            step(f"peer-{i}", peer, stage.training, epochs, costs, forward_seconds(peer))
            for i, peer in enumerate(drawn(stage.peers or (before.spec.architecture,), before.spec, seed), start=1)
        ]
        return replace(later(found, sum(peer.seconds or 0.0 for peer in peers)), beside=tuple(peers))
    if isinstance(stage, Search):
        return searched(stage, before, found, costs, own)
    return found


def searched(stage: Search, before: Net, found: Step, costs: Costs, own: float) -> Step:
    """A line of the plan for a search, which trains all candidates at once or each by itself, and judges each."""
    if not stage.training.epochs or isinstance(stage.method, Uniform):
        return found
    tries = stage.method.tries
    space = stage.choices(before)
    per_mac = own / max(found.macs, 1)
    judging = tries * (min(costs.judged, MOST) + FOR_STATISTICS) * own
    if stage.scored_by == "training":
        seen = costs.seen(stage.training, tries * stage.training.epochs)
        seconds = None if seen is None else seen * own * (1 + BACKWARD) + judging
        return replace(found, epochs=tries * stage.training.epochs, images=seen, seconds=seconds)
    # A step runs the largest network, the smallest, and some at random, which lie between the two.
    sizes = [count(space, rungs, before) for rungs in (space.largest, space.smallest)]
    together = sum(sizes) * (1 + SAMPLED / 2) * per_mac
    return later(replace(found, seconds=found.images and found.images * together * (1 + BACKWARD)), judging)


def count(space: Choices, rungs: Rungs, like: Net) -> int:
    """MACs of a candidate for one image."""
    spec = Spec(architecture=space.architecture(rungs), classes=like.spec.classes, image=like.spec.image)
    return macs_of(build(spec))


def later(found: Step, seconds: float) -> Step:
    """The same line with some seconds more, where it is known how many it takes."""
    return found if found.seconds is None else replace(found, seconds=found.seconds + seconds)


def macs_of(net: Net) -> int:
    """Multiply-accumulates for one image."""
    return count_macs(net.module, net.example(1))


def forward_seconds(net: Net, batch: int | None = None) -> float:
    """Seconds a forward pass takes for one image here, as it is run in training; the quicker of two after a first."""
    batch = batch or (BATCH if net.spec.image[1] < LARGE else BATCH // 8)
    images, taken = net.example(batch).contiguous(memory_format=torch.channels_last), []
    net.module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            net.module(images)
            taken.append(time.perf_counter() - began)
    return min(taken[1:]) / batch
