"""Finding one's way in an ONNX graph: who makes a value, and which weights a layer has."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

LAYERS = ("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger")
CARRIERS = ("DequantizeLinear", "QuantizeLinear", "Cast", "CastLike", "Transpose", "Identity")


@dataclass(frozen=True)
class Layer:
    """A node that multiplies with weights of its own, and the tensor that they are stored in."""

    node: NodeProto
    weight: TensorProto

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name

    @property
    def whole(self) -> bool:
        """Whether the weights are stored as integers."""
        return self.weight.data_type in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)


class Reading:
    """A graph's initializers and producers by the name of the value."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}

    def stored(self, value: str) -> TensorProto | None:
        """The initializer that a value is read from, through casts and dequantization; None if it is computed."""
        while value not in self.tensors and value in self.producers and self.producers[value].op_type in CARRIERS:
            value = self.producers[value].input[0]
        return self.tensors.get(value)

    def layers(self) -> Iterator[Layer]:
        """Every convolution and matrix product with stored weights, in graph order."""
        for node in self.nodes:
            weight = self.stored(node.input[1]) if node.op_type in LAYERS else None
            if weight is not None:
                yield Layer(node, weight)

    def zero_point(self, node: NodeProto) -> TensorProto | None:
        """The stored zero point of a QuantizeLinear or DequantizeLinear; None where it is left out (then it is 0)."""
        return self.tensors.get(node.input[2]) if len(node.input) > 2 else None


def values(tensor: TensorProto) -> np.ndarray:
    """A stored tensor's numbers; 4-bit integers as int8."""
    array = onnx.numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.INT4:
        return array.astype(np.int8)
    return array.astype(np.uint8) if tensor.data_type == TensorProto.UINT4 else array
