"""The stage that removes channels."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compress.config import Config, NameIn, OneOf
from compress.data.base import spread
from compress.distributed.group import current
from compress.edits.channels import Channels
from compress.losses import LOSSES, CrossEntropy, Loss
from compress.net import Net
from compress.pruning.allocation import ALLOCATIONS, Allocation, Judge, Uniform
from compress.pruning.channels import Prunable
from compress.pruning.importance import IMPORTANCES, Examples
from compress.pruning.plan import Limit, Plan, Planned, PlanSearch
from compress.recipe import Training, filled
from compress.stages.base import Env, teach
from compress.stages.pruning_target import Narrowing, target_for
from compress.training.predicting import inputs_of

TARGETS = ("keep_macs", "keep_params", "max_bytes", "max_latency_ms", "latency_ratio")
GRADIENT_IMAGES, BATCH = 256, 64
Share = Annotated[float, Field(gt=0, lt=1)]


class Prune(Config):
    """Remove whole channels (DepGraph, Fang et al. 2023, arXiv:2301.12900), then train to recover.

    How much: one of `keep_macs` and `keep_params` (shares of the unpruned student's), `max_bytes` of the file that the
    pipeline ends with, `max_latency_ms` of it in ONNX Runtime here, or `latency_ratio` to the unpruned student's file;
    with `latency_table`, a CSV file of layer times from another device, milliseconds there. Left out, half the MACs.
    A result within 98 and 100 % of a share or a size meets it, within 5 % of a time.

    Where: `allocation` shares the cut out among layers: `uniform`, `global`, `sensitivity`, or by search, `annealing`
    or `evolution`. `include` and `exclude` are patterns over layer names such as `features.1[0-7].*`. What:
    `importance` ranks channels. Widths become multiples of `align` (16, or less for narrow nets, if left out). With
    `steps` above 1 pruning and training take turns, the cut growing by `schedule`.
    """

    name: ClassVar[str] = "prune"
    keep_macs: Share | None = None
    keep_params: Share | None = None
    max_bytes: Annotated[int, Field(gt=0)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    latency_ratio: Share | None = None
    latency_table: str | None = None
    allocation: Annotated[Allocation, OneOf(ALLOCATIONS)] = Uniform()
    importance: Annotated[str, NameIn(IMPORTANCES)] = "l2"
    align: Annotated[int, Field(ge=1, le=256)] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    steps: Annotated[int, Field(ge=1, le=100)] = 1
    schedule: Literal["linear", "cubic"] = "linear"
    losses: tuple[Annotated[Loss, OneOf(LOSSES)], ...] | None = None
    training: Annotated[Training, filled(epochs=12, lr=0.001)] = Training(epochs=12, lr=0.001)

    @model_validator(mode="before")
    @classmethod
    def _half_the_macs(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and all(raw.get(key) is None for key in TARGETS):
            return {**raw, "keep_macs": 0.5}
        return raw

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [key for key in TARGETS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two ways to say how much; give one of them")
        if self.latency_table is not None and given[0] not in ("max_latency_ms", "latency_ratio"):
            raise ValueError(f"latency_table goes with max_latency_ms or latency_ratio, not with {given[0]}")
        return self

    def __call__(self, net: Net, env: Env) -> Net:
        module, share = net.module, None
        for step in range(1, self.steps + 1):
            done = self.done(step)
            now = Net(net.spec.edited(Channels.of(module, net.module)), module) if step > 1 else net
            narrowing = self.narrowing(now, replace(env, seed=env.seed + step - 1))
            # One process decides for all: what each would measure or add up on its own may differ.
            if done < 1 and share is None:
                share = current().first(partial(self.final_share, narrowing))
            module = narrowing.prunable.cut(current().first(partial(self.widths, narrowing, done, share)))
            smaller = Net(net.spec.edited(Channels.of(module, net.module)), module)
            teach(smaller, narrowing.env, self.training_of(step), self.losses or (CrossEntropy(),))
        return smaller

    def rehearsed(self) -> Self:
        """With the same ratio for all layers and in one go: other widths, the same structure."""
        return self.model_copy(update={"allocation": Uniform(), "steps": 1})

    def final_share(self, narrowing: Narrowing) -> float:
        """What is left of the net's MACs in the end, as a share."""
        return narrowing.macs_share(self.planned(narrowing).widths)

    def widths(self, narrowing: Narrowing, done: float, share: float | None) -> list[int]:
        """Each group's width where a part `done` of the cut is made, of which `share` of the MACs will be left."""
        if done == 1 or share is None:
            planned = self.planned(narrowing)
        else:
            planned = narrowing.part_way(1 - (1 - share) * done, self.align)
        return [int(width) for width in planned.widths]

    def done(self, step: int) -> float:
        """How much of the cut is made after a step, 0 to 1; cubic: Zhu & Gupta 2017 (arXiv:1710.01878, eq. 1)."""
        part = step / self.steps
        return part if self.schedule == "linear" else 1 - (1 - part) ** 3

    def training_of(self, step: int) -> Training:
        """A step's share of the epochs; the last has what is left over."""
        if self.steps == 1:
            return self.training
        epochs = self.training.epochs // self.steps
        if step == self.steps:
            epochs = self.training.epochs - epochs * (self.steps - 1)
        return self.training.model_copy(update={"epochs": epochs})

    def narrowing(self, net: Net, env: Env) -> Narrowing:
        """The net, its channels scored, and what is known of the cost of its file."""
        examples = gradient_examples(env) if IMPORTANCES[self.importance].needs_examples else None
        prunable = Prunable(net.module, net.example(1), self.importance, self.include, self.exclude, env.seed, examples)
        return Narrowing(net, prunable, env)

    def planned(self, narrowing: Narrowing) -> Planned:
        """The widths for the stage's own target; a plan whose file would be slower than the dense one is rejected."""
        env = narrowing.env
        judge = None
        if self.allocation.judges:
            judge = Judge.of(narrowing.prunable, env.data, env.device, env.seed, stage=env.stage, emit=env.emit)

        def allocate(search: PlanSearch, limit: Limit) -> Plan | None:
            return self.allocation(search, limit, judge)

        key = next(key for key in TARGETS if getattr(self, key) is not None)
        target = target_for(narrowing, key, getattr(self, key), self.latency_table, self.align)
        planned = narrowing.not_slower(target, self.align, allocate)
        notes = narrowing.prunable.remarks(planned, automatic=self.align is None, limit=target.limit)
        for note in (*target.notes, *notes):
            env.note(note)
        return planned


def gradient_examples(env: Env) -> Examples:
    """A function that gives the same labelled training images at each call, the classes taking turns."""
    train = env.data.train
    chosen = train.take(spread(train.labels, GRADIENT_IMAGES))
    labels = torch.from_numpy(chosen.labels).to(env.device)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        return zip(inputs_of(env.data, chosen, env.device, BATCH), torch.split(labels, BATCH), strict=True)

    return batches
