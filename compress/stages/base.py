"""What every stage is, and what it may use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from compress.data.base import Data
from compress.events import Listener, ignore
from compress.losses.base import Loss
from compress.net import Net
from compress.recipe import NONE_APART, Apart, Training
from compress.train import Progress, fit


def forget(*anything: object) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Env:
    """All that a stage may use besides the net it is given.

    `seed` is the source of all its random choices. `note` takes a remark and `warn` a warning for the report,
    `beside` takes a variant net that is measured beside the way, such as a post-training quantized one.
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
    """Train a net in place on the run's data, with the run's teachers where a loss wants them; see `fit`."""
    wanted = any(loss.needs_teacher for loss in losses)
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
