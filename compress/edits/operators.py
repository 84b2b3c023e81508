"""What the operations of a traced network are to quantization: which have an int8 kernel, move values, or clip them."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

import compress.edits.graph as graph

MOVING_FUNCTIONS: set[Callable[..., Any]] = {
    torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, operator.getitem, F.max_pool2d, torch.max_pool2d,
}  # fmt: skip
MOVING_METHODS = {
    "flatten", "view", "reshape", "contiguous", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
}  # fmt: skip
MOVING_LAYERS = (nn.Flatten, nn.MaxPool2d, nn.Unflatten, nn.ChannelShuffle)
CLAMPS: dict[Any, tuple[str, ...]] = {  # what their arguments behind the tensor are called
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_"), ("min", "max")),
    **dict.fromkeys((torch.clamp_min, "clamp_min", "clamp_min_"), ("min",)),
    **dict.fromkeys((torch.clamp_max, "clamp_max", "clamp_max_"), ("max",)),
}
POOLS = (nn.AvgPool2d, graph.GlobalAveragePool, nn.AdaptiveAvgPool2d)
SHAPES = {"size", "dim", "numel"}


def sizes(traced: fx.GraphModule) -> set[fx.Node]:
    """The nodes that compute sizes and other numbers instead of tensors."""
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        sources = node.all_input_nodes
        if graph.does(node, {getattr}, SHAPES) or (sources and all(source in found for source in sources)):
            found.add(node)
    return found


def computes_in_int8(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether there is an int8 kernel for what a node computes from rounded tensors."""
    functions: set[Callable[..., Any]] = {torch.cat, torch.concat, F.avg_pool2d, F.adaptive_avg_pool2d, F.leaky_relu}
    return (
        graph.is_add(node)
        or graph.is_mul(node)
        or graph.is_sigmoid(node)
        or isinstance(layer, (*POOLS, nn.Sigmoid, nn.LeakyReLU))
        or graph.does(node, functions, set())
    )


def moves_values(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether a node gives some of the values that it was given, unchanged."""
    return graph.does(node, MOVING_FUNCTIONS, MOVING_METHODS) or isinstance(layer, MOVING_LAYERS)


def must_say_again(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether the kernel of a moving operation is int8 only with the grid written behind it, too."""
    again: set[Callable[..., Any]] = {F.max_pool2d, torch.max_pool2d, operator.getitem}
    return isinstance(layer, nn.MaxPool2d) or graph.does(node, again, set())


def is_activation_between(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a ReLU or clip right behind something that takes it in: rounding does its work."""
    return clip_range(traced, node) is not None


def clip_range(traced: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """The bounds that a ReLU, ReLU6, Hardtanh or clamp puts on its values; None for anything else.

    Bounds that leave out 0 are none of these: a grid always holds it.
    """
    layer = graph.called(traced, node)
    if isinstance(layer, nn.ReLU6) or graph.does(node, {F.relu6}, set()):
        return 0.0, 6.0
    if isinstance(layer, nn.ReLU) or graph.does(node, {F.relu, torch.relu, torch.relu_}, {"relu", "relu_"}):
        return 0.0, math.inf
    if isinstance(layer, nn.Hardtanh):
        return _around_zero(layer.min_val, layer.max_val)
    if graph.does(node, {F.hardtanh}, set()):
        given = _arguments(node, ("min_val", "max_val"))
        return _around_zero(given.get("min_val", -1.0), given.get("max_val", 1.0))
    if is_clamp(node):
        given = _arguments(node, CLAMPS[node.target])
        return _around_zero(given.get("min"), given.get("max"))
    return None


def is_clamp(node: fx.Node) -> bool:
    """Whether a node calls a clamp, with one bound or two, as a function or method."""
    return node.op in ("call_function", "call_method") and node.target in CLAMPS


def _arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments that a node gives behind its tensor, by name."""
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _around_zero(low: object, high: object) -> tuple[float, float] | None:
    bottom = -math.inf if low is None else low
    top = math.inf if high is None else high
    if isinstance(bottom, int | float) and isinstance(top, int | float) and bottom <= 0 <= top:
        return float(bottom), float(top)
    return None


def range_of(traced: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """The bounds that are known of a node's values."""
    layer = graph.called(traced, node)
    if isinstance(layer, nn.Sigmoid | nn.Hardsigmoid) or graph.is_sigmoid(node):
        return 0.0, 1.0
    return clip_range(traced, node)


def feeds_hard_swish(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value x is used as x·hard_sigmoid(x) and for nothing else."""
    users = list(node.users)
    gates = [user for user in users if isinstance(graph.called(traced, user), graph.HardSigmoid)]
    rest = [user for user in users if user not in gates]
    if not gates:
        return False
    return all(graph.is_mul(user) and any(gate in user.all_input_nodes for gate in gates) for user in rest)


def gives_logits(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's values leave the network as they are; those stay float: it costs nothing, and avoids ties."""
    return bool(node.users) and all(
        user.op == "output" or (moves_values(user, graph.called(traced, user)) and gives_logits(traced, user))
        for user in node.users
    )


def title(node: fx.Node) -> str:
    """A layer's dotted name, or a node's own."""
    return str(node.target) if node.op == "call_module" else node.name


def kind(node: fx.Node, layer: nn.Module | None) -> str:
    """What an operation is called in code."""
    if layer is not None:
        return type(layer).__name__
    return getattr(node.target, "__name__", str(node.target))
