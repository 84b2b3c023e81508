"""Which channels of a network can only be removed together, how important they are, and removing them.

Removing an output channel of a convolution removes the batch-norm's entry and an input channel of every layer
behind it; a residual addition ties the outputs of several convolutions. Torch-Pruning finds these coupled
groups by following the autograd graph (DepGraph, Fang et al. 2023, arXiv:2301.12900). Here they become data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.edits.channels import resizable
from compress.errors import ModelError
from compress.stages.channel_plan import MacsModel


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that are removed together.

    `name` is the layer it starts at, `width` that layer's output channels. `outputs` and `inputs` say how
    many output and input channels each Conv2d and Linear loses for one channel of the group (49 for a
    linear layer behind a flattened 7x7 map). `bundle` channels go at once, one from each part of a
    grouped convolution. `reason` says why the group cannot be cut and is empty if it can. `graph` is
    Torch-Pruning's own group.
    """

    name: str
    width: int
    outputs: Mapping[str, int]
    inputs: Mapping[str, int]
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


def cut_channels(group: ChannelGroup, channels: list[int]) -> None:
    """Remove these output channels of the group's first layer, and all that belongs to them."""
    group.graph.prune(idxs=channels, record_history=False)


def _described(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> ChannelGroup:
    root, width = group[0].dep.target.module, len(group[0].idxs)
    outputs: dict[str, int] = {}
    inputs: dict[str, int] = {}
    for dep, idxs in group.items:
        layer = dep.target.module
        if isinstance(layer, nn.Conv2d | nn.Linear):
            side = outputs if graph.is_out_channel_pruning_fn(dep.handler) else inputs
            side[names[layer]] = len(idxs) // width
    bundle = lcm(*(_parts(dep.target.module) for dep, _ in group.items))
    reason = _reason(graph, group, names, bundle)
    return ChannelGroup(names[root], width, outputs, inputs, bundle, reason, group)


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


Scorer = Callable[[Any], Tensor | None]
PRUNES_OUTPUTS = (
    tp.prune_conv_out_channels,
    tp.prune_depthwise_conv_out_channels,
    tp.prune_linear_out_channels,
)


def _median_distance(group: Any) -> Tensor:
    """FPGM: the nearer a filter is to all others of its layer, the less important it is.

    He et al. 2019 (arXiv:1811.00250, eq. 4): the sum of the Euclidean distances to the layer's other filters,
    here averaged over the layers whose outputs the group's channels are.
    """
    scores = torch.zeros(len(group[0].idxs))
    layers = [item for item in group.items if item.dep.handler in PRUNES_OUTPUTS]
    for item in layers:
        filters = item.dep.target.module.weight[item.idxs].flatten(1).cpu()
        scores.index_add_(0, torch.tensor(item.root_idxs), torch.cdist(filters, filters).sum(1))
    return scores / len(layers)


CRITERIA: dict[str, Scorer] = {
    "l2": tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
    "l1": tp.importance.GroupMagnitudeImportance(p=1, normalizer=None),
    "fpgm": _median_distance,
    "bn_scale": tp.importance.BNScaleImportance(normalizer=None),
}
IMPORTANCES = (*CRITERIA, "random")


def bundle_scores(group: ChannelGroup, importance: str, seed: int) -> NDArray[np.float64] | None:
    """How important each bundle of channels is: (width / bundle,), mean 1; None if there is nothing to see.

    `l2` and `l1`: the mean over all coupled layers of the sum of |w|^p over the channel's weights.
    `fpgm`: the distance to the other filters. `bn_scale`: the mean |γ| of the batch-norms (Liu et al.
    2017, arXiv:1708.06519). `random`, which follows from the seed and the layer's name, is what the
    others must beat.
    """
    if importance == "random":
        generator = np.random.default_rng([seed, *group.name.encode()])
        return generator.uniform(0.5, 1.5, group.width // group.bundle)
    with torch.no_grad():
        scores = CRITERIA[importance](group.graph)
    if scores is None:
        return None
    values: NDArray[np.float64] = scores.double().cpu().numpy().reshape(group.bundle, -1).mean(0)
    return values / values.mean() if values.any() else np.ones_like(values)


def macs_model(module: nn.Module, positions: Mapping[str, int], groups: Sequence[ChannelGroup]) -> MacsModel:
    """The network's MACs as a function of its groups' widths; `positions` as from `count_positions`."""
    rows = []
    for path, times in positions.items():
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        outputs, inputs, *kernel = layer.weight.shape
        parts = layer.groups if isinstance(layer, nn.Conv2d) and layer.groups != outputs else 1
        rows.append((times * prod(kernel), outputs, inputs * parts, parts))
    unit_macs, outputs_, inputs_, parts_ = np.array(rows, np.float64).T
    return MacsModel(
        unit_macs,
        outputs_,
        inputs_,
        parts_,
        output_loss=np.array([[group.outputs.get(path, 0) for group in groups] for path in positions], float),
        input_loss=np.array([[group.inputs.get(path, 0) for group in groups] for path in positions], float),
    )
