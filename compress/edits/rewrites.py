"""Operations without an int8 kernel, written in ones that have it. The function of the network stays the same."""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

import compress.edits.graph as graph
import compress.edits.operators as operators
from compress.edits.functional import free_name

IN_PLACE = {"add_", "mul_", "sub_", "div_", "relu_", "sigmoid_", "clamp_", "hardtanh_"}
LARGEST = torch.finfo(torch.float32).max


def rewrite(traced: fx.GraphModule, *, signed: bool) -> None:
    """Write hard-swish, hard-sigmoid, SiLU and lone batch-norms in operations with int8 kernels, in place.

    With `signed` activations hard-sigmoids are left as they are: the kernels that make them cheap are unsigned.
    """
    out_of_place(traced)
    for node in list(traced.graph.nodes):
        layer = graph.called(traced, node)
        if isinstance(layer, nn.Hardswish) or graph.does(node, {F.hardswish}, set()):
            _as_gate(traced, node, nn.Hardsigmoid() if signed else graph.HardSigmoid())
        elif isinstance(layer, nn.SiLU) or graph.does(node, {F.silu}, set()):
            _as_gate(traced, node, nn.Sigmoid())
        elif (isinstance(layer, nn.Hardsigmoid) or graph.does(node, {F.hardsigmoid}, set())) and not signed:
            node.replace_all_uses_with(_before(traced, node, graph.HardSigmoid()))
            traced.graph.erase_node(node)
        elif graph.does(node, {torch.clamp, torch.clip}, {"clamp", "clip", "clamp_"}):
            bounds = operators.clip_range(traced, node)
            if bounds is not None:
                node.replace_all_uses_with(_before(traced, node, _as_layer(*bounds)))
                traced.graph.erase_node(node)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            traced.set_submodule(str(node.target), _as_convolution(layer))
    traced.recompile()


def out_of_place(traced: fx.GraphModule) -> None:
    """Let what changes a rounded input give a new tensor instead, in place; whoever reads the input later gets that.

    Learned scales need the rounded values for their gradient. A ReLU right behind what it clips is rounded itself,
    and stays as it is.
    """
    nodes = list(traced.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    for node in [node for node in nodes if _in_place(traced, node)]:
        layer, source = graph.called(traced, node), node.all_input_nodes[0]
        moved = source.op == "placeholder" or operators.moves_values(source, graph.called(traced, source))
        if operators.clip_range(traced, node) is not None and len(source.users) == 1 and not moved:
            continue
        if layer is not None:
            layer.inplace = False  # type: ignore[assignment]
        elif node.op == "call_method":
            node.target = str(node.target)[:-1]
        else:
            node.kwargs = {**node.kwargs, "inplace": False}
        source.replace_all_uses_with(node, delete_user_cb=lambda user, at=order[node]: order[user] > at)


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in IN_PLACE
    return bool(getattr(graph.called(traced, node), "inplace", False) or node.kwargs.get("inplace"))


def _as_gate(traced: fx.GraphModule, node: fx.Node, gate: nn.Module) -> None:
    """Replace f(x) = x·gate(x) by its parts."""
    source = node.all_input_nodes[0]
    gated = _before(traced, node, gate)
    with traced.graph.inserting_before(node):
        product = traced.graph.call_function(operator.mul, (source, gated))
    node.replace_all_uses_with(product)
    traced.graph.erase_node(node)


def _before(traced: fx.GraphModule, node: fx.Node, layer: nn.Module) -> fx.Node:
    """A call of a new layer on a node's input."""
    name = free_name(traced, f"{node.name}_gate")
    traced.add_submodule(name, layer)
    with traced.graph.inserting_before(node):
        return traced.graph.call_module(name, (node.all_input_nodes[0],))


def _as_layer(low: float, high: float) -> nn.Module:
    """A clamp as a layer: exporters write one with a single bound as Max or Min, which no runtime drops."""
    if (low, high) == (0.0, math.inf):
        return nn.ReLU()
    return nn.Hardtanh(max(low, -LARGEST), min(high, LARGEST))


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A batch-norm that follows no convolution as a depthwise one of 1×1: w = g/σ, b = β - μ·g/σ.

    One weight a channel has its own scale, so that rounding it to int8 loses nothing.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        gain = torch.rsqrt(norm.running_var + norm.eps)
        offset = -norm.running_mean * gain
        if norm.affine:
            gain, offset = gain * norm.weight, offset * norm.weight + norm.bias
        conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features)
        conv.weight.copy_(gain.view(-1, 1, 1, 1))
        conv.bias.copy_(offset)  # type: ignore[union-attr]
    return conv.train(norm.training)
