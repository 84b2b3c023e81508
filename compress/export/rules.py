"""What runtimes ask of a file, each rule read off the file itself.

A rule takes a graph and gives one sentence for each thing that breaks it, naming the node or tensor.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from compress.export.reading import Layer, Reading, values

OWN_WIDTHS = "own_widths"  # metadata: layers whose odd widths are the architecture's, not pruning's
ALIGNMENT = 8
SEVEN_BITS = 63  # 2·255·63 = 32130 fits into 16 bits, 2·255·127 does not
ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
DECIMAL = TensorProto.DataType.Name


@dataclass(frozen=True)
class Judged:
    """A model under judgement, and the layers that may have widths that are no multiples of 8."""

    model: ModelProto
    graph: Reading
    own_widths: Collection[str]

    @classmethod
    def of(cls, model: ModelProto, own_widths: Collection[str] | None = None) -> "Judged":
        """Read a model; without `own_widths` those that its metadata name."""
        return cls(model, Reading(model), _written_widths(model) if own_widths is None else own_widths)

    def whole_layers(self) -> Iterator[Layer]:
        """The layers whose weights are stored as integers."""
        return (layer for layer in self.graph.layers() if layer.whole)


Rule = Callable[[Judged], Iterator[str]]


def unsigned_activations(judged: Judged) -> Iterator[str]:
    """Activations are rounded to uint8: there are fast kernels for nothing else."""
    yield from _activations(judged, TensorProto.UINT8)


def signed_activations(judged: Judged) -> Iterator[str]:
    """Activations are rounded to int8."""
    yield from _activations(judged, TensorProto.INT8)


def no_zero_points(judged: Judged) -> Iterator[str]:
    """All zero points are 0."""
    for node in judged.graph.nodes:
        point = judged.graph.zero_point(node) if node.op_type in ROUNDING[:2] else None
        if point is not None and values(point).any():
            yield f"{node.name}: the zero point {point.name} should be 0, not {int(values(point).flat[0])}"


def symmetric_weights(judged: Judged) -> Iterator[str]:
    """Stored weights are signed integers with zero point 0."""
    for layer in judged.whole_layers():
        if layer.weight.data_type not in (TensorProto.INT8, TensorProto.INT4):
            yield f"{layer.name}: the weight {layer.weight.name} should be int8, not {DECIMAL(layer.weight.data_type)}"
        before = judged.graph.producers.get(layer.node.input[1])
        point = judged.graph.zero_point(before) if before is not None else None
        if before is not None and before.op_type == "DequantizeLinear" and point is not None and values(point).any():
            yield f"{layer.name}: the zero point {point.name} of its weight should be 0"


def whole_biases(judged: Judged) -> Iterator[str]:
    """The bias of an integer layer is int32: a float one keeps the layer in float in all but new runtimes."""
    for node, bias in _biases(judged):
        if bias.data_type != TensorProto.INT32:
            yield f"{node}: the bias {bias.name} should be int32, not {DECIMAL(bias.data_type)}"


def float_biases(judged: Judged) -> Iterator[str]:
    """The bias of an integer layer is float: the runtime dequantizes no int32."""
    for node, bias in _biases(judged):
        if bias.data_type != TensorProto.FLOAT:
            yield f"{node}: the bias {bias.name} should be float32, not {DECIMAL(bias.data_type)}"


def weights_of_seven_bits(judged: Judged) -> Iterator[str]:
    """No weight beyond ±63: two products of uint8 and int8, added in 16 bits, then never exceed 32767."""
    for layer in judged.whole_layers():
        numbers = values(layer.weight).astype(np.int64)
        largest = int(np.abs(numbers).max(initial=0))
        if largest > SEVEN_BITS:
            yield (
                f"{layer.name}: the weight {layer.weight.name} reaches ±{largest}, and beyond ±{SEVEN_BITS} sums of "
                "two products overflow 16 bits on CPUs without VNNI"
            )


def fixed_shapes(judged: Judged) -> Iterator[str]:
    """Inputs and outputs have no open dimension, and the batch is 1."""
    for value in (*judged.model.graph.input, *judged.model.graph.output):
        dims = value.type.tensor_type.shape.dim
        opened = [dim.dim_param or "?" for dim in dims if not dim.HasField("dim_value")]
        if opened:
            yield f"{value.name}: the dimension {opened[0]} should be a number"
        elif dims and dims[0].dim_value != 1:
            yield f"{value.name}: the batch should be 1, not {dims[0].dim_value}"


def aligned_channels(judged: Judged) -> Iterator[str]:
    """Output channels are multiples of 8, but for layers whose odd width is the architecture's own."""
    for layer in judged.graph.layers():
        if layer.name in judged.own_widths:
            continue
        channels = layer.weight.dims[0] if layer.node.op_type in ("Conv", "ConvInteger") else _columns(layer)
        if channels % ALIGNMENT:
            yield f"{layer.name}: {channels} output channels are no multiple of {ALIGNMENT}"


def no_rounding(judged: Judged) -> Iterator[str]:
    """Nothing is quantized."""
    for node in judged.graph.nodes:
        if node.op_type in ROUNDING:
            yield f"{node.name}: a {node.op_type} has no place in a float file"


def half_weights(judged: Judged) -> Iterator[str]:
    """The weights of all layers are float16."""
    for layer in judged.graph.layers():
        if layer.weight.data_type != TensorProto.FLOAT16:
            kind = DECIMAL(layer.weight.data_type)
            yield f"{layer.name}: the weight {layer.weight.name} should be float16, not {kind}"


def float_interface(judged: Judged) -> Iterator[str]:
    """Inputs and outputs are not float16."""
    for value in (*judged.model.graph.input, *judged.model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            yield f"{value.name}: should be float32 or uint8, not float16"


def _activations(judged: Judged, wanted: int) -> Iterator[str]:
    for node in judged.graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        point = judged.graph.zero_point(node)
        kind = TensorProto.UINT8 if point is None else point.data_type
        if kind != wanted:
            yield f"{node.name}: should round to {DECIMAL(wanted).lower()}, not {DECIMAL(kind).lower()}"


def _biases(judged: Judged) -> Iterator[tuple[str, TensorProto]]:
    for layer in judged.whole_layers():
        if layer.node.op_type in ("Conv", "Gemm") and len(layer.node.input) > 2:
            bias = judged.graph.stored(layer.node.input[2])
            if bias is not None:
                yield layer.name, bias


def _columns(layer: Layer) -> int:
    """The output width of a matrix product."""
    transposed = any(a.name == "transB" and a.i for a in layer.node.attribute)
    return int(layer.weight.dims[0 if transposed else -1])


def _written_widths(model: ModelProto) -> tuple[str, ...]:
    written = next((entry.value for entry in model.metadata_props if entry.key == OWN_WIDTHS), "[]")
    try:
        found = json.loads(written)
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
