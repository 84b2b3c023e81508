"""The moving average of a net's weights, which a training may end with."""

import torch
from torch import nn

from compress.edits.quantizers import activation_quantizers


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the averaged weights and batch-norm statistics towards the current ones by 1 - decay, in place."""
    with torch.no_grad():
        state, kept = module.state_dict(), average.state_dict()
        # Scales and zero points belong together and are steps of a grid: they are not averaged.
        scales = {f"{name}.scale" for name, _ in activation_quantizers(average)}
        moved = [name for name, value in kept.items() if value.is_floating_point() and name not in scales]
        copied = [name for name in kept if name not in {*moved}]
        # All tensors in one call: on a GPU a call each would take longer than the averaging.
        if moved:
            torch._foreach_lerp_([kept[name] for name in moved], [state[name] for name in moved], 1 - decay)
        for name in copied:
            kept[name].copy_(state[name])
