"""How a net is trained, as a pipeline file says it, and the optimiser and schedule that follow from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from compress.augment import Augment
from compress.config import Config

DEFAULT_DECAY = {"adamw": 0.05, "sgd": 5e-4}


class Training(Config):
    """How a net is trained: the knobs of the recipes in the literature, under their usual names.

    `epochs: 0` trains nothing. `lr` is the highest rate. `schedule` is `one_cycle` (Smith & Topin 2018,
    arXiv:1708.07120), `cosine` (Loshchilov & Hutter 2017, arXiv:1608.03983, one period), `step` (times `gamma` at
    each of `milestones`, in epochs) or `constant`; the last three after `warmup` epochs of linear rise, while
    `one_cycle` rises for `warmup` epochs, or a quarter of all if that is 0. `weight_decay` spares biases and
    batch-norms; left out it is 0.05 for adamw and 5e-4 for sgd. `ema` keeps an exponential moving average of the
    weights with this decay, less in the first steps, and ends with it. `l1` weighs the sum of |w| over convolutions
    and linear layers, `bn_l1` that of |γ| over batch-norms (network slimming, Liu et al. 2017, arXiv:1708.06519,
    eq. 1), which sorts out channels for `importance: bn_scale`; `dropout` replaces the probability of the net's
    dropout layers; `clip` bounds the gradient's norm. `momentum` is SGD's; `one_cycle` moves it, from 0.05 more
    down to 0.05 less while the rate rises and back (for adamw β1 likewise, between 0.95 and 0.85). `augment`:
    `auto` is `shift` for data that must not be mirrored, `shift_flip` for small images, `crop_flip` (random resized
    crops) for images of 96 pixels and more; `affine` shifts, turns and scales. `compile` says whether the net is
    compiled (torch.compile): `auto` measures where the training is long enough for it to pay, ten minutes on a CPU, and
    the report says what was chosen; a choice by measurement may fall otherwise on another day, and another choice gives
    other bits.
    """

    name: ClassVar[str] = "training"
    newer: ClassVar[tuple[str, ...]] = ("bn_l1", "compile")
    epochs: Annotated[int, Field(ge=0, le=100_000)] = 30
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 0.003
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = "one_cycle"
    warmup: Annotated[float, Field(ge=0)] = 0.0
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    l1: Annotated[float, Field(ge=0)] = 0.0
    bn_l1: Annotated[float, Field(ge=0)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    augment: Augment = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule 'step' needs milestones, the epochs at which the rate falls, such as [150, 180]")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones belong to schedule 'step', not to {self.schedule!r}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer 'sgd' with momentum above 0")
        return self


def filled(**defaults: float | str) -> BeforeValidator:
    """Annotate a stage's `training` with its own defaults, so that a file may give only some of the keys."""
    return BeforeValidator(lambda raw: {**defaults, **raw} if isinstance(raw, Mapping) else raw)


class Apart(NamedTuple):
    """Parameters that learn at a multiple `rate` of `training.lr` and do not decay, such as learned scales."""

    parameters: Sequence[nn.Parameter] = ()
    rate: float = 1.0


NONE_APART = Apart()


def optimizer_for(
    module: nn.Module, training: Training, apart: Apart = NONE_APART, beside: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """The optimiser over all parameters that want a gradient, those `apart` in a group of their own.

    `beside` are trained along with the module's, such as the adapters of a loss.
    """
    others = {id(p) for p in apart.parameters}
    wanted = [p for p in (*module.parameters(), *beside) if p.requires_grad and id(p) not in others]
    decay = DEFAULT_DECAY[training.optimizer] if training.weight_decay is None else training.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [p for p in wanted if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in wanted if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if apart.parameters:
        groups.append({"params": [*apart.parameters], "weight_decay": 0.0, "lr": training.lr * apart.rate})
    # One kernel for all parameters; it wants a GPU's or a CPU's, and floats.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for group in groups for p in group["params"])
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, training.lr, training.momentum, nesterov=training.nesterov, fused=fused)
    return torch.optim.AdamW(groups, training.lr, fused=fused)


def schedule_for(optimizer: Optimizer, training: Training, steps: int) -> LRScheduler:
    """The learning rate for each step, `steps` of them an epoch."""
    total = max(training.epochs * steps, 1)
    warmup = min(round(training.warmup * steps), total - 1)
    if training.schedule == "one_cycle":
        return _one_cycle(optimizer, training, total, rising=min(warmup / total, 0.9) or 0.25)
    after: LRScheduler
    if training.schedule == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=total - warmup)
    elif training.schedule == "step":
        after = MultiStepLR(optimizer, [m * steps - warmup for m in training.milestones], training.gamma)
    else:
        after = ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return after
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, after], milestones=[warmup])


def _one_cycle(optimizer: Optimizer, training: Training, total: int, rising: float) -> LRScheduler:
    highest = [group["lr"] for group in optimizer.param_groups]
    # One more than there are steps: a single step has no rise and fall.
    if math.isclose(rising * (total + 1), 1):
        rising *= 1.5  # torch divides by zero where the peak is the very first step
    if training.optimizer != "sgd":
        return OneCycleLR(optimizer, highest, total_steps=total + 1, pct_start=rising)
    # Momentum falls while the rate rises: between 0.85 and 0.95, as in the paper, for a momentum of 0.9.
    low, high = max(training.momentum - 0.05, 0.0), min(training.momentum + 0.05, (1 + training.momentum) / 2)
    return OneCycleLR(
        optimizer,
        highest,
        total_steps=total + 1,
        pct_start=rising,
        cycle_momentum=training.momentum > 0,
        base_momentum=low,
        max_momentum=high,
    )
