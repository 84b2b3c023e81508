"""Operations without an int8 kernel, written in ones that have it. The function of the network stays the same."""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

import compress.edits.graph as graph
import compress.edits.hard_sigmoids as hard_sigmoids
import compress.edits.in_place as in_place
import compress.edits.operators as operators
from compress.edits.functional import free_name

LARGEST = torch.finfo(torch.float32).max


def rewrite(traced: fx.GraphModule, *, signed: bool) -> None:
    """Write hard-swish, hard-sigmoid, SiLU and lone batch-norms in operations with int8 kernels, in place.

    Hard-sigmoids and hard-swishes that are written out, such as relu6(x + 3)/6, are found, too. With `signed`
    activations hard-sigmoids are left as they are: the kernels that make them cheap are unsigned.
    """
    out_of_place(traced)
    hard_sigmoids.name_hard_sigmoids(traced, nn.Hardsigmoid if signed else graph.HardSigmoid)
    for node in list(traced.graph.nodes):
        layer = graph.called(traced, node)
        if isinstance(layer, nn.Hardswish) or graph.does(node, {F.hardswish}, set()):
            _as_gate(traced, node, nn.Hardsigmoid() if signed else graph.HardSigmoid())
        elif isinstance(layer, nn.SiLU) or graph.does(node, {F.silu}, set()):
            _as_gate(traced, node, nn.Sigmoid())
        elif (isinstance(layer, nn.Hardsigmoid) or graph.does(node, {F.hardsigmoid}, set())) and not signed:
            node.replace_all_uses_with(_before(traced, node, graph.HardSigmoid()))
            traced.graph.erase_node(node)
        elif operators.is_clamp(node):
            bounds = operators.clip_range(traced, node)
            if bounds is not None:
                node.replace_all_uses_with(_before(traced, node, _as_layer(*bounds)))
                traced.graph.erase_node(node)
        elif _is_needless_expansion(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            traced.set_submodule(str(node.target), _as_convolution(layer))
    traced.recompile()


def out_of_place(traced: fx.GraphModule) -> None:
    """Let what changes a rounded input give a new tensor instead, in place; nothing reads the input later any more.

    Learned scales need the rounded values for their gradient. A ReLU right behind what it clips is rounded itself,
    and stays as it is.
    """
    for node in [node for node in traced.graph.nodes if in_place.changes_its_input(traced, node)]:
        layer, source = graph.called(traced, node), node.all_input_nodes[0]
        moved = source.op == "placeholder" or operators.moves_values(source, graph.called(traced, source))
        if operators.clip_range(traced, node) is not None and len(source.users) == 1 and not moved:
            continue
        if layer is not None:
            layer.inplace = False  # type: ignore[assignment]
        elif node.op == "call_method":
            node.target = str(node.target)[:-1]
        elif node.target in in_place.FUNCTIONS:
            node.target = in_place.FUNCTIONS[node.target]
        else:
            node.kwargs = {**node.kwargs, "inplace": False}


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


def _is_needless_expansion(node: fx.Node) -> bool:
    """Whether a value is expanded to the size of what it is then added to or multiplied with, which those do anyway."""
    if not graph.does(node, set(), {"expand_as"}) or len(node.args) != 2:
        return False
    return all((graph.is_mul(user) or graph.is_add(user)) and node.args[1] in user.args for user in node.users)


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
