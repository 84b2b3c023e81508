"""All that a training has come to at the end of a step, as a checkpoint keeps it and as it is made again from one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compress.config import fingerprint
from compress.distributed.group import current
from compress.training import finite, snapshot
from compress.training.averaging import update_average
from compress.training.checkpoint import Checkpoint
from compress.training.objective import Objective
from compress.training.sums import Sums


class Companion(Protocol):
    """What changes along with a net while it is trained, and is to be found again with it."""

    def state(self) -> Mapping[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class State:
    """A training in progress: `step` steps of epoch `epoch`, both from 0, are done.

    `average` is the moving average of the net, if there is one, after `averaged` steps. `random` draws what happens to
    the images of an epoch, and `sums` is what the epoch has come to. `parts` is into how many pieces a batch is cut for
    want of memory. `told` are the epochs' events so far and `mended` what was said of rollbacks and of memory, so that
    a training that is taken up again tells the same; `engine` is the way the net is run, and what was said of it.
    """

    module: nn.Module
    objective: Objective
    optimizer: Optimizer
    schedule: LRScheduler
    device: torch.device
    companions: Sequence[Companion] = ()
    average: nn.Module | None = None
    averaged: int = 0
    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    parts: int = 1
    rollbacks: int = 0
    random: torch.Generator = field(default_factory=torch.Generator)
    told: list[dict[str, Any]] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sums = Sums(self.device)

    def align(self, key: str) -> None:
        """Be, to the bit, what the first process's is; raises ModelError where that is another net."""
        group = current()
        if group.size > 1:
            group.same("net", key)
            teachers = [value for tutor in self.objective.tutors for value in tutor.module.state_dict().values()]
            group.copy_first([*self.trained().values(), *teachers])
            snapshot.restore_ranges(self.module, group.broadcast(snapshot.of_ranges(self.module)))

    def start_averaging(self) -> None:
        """Average the weights from here on."""
        self.average = copy.deepcopy(self.module).eval()

    def advance(self, ema: float | None) -> None:
        """Count a step that the optimiser has made."""
        self.schedule.step()
        if self.average is not None and ema is not None:
            # The first weights are random: let them be forgotten sooner than the decay would.
            self.averaged += 1
            update_average(self.average, self.module, min(ema, (1 + self.averaged) / (10 + self.averaged)))
        self.step += 1

    def key(self, *made_of: Any) -> str:
        """Changes with all that a checkpoint must agree with: the tensors' shapes, and what else a training is of."""
        return fingerprint(*made_of, {name: list(value.shape) for name, value in self.trained().items()})

    def trained(self) -> dict[str, Tensor]:
        """The net, and what is trained beside it."""
        found = {f"net/{name}": value for name, value in self.module.state_dict().items()}
        for i, module in enumerate(self.objective.modules):
            found |= {f"losses/{i}/{name}": value for name, value in module.state_dict().items()}
        return found

    def result(self) -> dict[str, Tensor]:
        """The tensors that a finished training leaves."""
        found = self.trained()
        for i, companion in enumerate(self.companions):
            found |= {f"companions/{i}/{name}": value for name, value in companion.state().items()}
        return found

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the rest of the training depends on."""
        found = self.result()
        if self.average is not None:
            found |= {f"average/{name}": value for name, value in self.average.state_dict().items()}
        found |= {f"optimizer/{name}": value for name, value in snapshot.of_optimizer(self.optimizer)[0].items()}
        found |= {f"sums/{name}": value for name, value in self.sums.state().items()}
        found |= {f"chance/{name}": value for name, value in snapshot.of_chance(self.device).items()}
        return found | {"random": self.random.get_state()}

    def facts(self) -> dict[str, Any]:
        """All else that it depends on."""
        return {
            "epoch": self.epoch, "step": self.step, "averaged": self.averaged, "lr": self.lr, "parts": self.parts,
            "groups": snapshot.of_optimizer(self.optimizer)[1], "schedule": snapshot.of_schedule(self.schedule),
            "ranges": snapshot.of_ranges(self.module), "sums_steps": self.sums.steps, "rollbacks": self.rollbacks,
            "told": [*self.told], "mended": [*self.mended], "engine": {**self.engine},
        }  # fmt: skip

    def in_memory(self) -> Checkpoint:
        """The state as it is now, whatever becomes of the tensors."""
        return Checkpoint({name: value.detach().clone() for name, value in self.tensors().items()}, self.facts())

    def restore(self, found: Checkpoint) -> None:
        """Be again what a checkpoint was made of."""
        facts = found.facts
        self.restore_result(found)
        if self.average is not None:
            self.average.load_state_dict(found.part("average/"))
        snapshot.restore_optimizer(self.optimizer, found.part("optimizer/"), facts["groups"])
        snapshot.restore_schedule(self.schedule, facts["schedule"])
        snapshot.restore_chance(found.part("chance/"), self.device)
        self.random.set_state(found.tensors["random"])
        self.sums.restore(found.part("sums/"), facts["sums_steps"])
        self.epoch, self.step, self.averaged = facts["epoch"], facts["step"], facts["averaged"]
        self.parts, self.rollbacks, self.lr = facts["parts"], facts["rollbacks"], facts["lr"]

    def restore_result(self, found: Checkpoint) -> None:
        """Take over the net, what was trained beside it, and what was told."""
        self.module.load_state_dict(found.part("net/"))
        for i, module in enumerate(self.objective.modules):
            module.load_state_dict(found.part(f"losses/{i}/"))
        for i, companion in enumerate(self.companions):
            companion.restore(found.part(f"companions/{i}/"))
        snapshot.restore_ranges(self.module, found.facts["ranges"])
        self.told, self.mended = list(found.facts["told"]), list(found.facts["mended"])
        self.engine = dict(found.facts["engine"])

    def require_finite(self, when: str) -> None:
        """Raise NotFinite with the name of the first tensor that holds a NaN or an infinity."""
        finite.require_finite(finite.of_net(self.module), when)
        finite.require_finite(finite.of_average(self.average), when)
        finite.require_finite(finite.of_losses(self.objective.modules), when)
