"""The nodes and values of an ONNX graph from outside: no foreign operators, no size that is not a classifier's."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from compress.errors import ModelError
from compress.files.onnx_tensors import RANK, Body, bodies, inner_graphs

# ONNX's own, and those of ONNX Runtime that need no further library.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
NODES = 200_000  # with each call of a function replaced by what it does
CALLS_DEEP = 50
INPUT_NUMBERS = 2**28  # a thousand colour images of 300 pixels
VALUE_NUMBERS = 2**31
SMALL_BYTES = 2**10  # constants up to here may be sizes that others are computed from
Key = tuple[str, str, str]


def require_bounded_graph(model: ModelProto, path: Path) -> None:
    """See that a graph can be run with what is here and in bounded memory; raises ModelError.

    Sizes are those that are written down or that onnx's shape inference finds; what a graph computes only while it runs
    is not bounded.
    """
    _require_own_operators(model, path)
    for body in bodies(model):
        if isinstance(body, GraphProto):
            _require_sizes(body.input, INPUT_NUMBERS, path)
            _require_sizes((*body.output, *body.value_info), VALUE_NUMBERS, path)
    try:
        inferred = onnx.shape_inference.infer_shapes(_light(model), data_prop=True)
    except Exception:  # noqa: BLE001 - a graph that is not valid is the checker's to refuse
        return
    _require_sizes((*inferred.graph.output, *inferred.graph.value_info), VALUE_NUMBERS, path)


def _require_own_operators(model: ModelProto, path: Path) -> None:
    """Every operator is known here or is a function of the file's own, and calling them comes to an end."""
    functions: dict[Key, Body] = {(f.domain, f.name, f.overload): f for f in model.functions}
    for body in bodies(model):
        for node in body.node:
            if node.domain not in DOMAINS and _key(node) not in functions:
                raise ModelError(
                    f"{path} uses the operator {node.op_type!r} of {node.domain!r}, which only a library of its own "
                    "brings; none is ever loaded. Export the net with ONNX's own operators"
                )
    known: dict[Key, int] = {}
    if _nodes(model.graph, functions, known, path, 0) > NODES:
        raise ModelError(f"{path} has more than {NODES:,} nodes, those of its functions counted at each call")


def _key(node: NodeProto) -> Key:
    return node.domain, node.op_type, node.overload


def _nodes(body: Body, functions: dict[Key, Body], known: dict[Key, int], path: Path, depth: int) -> int:
    """How many nodes a graph has once its functions are written out."""
    if depth > CALLS_DEEP:
        raise ModelError(f"{path} has functions that call each other without end, or deeper than any net does")
    calls: Counter[Key] = Counter()
    total, waiting = 0, [body]
    while waiting:
        each = waiting.pop()
        total += len(each.node)
        calls.update(key for key in map(_key, each.node) if key in functions)
        waiting += inner_graphs(each)
    for key, times in calls.items():
        if key not in known:
            known[key] = _nodes(functions[key], functions, known, path, depth + 1)
        total += times * known[key]
    return total


def _require_sizes(values: Iterable[ValueInfoProto], most: int, path: Path) -> None:
    for value in values:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        # A dimension of 0 is an open one in some files.
        if min(dims, default=0) < 0 or len(dims) > RANK or math.prod(d for d in dims if d) > most:
            shape = "×".join(map(str, dims[:8]))
            raise ModelError(
                f"{path}: {value.name!r} has the dimensions {shape}, which no image classifier has (at most {most:,} "
                "numbers, none negative); export it with real sizes, or open ones"
            )


def _light(model: ModelProto) -> ModelProto:
    """The graph without the numbers of its weights, so that nothing large is copied, and without claimed shapes."""
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.MergeFrom(model.opset_import)
    light.functions.MergeFrom(model.functions)
    light.graph.name = model.graph.name
    for field in ("node", "input", "sparse_initializer"):
        getattr(light.graph, field).MergeFrom(getattr(model.graph, field))
    for value in model.graph.output:  # without the shapes that the file claims, which inference would believe
        kind = TypeProto.Tensor(elem_type=value.type.tensor_type.elem_type)
        light.graph.output.add(name=value.name, type=TypeProto(tensor_type=kind))
    for tensor in model.graph.initializer:
        small = tensor.ByteSize() <= SMALL_BYTES
        bare = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        light.graph.initializer.append(tensor if small else bare)
    return light
