"""Calls of convolutions and linear layers as functions, made layers: all surgery on networks looks for layers."""

import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn


def name_functional_layers(traced: fx.GraphModule) -> None:
    """Make layers of calls of conv2d and linear with stored weights, in place.

    Subclasses of Conv2d and Linear with a forward() of their own are traced into such calls. A layer takes the name of
    the module that held the weight. Calls whose weights are computed stay as they are.
    """
    for node in list(traced.graph.nodes):
        found = _layer(traced, node)
        if found is None:
            continue
        source, layer, name = found
        read = {str(each.target) for each in node.all_input_nodes}
        taken = any(_uses(other, name, read) for other in traced.graph.nodes)
        name = free_name(traced, f"{node.name}_layer") if taken or not name else name
        traced.add_submodule(name, layer.train(traced.training))
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(name, (source,))
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)


def _uses(node: fx.Node, name: str, known: set[str]) -> bool:
    """Whether a node calls a module, or reads more of it than is known."""
    target = str(node.target)
    if node.op == "get_attr":
        return target.startswith(f"{name}.") and target not in known
    return node.op == "call_module" and target == name


def _layer(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, nn.Module, str] | None:
    """What a call reads, the layer that does the same, and the module that holds its weight."""
    make, names = FUNCTIONS.get(node.target, (None, ())) if node.op == "call_function" else (None, ())
    if make is None:
        return None
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    source, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    stored = all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (weight, bias) if each is not None)
    if not isinstance(source, fx.Node) or not stored or any(isinstance(each, fx.Node) for each in given.values()):
        return None
    w: Any = operator.attrgetter(str(weight.target))(traced)
    b: Any = None if bias is None else operator.attrgetter(str(bias.target))(traced)
    layer = make(w, b is not None, **given)
    layer.weight = nn.Parameter(w.detach().clone())
    if b is not None:
        layer.bias = nn.Parameter(b.detach().clone())
    return source, layer, str(weight.target).rpartition(".")[0]


def _conv(weight: Tensor, bias: bool, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    height, width = weight.shape[2:]
    return nn.Conv2d(weight.shape[1] * groups, weight.shape[0], (height, width), bias=bias, groups=groups, **geometry)


def _linear(weight: Tensor, bias: bool) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0], bias)


FUNCTIONS: dict[Any, tuple[Callable[..., Any], tuple[str, ...]]] = {
    F.conv2d: (_conv, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    F.linear: (_linear, ("input", "weight", "bias")),
}


def free_name(traced: fx.GraphModule, name: str) -> str:
    """The name, or with underscores behind it where the network has one of its own."""
    while hasattr(traced, name):
        name += "_"
    return name
