"""Which channels of a network can only be removed together, and removing them.

Removing an output channel of a convolution removes the batch-norm's entry and an input channel of every layer
behind it; a residual addition ties the outputs of several convolutions. Torch-Pruning finds these coupled
groups by following the autograd graph (DepGraph, Fang et al. 2023, arXiv:2301.12900). Here they become data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.edits.channels import resizable
from compress.errors import ModelError


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that are removed together.

    `name` is the layer it starts at, `width` that layer's output channels. `outputs` and `inputs` say how
    many output and input channels each Conv2d and Linear loses for one channel of the group (49 for a
    linear layer behind a flattened 7x7 map), `follows` the same for batch-norms and other layers that change
    each channel for itself. `reads` has, for each layer in `inputs`, which of its input channels belong to each
    channel of the group, (width, inputs). `bundle` channels go at once, one from each part of a grouped
    convolution. `reason` says why the group cannot be cut and is empty if it can. `graph` is Torch-Pruning's own
    group.
    """

    name: str
    width: int
    outputs: Mapping[str, int]
    inputs: Mapping[str, int]
    follows: Mapping[str, int]
    reads: Mapping[str, NDArray[np.int64]]
    bundle: int
    reason: str
    graph: Any = field(repr=False)


def channel_groups(module: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """All coupled groups of a network, in the order of its layers.

    `module` is traced and stays tied to the groups: cutting them changes it. It is left in inference mode
    with all parameters requiring gradients. `example` is (n, C, H, W) on its device. Raises ModelError
    where Torch-Pruning cannot follow the network.
    """
    names = {layer: path for path, layer in module.named_modules()}
    family = type(module).__name__
    for parameter in module.eval().parameters():
        parameter.requires_grad_(True)  # the graph is read off autograd, which does not see frozen layers
    with torch.inference_mode(False), torch.enable_grad():
        if _multiplies_activations(module(example[:1])):
            raise ModelError(
                f"The channels of {family} cannot be pruned: it multiplies activations with each other as "
                "matrices (attention), which channel pruning cannot follow. Use a convolutional network."
            )
        try:
            # The tuple matters: a bare tensor would first be tried as its own first image.
            graph = tp.DependencyGraph().build_dependency(module, (example[:1],), verbose=False)
            found = [_described(graph, group, names) for group in graph.get_all_groups(ignored_layers=[])]
        except Exception as error:
            raise ModelError(
                f"The channels of {family} cannot be pruned: Torch-Pruning cannot follow its forward pass "
                f"({type(error).__name__}: {error}). Networks that shuffle channels are not supported."
            ) from error
    order = {path: position for position, path in enumerate(names.values())}
    return sorted(found, key=lambda group: order[group.name])


def _multiplies_activations(output: Any) -> bool:
    """Whether attention is on the way to the output: Torch-Pruning may walk in circles there, without end."""
    waiting = [tensor.grad_fn for tensor in tp.utils.flatten_as_list(output)]
    seen = set()
    while waiting:
        function = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if "Bmm" in function.name() or "ScaledDotProduct" in function.name():
            return True
        waiting += [following for following, _ in function.next_functions]
    return False


READS = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)


def cut_channels(group: ChannelGroup, channels: list[int]) -> None:
    """Remove these output channels of the group's first layer, and all that belongs to them."""
    group.graph.prune(idxs=channels, record_history=False)


def _described(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> ChannelGroup:
    root, width = group[0].dep.target.module, len(group[0].idxs)
    outputs: dict[str, int] = {}
    inputs: dict[str, int] = {}
    follows: dict[str, int] = {}
    for dep, idxs in group.items:
        layer = dep.target.module
        if layer in names:
            read = not graph.is_out_channel_pruning_fn(dep.handler)
            side = follows if not isinstance(layer, nn.Conv2d | nn.Linear) else inputs if read else outputs
            side[names[layer]] = len(idxs) // width
    bundle = lcm(*(_parts(dep.target.module) for dep, _ in group.items))
    reason = _reason(graph, group, names, bundle)
    reads = {} if reason else _reads(group, names, inputs)
    return ChannelGroup(names[root], width, outputs, inputs, follows, reads, bundle, reason, group)


def _reads(group: Any, names: Mapping[nn.Module, str], inputs: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, NDArray[np.int64]] = {}
    for item in group.items:
        path = names.get(item.dep.target.module, "")
        if path in inputs and item.dep.handler in READS:
            order = np.argsort(np.array(item.root_idxs), kind="stable")
            found[path] = np.array(item.idxs)[order].reshape(len(group[0].idxs), -1)
    return found


def _parts(layer: nn.Module) -> int:
    """In how many parts a layer divides its channels, all of which must lose the same ones; depthwise: 1."""
    if isinstance(layer, nn.Conv2d):
        return 1 if layer.groups == layer.out_channels else layer.groups
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def _reason(graph: Any, group: Any, names: Mapping[nn.Module, str], bundle: int) -> str:
    """Why a group has to stay as it is, or nothing."""
    width = len(group[0].idxs)
    for dep, idxs in group.items:
        layer = dep.target.module
        if not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler):
            return "its outputs are the network's"
        if isinstance(layer, nn.Parameter):
            return "it is tied to a parameter that belongs to no layer"
        if layer in names and not resizable(layer):
            return f"it is tied to {names[layer]}, a {type(layer).__name__}, which cannot be resized"
        widening = isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels != layer.in_channels
        if len(idxs) % width or widening:
            return f"its channels do not correspond to those of {names.get(layer, 'a reshaping')}"
    if width % bundle or width == bundle > 1:
        return f"it is tied to a layer with {bundle} groups"
    single = graph.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, [0])
    if [len(idxs) * width for _, idxs in single.items] != [len(idxs) for _, idxs in group.items]:
        return "some of its channels are tied to others of it"
    return ""
