"""Trying narrower widths without building narrower networks.

A channel that no layer reads is as good as gone. So masks on what layers read give the outputs of the pruned
network, at the dense network's cost and without its surgery.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.pruning.groups import ChannelGroup
from compress.pruning.plan import Scored

Indices = Mapping[str, NDArray[np.int64]]


class Masked:
    """A copy of a network whose coupled groups can be narrowed at will, its outputs those of the pruned network.

    `groups` and `scored` are as `Prunable` has them for `module`, which is left alone; a group at width w is without
    its least important channels. What convolutions and linear layers read of those is zeroed; group-norms and
    layer-norms, which mix channels, leave them out of mean and variance. Equal to the pruned network to rounding.
    """

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup], scored: Sequence[Scored]) -> None:
        self.widths = [group.width for group in groups]
        self._orders = [each.order() for each in scored]
        self._touched = [{**group.reads, **_mixed(module, group)} for group in groups]
        self._masks: dict[str, Tensor] = {}
        self.module = copy.deepcopy(module).eval()
        self._layers = {path: self.module.get_submodule(path) for touched in self._touched for path in touched}
        for path, layer in self._layers.items():
            if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                layer.register_forward_hook(self._normalized(path))
            else:
                layer.register_forward_pre_hook(self._zeroed(path))

    def narrow(self, widths: Sequence[int]) -> None:
        """Set the width of every group; the groups' own widths give the dense network back."""
        kept: dict[str, NDArray[np.float32]] = {}
        for touched, order, whole, width in zip(self._touched, self._orders, self.widths, widths, strict=True):
            gone = order[: whole - width]
            for path, channels in touched.items() if len(gone) else ():
                mask = kept.setdefault(path, np.ones(_inputs(self._layers[path]), np.float32))
                mask[channels[gone]] = 0
        device = next(self.module.parameters()).device
        self._masks = {path: torch.from_numpy(mask).to(device) for path, mask in kept.items()}

    def _zeroed(self, path: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            mask = self._masks.get(path)
            if mask is None:
                return None
            x, *rest = inputs
            return x * (mask if isinstance(layer, nn.Linear) else mask.view(-1, 1, 1)), *rest

        return hook

    def _normalized(self, path: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            mask = self._masks.get(path)
            return None if mask is None else normalized(layer, inputs[0], mask)

        return hook


def normalized(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """What a group-norm or a layer-norm gives when only channels of mask 1 are there; (channels,) for the mask.

    Group-norm: x is (n, channels, …), mean and variance over a group's channels and all positions (Wu & He 2018,
    arXiv:1803.08494, eq. 2). Layer-norm, channels last: x is (…, channels) (Ba et al. 2016, arXiv:1607.06450, eq. 3).
    """
    dims: tuple[int, ...]
    shape: tuple[int, ...]
    if isinstance(layer, nn.GroupNorm):
        parts = x.reshape(len(x), layer.num_groups, x.shape[1] // layer.num_groups, -1)
        present = mask.view(1, layer.num_groups, -1, 1).expand_as(parts)
        dims, shape = (2, 3), (1, -1, *[1] * (x.dim() - 2))
    else:
        assert isinstance(layer, nn.LayerNorm)
        parts, present, dims, shape = x, mask.expand_as(x), (-1,), (-1,)
    count = present.sum(dims, keepdim=True)
    centred = parts - (parts * present).sum(dims, keepdim=True) / count
    variance = (centred.square() * present).sum(dims, keepdim=True) / count
    result = (centred * torch.rsqrt(variance + layer.eps)).reshape(x.shape)
    if layer.weight is not None:
        result = result * layer.weight.view(shape)
    return result if layer.bias is None else result + layer.bias.view(shape)


def _mixed(module: nn.Module, group: ChannelGroup) -> Indices:
    """As `ChannelGroup.reads`, of the layers that normalise over channels."""
    names = {layer: path for path, layer in module.named_modules()}
    return {
        names[layer]: channels.reshape(group.width, -1)
        for layer, channels in _members(group)
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm) and layer in names
    }


def _members(group: ChannelGroup) -> Iterator[tuple[nn.Module, NDArray[np.int64]]]:
    """Every layer of the group and its channels that belong to it, those of the group's first channel first."""
    for item in group.graph.items:
        order = np.argsort(np.array(item.root_idxs), kind="stable")
        yield item.dep.target.module, np.array(item.idxs)[order]


def _inputs(layer: nn.Module) -> int:
    match layer:
        case nn.Conv2d():
            return layer.in_channels
        case nn.Linear():
            return layer.in_features
        case nn.GroupNorm():
            return layer.num_channels
        case nn.LayerNorm():
            return layer.normalized_shape[0]
    raise TypeError(f"a {type(layer).__name__} reads no channels")
