"""Cross-layer equalisation: channels of neighbouring layers scaled against each other until their ranges are alike.

Nagel et al. 2019, arXiv:1906.04721, sec. 4.1. A layer may make a channel smaller and the next one larger again, if
what stands between is positively homogeneous: f(s·x) = s·f(x), true of ReLU and pooling, not of ReLU6, which becomes
a ReLU (sec. 5.1.1). The function of the network stays the same but for values above 6.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import compress.edits.graph as graph

ROUNDS = 200
SETTLED = 1e-4  # relative change of a channel: the ranges are alike
DEAD = 1e-5  # of a layer's largest channel: scaling a smaller one up would blow up its bias
HOMOGENEOUS = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, graph.GlobalAveragePool)
HOMOGENEOUS_FUNCTIONS: set[Callable[..., Any]] = {F.relu, torch.relu, F.max_pool2d, torch.max_pool2d, F.avg_pool2d}
Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def equalize(traced: fx.GraphModule) -> int:
    """Equalise all pairs of layers of a folded network in place, again and again until all agree; returns their number.

    In a pair the second layer alone takes what the first gives, through ReLUs and pooling at most (a ReLU6 becomes a
    ReLU first, see `without_relu6`); both are convolutions, of any grouping, or both linear. Eq. 9-11 of the paper:
    channel i is divided by s_i = √(r¹_i/r²_i) in the first layer, bias included, and multiplied by it in the second,
    so that its largest weights r¹_i and r²_i there become the same. Channels without weights stay as they are.
    """
    without_relu6(traced)
    pairs = [(first, second) for first, _, second in _pairs(traced)]
    for _ in range(ROUNDS):
        moved = [_equalize_pair(first, second) for first, second in pairs]
        if max(moved, default=0.0) < SETTLED:
            break
    return len(pairs)


def without_relu6(traced: fx.GraphModule) -> None:
    """Make each ReLU6 between the two layers of a pair a ReLU, in place; the other ones stay, and all names do.

    What changes follows from the structure alone, so that a network rebuilt from its description has it, too.
    """
    changed = [node for _, between, _ in _pairs(traced) for node in between if _is_relu6(traced, node)]
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in changed:
        if node.op == "call_function":
            node.target = F.relu
            continue
        if calls[str(node.target)] > 1:  # the other calls may have to stay
            traced.add_submodule(f"{node.name}_unclipped", nn.ReLU())
            node.target = f"{node.name}_unclipped"
        else:
            traced.set_submodule(str(node.target), nn.ReLU())
    graph.clean(traced)


def _pairs(traced: fx.GraphModule) -> Iterator[tuple[Layer, list[fx.Node], Layer]]:
    """Each pair in data order: the first layer, what stands between, the second layer."""
    for node, first in graph.calls(traced, nn.Conv2d, nn.Linear):
        between: list[fx.Node] = []
        users = list(node.users)
        while len(users) == 1 and _may_stand_between(traced, users[0]):
            between.append(users[0])
            users = list(users[0].users)
        second = graph.called(traced, users[0]) if len(users) == 1 else None
        if isinstance(second, nn.Conv2d | nn.Linear) and isinstance(first, nn.Conv2d) == isinstance(second, nn.Conv2d):
            yield first, between, second


def _may_stand_between(traced: fx.GraphModule, node: fx.Node) -> bool:
    homogeneous = isinstance(graph.called(traced, node), HOMOGENEOUS)
    homogeneous = homogeneous or graph.does(node, HOMOGENEOUS_FUNCTIONS, {"relu", "relu_"})
    return homogeneous or _is_relu6(traced, node)


def _is_relu6(traced: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(graph.called(traced, node), nn.ReLU6) or graph.does(node, {F.relu6}, set())


def _equalize_pair(first: Layer, second: Layer) -> float:
    """Scale one pair; returns the largest relative change of a channel."""
    of_output, of_input = output_ranges(first), input_ranges(second)
    alive = (of_output > DEAD * of_output.max()) & (of_input > DEAD * of_input.max())
    scale = torch.where(alive, of_output / of_input.clamp_min(torch.finfo(of_input.dtype).tiny), 1.0).sqrt()
    first.weight.div_(scale.view(-1, *(1,) * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.div_(scale)
    by_input = _by_input(second)
    by_input.mul_(scale.view(len(by_input), 1, -1, *(1,) * (by_input.dim() - 3)))
    return float((scale - 1).abs().max())


def output_ranges(layer: Layer) -> Tensor:
    """The largest |w| of each output channel, (out,)."""
    return layer.weight.detach().abs().flatten(1).amax(1)


def input_ranges(layer: Layer) -> Tensor:
    """The largest |w| with which each input channel is used, (in,); of a depthwise one that of its only output."""
    by_input = _by_input(layer).abs()
    return by_input.amax(dim=(1, *range(3, by_input.dim()))).flatten()


def _by_input(layer: Layer) -> Tensor:
    """The weight itself, seen as (groups, outputs of a group, inputs of a group, …)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return torch.unflatten(layer.weight.detach(), 0, (groups, -1))
