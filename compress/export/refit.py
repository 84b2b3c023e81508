"""Putting layers of other widths into the graph of a net of the same kind, which saves tracing it again.

For measuring only: a file that is kept is always traced, so that its bytes do not depend on what was traced before.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from torch import Tensor

FLAT = "flat"  # the shape (batch, all else)
BETWEEN = ("DequantizeLinear", "Cast", "Identity", "Transpose")


def refitted(model: ModelProto, state: Mapping[str, Tensor]) -> ModelProto | None:
    """A copy of a traced graph with these tensors, which may have other sizes; None where they do not fit by name.

    Depthwise convolutions become as wide as their weights, and flattening takes what is there.
    """
    before = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    if before.keys() != set(state) or any(len(before[name]) != value.dim() for name, value in state.items()):
        return None
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # shapes of the other net
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name].contiguous().numpy(), tensor.name))
    producers = {output: node for node in copy.graph.node for output in node.output}
    for node in copy.graph.node:
        if node.op_type in ("Conv", "ConvInteger"):
            weight = _stored(node.input[1], before, producers)
            if weight is None:
                return None
            _regroup(node, before[weight], tuple(state[weight].shape))
        elif node.op_type == "Reshape" and _flattens(producers.get(node.input[1])):
            node.input[1] = FLAT
            kept = [each for each in node.attribute if each.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1]), FLAT))
    return copy


def _stored(name: str, stored: Mapping[str, tuple[int, ...]], producers: Mapping[str, NodeProto]) -> str | None:
    """The stored tensor that a value is made of."""
    while name not in stored:
        node = producers.get(name)
        if node is None or node.op_type not in BETWEEN:
            return None
        name = node.input[0]
    return name


def _regroup(node: NodeProto, before: tuple[int, ...], now: tuple[int, ...]) -> None:
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i == before[0] > 1:
            attribute.i = now[0]


def _flattens(shape: NodeProto | None) -> bool:
    """Whether a shape, put together or constant, is (batch, features)."""
    if shape is None or shape.op_type == "Concat":
        return shape is not None and len(shape.input) == 2
    values = [onnx.numpy_helper.to_array(a.t) for a in shape.attribute if a.name == "value"]
    return bool(values) and values[0].size == 2
