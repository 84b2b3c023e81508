"""The parts of a training as tensors and as facts that JSON can say, and back: optimiser, schedule, chance, ranges."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compress.edits.quantizers import activation_quantizers
from compress.edits.ranges import MovingRange


def of_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimiser's tensors as `<parameter>/<what>`, and the settings of its groups."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}/{name}": value
        for index, entries in state["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }
    return tensors, [{key: group[key] for key in group if key != "params"} for group in state["param_groups"]]


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Give an optimiser of the same parameters what `of_optimizer` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        index, name = path.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    parameters = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    settings = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()} | {"params": own}
        for group, own in zip(groups, parameters, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": settings})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # In the parameter's own layout, as it was: another one takes other paths through the kernels.
                entries[name] = torch.empty_like(parameter).copy_(value)


def of_schedule(schedule: LRScheduler) -> dict[str, Any]:
    """Where a schedule is; what it was made with is left out."""
    return _numbers(schedule.state_dict())


def restore_schedule(schedule: LRScheduler, facts: dict[str, Any]) -> None:
    """Take a schedule that was made in the same way to where another was."""
    schedule.load_state_dict(facts)


def scale_rate(optimizer: Optimizer, schedule: LRScheduler, factor: float) -> None:
    """Multiply the learning rate by a factor, now and in all steps that follow."""
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                group[key] *= factor
    for each in (schedule, *getattr(schedule, "_schedulers", ())):
        each.base_lrs = [rate * factor for rate in each.base_lrs]


def of_ranges(module: nn.Module) -> dict[str, list[float]]:
    """The extremes that moving ranges have come to, by quantizer."""
    return {
        name: [quantizer.moving.minimum, quantizer.moving.maximum]
        for name, quantizer in activation_quantizers(module)
        if isinstance(quantizer.moving, MovingRange)
    }


def restore_ranges(module: nn.Module, ranges: Mapping[str, list[float]]) -> None:
    """Take moving ranges to where they were; those that had come to rest no longer move."""
    for name, quantizer in activation_quantizers(module):
        if not isinstance(quantizer.moving, MovingRange):
            continue
        if name in ranges:
            quantizer.moving.minimum, quantizer.moving.maximum = ranges[name]
        else:
            quantizer.moving = None


def of_chance(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global random numbers."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_chance(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on with the random numbers that would have come next."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a schedule that are numbers; of one that is made of others, theirs."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if key == "_schedulers":
            found[key] = [_numbers(each) for each in value]
        elif isinstance(value, bool | int | float) or (
            isinstance(value, list) and all(isinstance(each, int | float) for each in value)
        ):
            found[key] = value
    return found
