"""Multiply-accumulates: how much arithmetic a network does for one image.

The unit is the MAC, one multiplication and one addition (two floating-point operations). Convolutions and
linear layers are counted, as in papers on image classification; biases, normalisation, activations, pooling
and products of two activations (attention) are not.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ModelError


def count_macs(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of all Conv2d and Linear layers for one image.

    `example` is (n, C, H, W) on the module's device; only its shape matters. A convolution costs
    H_out·W_out·C_out·(C_in/groups)·k_h·k_w. A layer used twice counts twice, an unused one not at all.
    The module is left as it was. Raises ModelError where the network does not accept the example.
    """
    layers = dict(module.named_modules())
    positions = count_positions(module, example)
    return sum(times * _weight(layers[path]).numel() for path, times in positions.items())


def count_positions(module: nn.Module, example: Tensor) -> dict[str, int]:
    """How often each Conv2d and Linear layer applies its weights to one image: H_out·W_out for a convolution.

    Layers that the forward pass does not use are left out. `example` and errors as in `count_macs`.
    """
    positions: Counter[str] = Counter()

    def record(path: str, channels: int) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            positions[path] += output.numel() // (channels * len(example))

        return hook

    hooks = [
        layer.register_forward_hook(record(path, _weight(layer).shape[0]))
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    training = [(layer, layer.training) for layer in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            module(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{type(module).__name__} does not accept an input of shape {tuple(example.shape)}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in training:
            layer.training = mode
    return dict(positions)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
