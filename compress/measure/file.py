"""What an ONNX file holds and what runs of it give, read off the graph and out of ONNX Runtime."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto

from compress.errors import ExportError, ModelError
from compress.export.reading import values
from compress.files.onnx_file import read_whole

# Which dimensions of the output are positions: a Conv gives (batch, channels, *positions), a MatMul channels last.
POSITIONS = {
    "Conv": slice(2, None),
    "ConvInteger": slice(2, None),
    "MatMul": slice(1, -1),
    "MatMulInteger": slice(1, -1),
    "Gemm": slice(0, 0),
}
PASSED_ON = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Cast")
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    # All that makes integer kernels, and none of the layouts of one machine.
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
DECIMALS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def read_file(file: Path) -> ModelProto:
    """The graph in a file with all its weights, checked in full by onnx's own checker.

    Raises ModelError where there is no such file, it holds what is never read from outside (see `read_onnx`) or no
    valid graph, or a stored number is not finite.
    """
    model = read_whole(file, full=True)
    for tensor in unfinite(model):
        raise ModelError(f"{file}: the stored tensor {tensor} holds NaN or infinite numbers; export the net again")
    return model


def unfinite(model: ModelProto) -> Iterator[str]:
    """The names of stored tensors with NaN or infinite numbers, but for single ones: open clips are infinite."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in DECIMALS:
            continue
        numbers = values(tensor).astype(np.float64)
        if np.isnan(numbers).any() or (numbers.size > 1 and not np.isfinite(numbers).all()):
            yield tensor.name


def metadata(model: ModelProto) -> dict[str, str]:
    """What a file says of itself."""
    return {entry.key: entry.value for entry in model.metadata_props}


def session(
    model: Path | bytes,
    threads: int = 1,
    optimized: Path | None = None,
    level: Literal["none", "extended", "all"] = "all",
) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU; `optimized` is where to write the graph that it really runs.

    Raises ExportError where the runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS[level]
    if isinstance(model, bytes) or model.suffix.lower() != ".ort":
        # Four bytes of a foreign graph could pass for the mark of the runtime's own format, which nobody has looked at.
        options.add_session_config_entry("session.load_model_format", "ONNX")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        source = model if isinstance(model, bytes) else str(model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base class but this
        name = "the exported graph" if isinstance(model, bytes) else str(model)
        raise ExportError(f"ONNX Runtime {ort.__version__} refuses {name}: {' '.join(str(error).split())}") from error


def fixed_batch(net: ort.InferenceSession) -> int | None:
    """The batch size that a file insists on, None where it takes any."""
    shape = net.get_inputs()[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None


def outputs(net: ort.InferenceSession, images: np.ndarray) -> list[np.ndarray]:
    """All outputs for these images (n, …), each (n, …); a file of fixed batch size is fed that many at a time.

    An output without a dimension for the batch is given as it came for the first images.
    """
    name, size = net.get_inputs()[0].name, fixed_batch(net) or max(len(images), 1)
    parts = []
    for begin in range(0, len(images), size):
        part = images[begin : begin + size]
        missing = size - len(part)
        fed = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append([found[: len(part)] if found.ndim else found for found in net.run(None, {name: fed})])
    return [np.concatenate(each) if each[0].ndim else each[0] for each in zip(*parts, strict=True)]


def count_macs(model: ModelProto) -> int:
    """Multiply-accumulates of Conv and Gemm for one image, float or int8.

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
