"""The layers with weights of a float ONNX file that was made elsewhere, read without trusting the file."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from compress.errors import ModelError
from compress.files.onnx_file import first_line, read_onnx
from compress.files.onnx_tensors import stored_tensors

INTEGER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
SAME_PADDING = ("", "NOTSET")
Item = TypeVar("Item")


@dataclass(frozen=True)
class OnnxLayer:
    """One convolution, linear layer or batch-norm, as PyTorch keeps it.

    `weight` is (out, in/groups, height, width), (out, in) or (channels,); `bias` has one number an output channel and
    is zero where the file has none. A convolution's `geometry` is (strides, padding, dilations, groups), padding None
    where it differs from side to side. `mean`, `variance` and `eps` are a batch-norm's.
    """

    name: str
    kind: Literal["convolution", "linear layer", "batch-norm"]
    weight: np.ndarray
    bias: np.ndarray
    geometry: tuple[Any, ...] = ()
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    eps: float = 0.0


def onnx_layers(path: Path) -> list[OnnxLayer]:
    """All layers with weights that lead to a float file's first output, inputs before what uses them.

    Batch-norms behind convolutions are folded by ONNX Runtime's basic optimisations; the order is `depth_first`'s,
    since files keep no other. Raises ModelError for what is no ONNX file, is damaged, too large, has weights outside
    its own folder, is int8 or float16 already, or is refused by onnx's checker or by ONNX Runtime.
    """
    _require_float(path, _checked(path))
    optimized = _optimized(path)
    producers = {output: node for node in optimized.graph.node for output in node.output}
    if not optimized.graph.output or optimized.graph.output[0].name not in producers:
        raise ModelError(f"{path} computes nothing; give the ONNX file of a whole network")
    last = producers[optimized.graph.output[0].name]
    order = depth_first(last, lambda node: (producers[name] for name in node.input if name in producers), id)
    return list(_layers(path, order, optimized))


def depth_first(
    last: Item, inputs: Callable[[Item], Iterable[Item]], key: Callable[[Item], object] = lambda item: item
) -> list[Item]:
    """Everything that `last` needs, each after its inputs, first inputs first: the same order for the same graph.

    `key` tells items apart. The order in which a file lists its nodes says nothing of that kind: exporters and
    optimisers may list two branches either way round.
    """
    order: list[Item] = []
    seen: set[object] = set()
    waiting = [(last, False)]
    while waiting:
        item, ready = waiting.pop()
        if ready:
            order.append(item)
        elif key(item) not in seen:
            seen.add(key(item))
            waiting.append((item, True))
            waiting += [(source, False) for source in reversed([*inputs(item)])]
    return order


def _checked(path: Path) -> ModelProto:
    """The graph in a file, its weights still outside where they are kept so, passed by onnx's checker."""
    model = read_onnx(path)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # the checker's own, and what reading outside files raises
        raise ModelError(f"{path} is not a valid ONNX file: {first_line(error)}; export it again") from error
    return model


def _require_float(path: Path, model: ModelProto) -> None:
    whole = next((n for n in model.graph.node if n.op_type in INTEGER or n.op_type.startswith("QLinear")), None)
    if whole is not None:
        raise ModelError(
            f"{path} is int8 already (node {whole.name or whole.op_type}); give the float file that it was made from"
        )
    half = next((t for t in stored_tensors(model) if t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)), None)
    if half is not None:
        raise ModelError(f"{path} holds 16-bit weights (such as {half.name}); give the float32 file of this network")


def _optimized(path: Path) -> ModelProto:
    """The graph with constants and batch-norms folded, all its weights inside."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
            # Weights that folding left as they were are still where the original keeps them.
            load_external_data_for_model(optimized, str(path.parent))
        except Exception as error:  # the runtime's own exceptions share no base class but this
            raise ModelError(f"ONNX Runtime {ort.__version__} refuses {path}: {first_line(error)}") from error
    return optimized


def _layers(path: Path, order: list[NodeProto], model: ModelProto) -> Iterator[OnnxLayer]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def constant(name: str) -> np.ndarray:
        if name not in constants:
            raise ModelError(f"{path} computes the weight {name} instead of storing it; export it in evaluation mode")
        return numpy_helper.to_array(constants[name]).astype(np.float32)

    for node in order:
        if node.op_type == "Conv":
            yield _convolution(node, constant)
        elif node.op_type == "Gemm":
            yield _linear(node, constant)
        elif node.op_type == "MatMul" and node.input[1] in constants:
            yield _matmul(node, constant, readers.get(node.output[0], []), constants)
        elif node.op_type == "BatchNormalization":
            scale, shift, mean, variance = (constant(name) for name in node.input[1:5])
            eps = float(_attributes(node).get("epsilon", 1e-5))
            yield OnnxLayer(node.name, "batch-norm", scale, shift, mean=mean, variance=variance, eps=eps)


def _convolution(node: NodeProto, constant: Callable[[str], np.ndarray]) -> OnnxLayer:
    weight, given = constant(node.input[1]), _attributes(node)
    axes = weight.ndim - 2
    pads = tuple(given.get("pads", (0,) * 2 * axes))
    even = pads[:axes] == pads[axes:] and given.get("auto_pad", b"").decode() in SAME_PADDING
    geometry = (
        tuple(given.get("strides", (1,) * axes)),
        pads[:axes] if even else None,
        tuple(given.get("dilations", (1,) * axes)),
        given.get("group", 1),
    )
    bias = constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight), np.float32)
    return OnnxLayer(node.name, "convolution", weight, bias, geometry)


def _linear(node: NodeProto, constant: Callable[[str], np.ndarray]) -> OnnxLayer:
    given = _attributes(node)
    weight = constant(node.input[1]) * np.float32(given.get("alpha", 1.0))
    weight = weight if given.get("transB", 0) else weight.T
    bias = np.zeros(len(weight), np.float32)
    if len(node.input) > 2:
        bias = bias + (constant(node.input[2]) * np.float32(given.get("beta", 1.0))).reshape(-1)
    return OnnxLayer(node.name, "linear layer", np.ascontiguousarray(weight), bias)


def _matmul(
    node: NodeProto,
    constant: Callable[[str], np.ndarray],
    readers: list[NodeProto],
    constants: dict[str, TensorProto],
) -> OnnxLayer:
    weight = np.ascontiguousarray(constant(node.input[1]).T)
    bias = np.zeros(len(weight), np.float32)
    if len(readers) == 1 and readers[0].op_type == "Add":
        added = next((name for name in readers[0].input if name in constants), None)
        if added and math.prod(constants[added].dims) == len(weight):
            bias = constant(added).reshape(-1)
    return OnnxLayer(node.name, "linear layer", weight, bias)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
