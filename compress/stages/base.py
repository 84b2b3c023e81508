"""What every stage is, and what it may use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from compress.data.base import Data
from compress.events import Event, Listener, ignore
from compress.losses.base import Loss
from compress.net import Net
from compress.pruning.magnitude import kept_zero, sparse_layers
from compress.recipe import NONE_APART, Apart, Training
from compress.stages.soft_labels import TARGETS, SoftLabels, with_targets
from compress.training.checkpoint import Checkpoints
from compress.training.loop import Progress
from compress.training.objective import Blend, Tutor
from compress.training.state import Companion
from compress.training.train import fit

AUTO = SoftLabels()


def forget(*anything: object) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Env:
    """All that a stage may use besides the net it is given.

    `teachers` teach, each with its key in `teacher_keys`. `views` hold the same examples as a teacher sees them, where
    that is not as the student does, and `augmented` says of each whether it sees them moved and mirrored as the student
    does. `soft_labels` and `blend` say where the teachers' outputs come from and how they count, unless the stage does.

    `seed` is the source of all its random choices. `out` is the run folder, for what a stage writes beside its net, and
    `ending` tells what the pipeline's file of a net would cost; in a rehearsal there is neither, and `int8` alone says
    whether the pipeline ends with a quantized file. `note` takes a
    remark and `warn` a warning for the report, `beside` takes a variant net that is measured beside the way, such as
    a post-training quantized one. `checkpoints` keep what the stage's trainings have come to.
    """

    data: Data
    teachers: tuple[Net, ...]
    device: torch.device
    seed: int
    stage: str
    emit: Listener = ignore
    note: Callable[[str], None] = forget
    warn: Callable[[str], None] = forget
    beside: Callable[[str, Net], None] = forget
    out: Path | None = None
    ending: "Ending | None" = None
    int8: bool = True
    views: tuple[Data | None, ...] = ()
    augmented: tuple[bool, ...] = ()
    teacher_keys: tuple[str, ...] = ()
    soft_labels: SoftLabels = AUTO
    blend: Blend = "mean"
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def tutors(self) -> list[Tutor]:
        """The teachers, ready to teach."""
        views = self.views or (None,) * len(self.teachers)
        augmented = self.augmented or (True,) * len(self.teachers)
        given = zip(self.teachers, views, augmented, strict=True)
        return [Tutor(teacher.module, view, moved) for teacher, view, moved in given]

    def part(self, number: int, trainings: Sequence[Training]) -> "Env":
        """For one of several trainings of a stage, from 0: a seed of its own, and epochs counted through."""
        before, total = sum(t.epochs for t in trainings[:number]), sum(t.epochs for t in trainings)

        def emit(event: Event) -> None:
            if event["event"] in ("epoch", "step"):
                event = {**event, "epoch": event["epoch"] + before, "epochs": total, "phase": number + 1}
            self.emit(event)

        return replace(self, seed=(self.seed + 7919 * number) % 2**31, emit=emit)


class Ending(Protocol):
    """What becomes of a net in the end: the stages after this one, without training, and the export.

    `int8` says whether the file that the pipeline ends with is quantized.
    """

    @property
    def int8(self) -> bool: ...

    def bytes(self, net: Net) -> int:
        """The size of the net's final file."""
        ...

    def milliseconds(self, nets: Mapping[str, Net], *, glance: bool = False) -> Mapping[str, float]:
        """Median time of each net's final file in ONNX Runtime, by name, all taking turns, as `benchmark` says.

        A `glance` takes less time, and tells apart what is far apart.
        """
        ...

    def layers(self, net: Net) -> Mapping[str, float]:
        """Milliseconds that each layer of the net's final file takes; under an empty name what belongs to none."""
        ...


def rehearsed(stage: "Stage") -> "Stage":
    """The same stage with nothing judged or searched for by accuracy, which means nothing where nothing was learnt.

    A stage that does so says how to leave it out in a method `rehearsed`.
    """
    return stage.rehearsed() if hasattr(stage, "rehearsed") else stage


def untrained(stage: "Stage") -> "Stage":
    """The same stage with no epoch of training, and nothing judged by accuracy: its structure alone."""
    return retrained(rehearsed(stage), lambda training: training.model_copy(update={"epochs": 0}))


def retrained(stage: "Stage", change: Callable[[Training], Training]) -> "Stage":
    """The same stage with its training changed; one with several changes them in a method `retrained` of its own."""
    if hasattr(stage, "retrained"):
        return stage.retrained(change)  # type: ignore[no-any-return]
    return stage.model_copy(update={"training": change(stage.training)})  # type: ignore[attr-defined,no-any-return]


def trainings_of(stage: "Stage") -> tuple[Training, ...]:
    """What a stage trains, one after the other."""
    return getattr(stage, "trainings", (stage.training,))


def losses_of(stage: "Stage") -> tuple[Loss, ...]:
    """Every loss that a stage minimises; one that brings its own teachers leaves out those that listen to them."""
    return getattr(stage, "all_losses", stage.losses or ())


class Stage(Protocol):
    """Turns a net into a better, smaller or cheaper one, leaving its input as it was.

    `losses` is the sum that its training minimises; None takes the distill stage's where there is a teacher,
    and plain cross-entropy where there is none.
    """

    name: ClassVar[str]

    @property
    def training(self) -> Training: ...

    @property
    def losses(self) -> tuple[Loss, ...] | None: ...

    def __call__(self, net: Net, env: Env) -> Net: ...


def teach(
    net: Net,
    env: Env,
    training: Training,
    losses: tuple[Loss, ...],
    *,
    after_epoch: Callable[[int], None] | None = None,
    apart: Apart = NONE_APART,
    blend: Blend | None = None,
    soft_labels: SoftLabels | None = None,
    companions: Sequence[Companion] = (),
) -> None:
    """Train a net in place on the run's data, with the run's teachers where a loss wants them; see `fit`.

    A stage that is taken up again calls this as often and in the same order as before: a training that had ended is
    passed over, its result taken, and one that had not goes on from its last checkpoint.

    Weights that a `sparsify` stage removed stay zero.
    """
    wanted = any(loss.needs_teacher for loss in losses)
    tutors = env.tutors() if wanted else []
    soft = soft_labels or env.soft_labels
    if said := soft.describe(losses, training, env.data):
        env.note(said)
    if wanted and env.out is not None and soft.kept(losses, training, env.data):
        tutors = with_targets(
            tutors,
            env.teacher_keys,
            soft,
            training=training,
            data=env.data,
            folder=env.out / TARGETS,
            device=env.device,
            emit=partial(_asking, env),
            warn=env.warn,
        )
    with kept_zero(sparse_layers(net)):
        fit(
            net.module,
            env.data,
            training,
            losses,
            tutors=tutors,
            blend=blend or env.blend,
            device=env.device,
            seed=env.seed,
            progress=Progress(env.stage, partial(_telling, env)),
            after_epoch=after_epoch,
            apart=apart,
            keeper=env.checkpoints.next(),
            companions=companions,
        )


def _asking(env: Env, event: Event) -> None:
    """How far the teachers are with what is kept of them, as any stage tells how far it is."""
    env.emit({
        "event": "progress", "stage": env.stage, "doing": "asking the teacher for views of images",
        "done": event["done"], "of": event["total"], "figures": f"{event['bytes'] / 1e6:,.0f} MB on disk",
    })  # fmt: skip


def _telling(env: Env, event: Event) -> None:
    """Pass on what a training tells; the report hears how the net was run where that was a choice, and what failed."""
    if event["event"] == "engine":
        env.note(event["text"])
    elif event["event"] == "mended":
        env.warn(event["text"])
    env.emit(event)
