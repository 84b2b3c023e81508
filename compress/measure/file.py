"""What an ONNX file holds and what runs of it cost, read off the graph and ONNX Runtime's optimised form of it."""

import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

from compress.errors import ExportError

FLOAT_CONVS = ("Conv", "FusedConv", "NhwcFusedConv")
# Which dimensions of the output are positions: a Conv gives (batch, channels, *positions), a MatMul channels last.
POSITIONS = {"Conv": slice(2, None), "MatMul": slice(1, -1), "Gemm": slice(0, 0)}
PASSED_ON = ("DequantizeLinear", "QuantizeLinear", "Transpose")
INT8_CONVS = ("QLinearConv", "ConvInteger")
HARD = ("Clip", "Relu", "HardSwish", "HardSigmoid", "Sigmoid", "Mul", "Softmax")


def session(model: Path | bytes, threads: int = 1, optimized: Path | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU; `optimized` is where to write the graph that it really runs.

    Raises ExportError where the runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        source = model if isinstance(model, bytes) else str(model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base class but this
        name = "the exported graph" if isinstance(model, bytes) else str(model)
        raise ExportError(f"ONNX Runtime {ort.__version__} refuses {name}: {' '.join(str(error).split())}") from error


def count_macs(model: ModelProto) -> int:
    """Multiply-accumulates of Conv and Gemm for one image, float or int8 in QDQ form.

    A Conv and a MatMul count output positions × weights, a Gemm its weights; all else is not counted.
    Raises ExportError where shapes cannot be inferred.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in single.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims:
            dims[0].Clear()
            dims[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    sizes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
    producer = {output: node for node in model.graph.node for output in node.output}
    total = 0
    for node in model.graph.node:
        shape = _weight_shape(node, producer, weights) if node.op_type in POSITIONS else None
        if shape:
            total += math.prod(_positions(node, sizes)) * math.prod(shape)
    return total


def _positions(node: NodeProto, sizes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The dimensions over which a node uses its weights again, for one image."""
    if node.op_type == "Gemm":
        return ()
    size = sizes.get(node.output[0], ())[POSITIONS[node.op_type]]
    if 0 in size or node.output[0] not in sizes:
        raise ExportError(f"the output size of node {node.name} cannot be inferred, so MACs cannot be counted")
    return size


def _weight_shape(
    node: NodeProto, producer: dict[str, NodeProto], weights: dict[str, tuple[int, ...]]
) -> tuple[int, ...] | None:
    name = node.input[1]
    while name not in weights and name in producer and producer[name].op_type in PASSED_ON:
        name = producer[name].input[0]
    return weights.get(name)


@dataclass(frozen=True)
class Coverage:
    """What ONNX Runtime's optimiser made of a graph: how many operators of each kind it will really run."""

    operators: dict[str, int]

    def count(self, *kinds: str) -> int:
        """How many operators there are of these kinds."""
        return sum(self.operators.get(kind, 0) for kind in kinds)

    @property
    def float_convs(self) -> int:
        """Convolutions that stay float."""
        return self.count(*FLOAT_CONVS)

    @property
    def int8_convs(self) -> int:
        """Convolutions with an integer kernel."""
        return self.count(*INT8_CONVS)

    @property
    def conversions(self) -> tuple[int, int]:
        """(QuantizeLinear, DequantizeLinear) left: at most (2, 2) where the whole path is int8."""
        return self.count("QuantizeLinear"), self.count("DequantizeLinear")


def coverage(model: ModelProto) -> Coverage:
    """Let ONNX Runtime optimise a graph and count what is left; raises ExportError where it refuses the graph."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(model.SerializeToString(), optimized=optimized)
        return Coverage(dict(Counter(node.op_type for node in onnx.load(optimized).graph.node)))


def require_int8(model: ModelProto, convolutions: int) -> tuple[str, ...]:
    """See that every convolution of an int8 file runs as int8 here; returns warnings about what else stays float.

    `convolutions` is how many the graph has. Raises ExportError where a Conv or a Clip is left in float: such a
    file is slower than the float one (facts of the QDQ form in ONNX Runtime's documentation on quantization).
    """
    found = coverage(model)
    if found.float_convs or found.int8_convs < convolutions:
        raise ExportError(
            f"{max(found.float_convs, convolutions - found.int8_convs)} of {convolutions} convolutions stay float in "
            f"ONNX Runtime {ort.__version__}; quantize cannot make this architecture int8 yet"
        )
    if found.count("Clip"):
        raise ExportError(
            f"{found.count('Clip')} Clip operators are left between int8 layers; a range is wider than its ReLU6"
        )
    quantize, dequantize = found.conversions
    if quantize <= 2 and dequantize <= 2:
        return ()
    islands = ", ".join(f"{found.count(kind)} {kind}" for kind in HARD if found.count(kind)) or "other operators"
    return (
        f"the int8 file goes back to float {dequantize} times on the way ({islands} have no int8 kernel), "
        "which costs time: see its latency before you ship it",
    )
