"""Whether a file holds the numbers of a net: every weight, bias and scale, recomputed from the net."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor, fx, nn

import compress.edits.graph as graph
from compress.edits.quantizers import (
    DynamicConv2d,
    DynamicLinear,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    activation_quantizers,
    integer_parameters,
    integer_weight,
    weight_scale,
)
from compress.export.reading import Layer, Reading, values
from compress.net import Net

CLOSE = 1e-6  # of the largest number: folding batch-norms on another CPU may change the last digit


@dataclass(frozen=True)
class Numbers:
    """A layer's stored numbers; the scale is None for a float layer, the bias where there is none."""

    weight: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None


def differing_layers(model: ModelProto, net: Net) -> list[str]:
    """What a file holds otherwise than the net that it was made from, one sentence for each layer or quantizer.

    Integers and scales must be the same, float weights within 1e-6 of the largest of their tensor (float16 ones after
    rounding to it). Layers are found by their names, which those of other programs' files do not match.
    """
    reading = Reading(model)
    layers = {layer.name: layer for layer in reading.layers()}
    with torch.no_grad():
        found = []
        for name, numbers in _numbers(net):
            if name not in layers:
                found.append(f"{name} is not in the file")
            elif reason := _difference(layers[name], reading, numbers):
                found.append(f"{name}: {reason}")
    return [*found, *_grids(net, reading)]


def _numbers(net: Net) -> Iterator[tuple[str, Numbers]]:
    module = net.module if net.int8 else graph.folded(net.module)
    assert isinstance(module, fx.GraphModule)
    for node, layer in graph.calls(module, nn.Conv2d, nn.Linear):
        if isinstance(layer, DynamicConv2d | DynamicLinear):
            yield str(node.target), _dynamic(layer)
        elif isinstance(layer, QuantizedConv2d | QuantizedLinear):
            yield str(node.target), _whole(layer, module.get_buffer(str(node.all_input_nodes[1].target)))
        else:
            bias = None if layer.bias is None else _array(layer.bias)
            yield str(node.target), Numbers(_array(layer.weight), None, bias)


def _whole(layer: QuantizedLayer, input_scale: Tensor) -> Numbers:
    weight, scale, bias, unit = (each.cpu() for each in integer_parameters(layer, input_scale))
    return Numbers(_array(weight), _array(scale), _array(bias.double() * unit.double()))


def _dynamic(layer: QuantizedLayer) -> Numbers:
    scale = weight_scale(layer, None)
    return Numbers(_array(integer_weight(layer, scale)), _array(scale), None)


def _array(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().cpu().numpy()
    return found


def _difference(layer: Layer, reading: Reading, wanted: Numbers) -> str:
    """What of a layer is not as it should be; empty where all is."""
    stored = values(layer.weight)
    if _untransposed(layer, reading):
        stored = stored.T
    if stored.shape != wanted.weight.shape:
        return f"its weight has the shape {stored.shape} and not {wanted.weight.shape}"
    if wanted.scale is not None and layer.whole:
        wrong = int((stored.astype(np.int64) != wanted.weight.astype(np.int64)).sum())
    else:
        wrong = _wrong(stored, wanted.weight)
    if wrong:
        return f"{wrong} of {stored.size} weights differ from the net's"
    carrier = reading.producers.get(layer.node.input[1])
    scale = reading.tensors.get(carrier.input[1]) if carrier is not None and len(carrier.input) > 1 else None
    if wanted.scale is not None and scale is not None and _wrong(*np.broadcast_arrays(values(scale), wanted.scale)):
        return "its weights' scales differ from the net's"
    return _bias(layer, reading, wanted)


def _untransposed(layer: Layer, reading: Reading) -> bool:
    """Whether a matrix stands in the file as (features, outputs)."""
    turned = False
    before = reading.producers.get(layer.node.input[1])
    while before is not None:
        turned ^= before.op_type == "Transpose"
        before = reading.producers.get(before.input[0])
    if layer.node.op_type == "Gemm":
        turned ^= any(each.name == "transB" and bool(each.i) for each in layer.node.attribute)
    return layer.node.op_type in ("Gemm", "MatMul", "MatMulInteger") and not turned


def _bias(layer: Layer, reading: Reading, wanted: Numbers) -> str:
    if wanted.bias is None or layer.node.op_type not in ("Conv", "Gemm") or len(layer.node.input) < 3:
        return ""
    stored = reading.stored(layer.node.input[2])
    if stored is None:
        return ""
    bias = values(stored)
    if stored.data_type == TensorProto.INT32:
        unit = reading.tensors[reading.producers[layer.node.input[2]].input[1]]
        bias = bias * values(unit).astype(np.float64)
    return "its bias differs from the net's" if bias.size != wanted.bias.size or _wrong(bias, wanted.bias) else ""


def _wrong(stored: np.ndarray, wanted: np.ndarray) -> int:
    """How many numbers are not the same, to the precision that they are stored in."""
    if stored.dtype == np.float16:
        return int((stored != wanted.astype(np.float16)).sum())
    bound = CLOSE * float(np.abs(wanted).max(initial=0))
    return int((np.abs(stored.astype(np.float64) - wanted.astype(np.float64)) > bound).sum())


def _grids(net: Net, reading: Reading) -> Iterator[str]:
    """Quantizers of activations whose scale or zero point in the file is another."""
    nodes = {node.name: node for node in reading.nodes if node.op_type == "QuantizeLinear"}
    there = {_grid(node, reading) for node in nodes.values()}
    for name, quantizer in activation_quantizers(net.module):
        node = nodes.get(name)
        if node is None and (quantizer.scale.item(), int(quantizer.zero_point)) in there:
            continue  # the same value was computed and rounded twice, and the file has it once
        if node is None:
            yield f"{name} is not in the file"
            continue
        scale, point = reading.tensors.get(node.input[1]), reading.zero_point(node)
        same = scale is not None and values(scale).size == 1 and values(scale).item() == quantizer.scale.item()
        if not same or (0 if point is None else int(values(point).item())) != int(quantizer.zero_point):
            yield f"{name}: its scale or zero point differs from the net's"


def _grid(node: NodeProto, reading: Reading) -> tuple[float, int] | None:
    """Scale and zero point that a QuantizeLinear stores; None where it stores no single scale."""
    scale, point = reading.tensors.get(node.input[1]), reading.zero_point(node)
    if scale is None or values(scale).size != 1:
        return None
    return float(values(scale).item()), 0 if point is None else int(values(point).item())
