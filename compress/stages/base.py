"""What every stage is, and what it may use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from compress.data.base import Data
from compress.events import Listener, ignore
from compress.losses.base import Loss
from compress.net import Net
from compress.pruning.magnitude import kept_zero, sparse_layers
from compress.recipe import NONE_APART, Apart, Training
from compress.train import Progress, fit


def forget(*anything: object) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Env:
    """All that a stage may use besides the net it is given.

    `seed` is the source of all its random choices. `out` is the run folder, for what a stage writes beside its net, and
    `ending` tells what the pipeline's file of a net would cost; in a rehearsal there is neither. `note` takes a
    remark and `warn` a warning for the report, `beside` takes a variant net that is measured beside the way, such as
    a post-training quantized one.
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


class Ending(Protocol):
    """What becomes of a net in the end: the stages after this one, without training, and the export.

    `int8` says whether the file that the pipeline ends with is quantized.
    """

    @property
    def int8(self) -> bool: ...

    def bytes(self, net: Net) -> int:
        """The size of the net's final file."""
        ...

    def milliseconds(self, nets: Mapping[str, Net]) -> Mapping[str, float]:
        """Median time of each net's final file in ONNX Runtime, by name, all taking turns, as `benchmark` says."""
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
    brief = rehearsed(stage)
    nothing = brief.training.model_copy(update={"epochs": 0})
    return brief.model_copy(update={"training": nothing})  # type: ignore[attr-defined,no-any-return]


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
    after_epoch: Callable[[int], None] | None = None,
    apart: Apart = NONE_APART,
) -> None:
    """Train a net in place on the run's data, with the run's teachers where a loss wants them; see `fit`.

    Weights that a `sparsify` stage removed stay zero.
    """
    wanted = any(loss.needs_teacher for loss in losses)
    with kept_zero(sparse_layers(net)):
        fit(
            net.module,
            env.data,
            training,
            losses,
            teachers=[teacher.module for teacher in env.teachers] if wanted else [],
            device=env.device,
            seed=env.seed,
            progress=Progress(env.stage, env.emit),
            after_epoch=after_epoch,
            apart=apart,
        )
