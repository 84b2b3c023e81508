"""How the numbers of a file are stored: weights of 4 bits, float16, and ONNX Runtime's own format."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto

from compress.errors import ExportError
from compress.export.reading import Reading, values
from compress.export.targets import OPSET_OF_INT4, TARGETS
from compress.files import durable

SMALLEST, LARGEST = -8, 7
HALF_MAX = float(np.finfo(np.float16).max)
# Inputs that the operator's definition wants in float32, whatever it computes in.
ALWAYS_FLOAT = {"Resize": (1, 2)}


def store_four_bits(model: ModelProto) -> None:
    """Store the int8 weights of all layers as ONNX INT4 and cast them back to int8 where they are used, in place.

    ONNX Runtime computes the cast once, when it loads the file, and the layer stays an int8 one: half the file at the
    speed of int8. INT4 straight into a DequantizeLinear would leave a float layer. Raises ExportError where a weight
    does not fit or the opset is older than 21.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    if opset < OPSET_OF_INT4:
        raise ExportError(f"weights of 4 bits need opset {OPSET_OF_INT4}, not {opset}; set export.opset to that")
    casts: dict[str, NodeProto] = {}
    for layer in Reading(model).layers():
        tensor = layer.weight
        if tensor.data_type != TensorProto.INT8:
            continue
        whole = values(tensor)
        if whole.size and not SMALLEST <= whole.min() <= whole.max() <= LARGEST:
            raise ExportError(f"{tensor.name} does not fit into 4 bits: it reaches {int(np.abs(whole).max())}")
        kind = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
        tensor.CopyFrom(onnx.numpy_helper.from_array(whole.astype(kind), tensor.name))
        casts[tensor.name] = onnx.helper.make_node(
            "Cast", [tensor.name], [f"{tensor.name}_int8"], name=f"{layer.name}/weight/cast", to=TensorProto.INT8
        )
    _read_instead(model, casts)


def _read_instead(model: ModelProto, casts: dict[str, NodeProto]) -> None:
    """Put each cast before the first node that reads its input, and let that and all later ones read its output."""
    nodes: list[NodeProto] = []
    placed = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in casts:
                if name not in placed:
                    nodes.append(casts[name])
                    placed.add(name)
                node.input[i] = casts[name].output[0]
        nodes.append(node)
    _set_nodes(model, nodes)


def halve(model: ModelProto) -> None:
    """Let a float file compute in float16, in place; its inputs and outputs stay as they are.

    Raises ExportError where a stored number is beyond float16's 65504.
    """
    kept = {
        node.input[i] for node in model.graph.node for i in ALWAYS_FLOAT.get(node.op_type, ()) if i < len(node.input)
    }
    for tensor in model.graph.initializer:
        if tensor.name not in kept:
            _halve_tensor(tensor, tensor.name)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and not kept.intersection(node.output):
                _halve_tensor(attribute.t, node.name)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    _cast_interface(model)


def _halve_tensor(tensor: TensorProto, where: str) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    numbers = values(tensor)
    beyond = np.isfinite(numbers) & (np.abs(numbers) > HALF_MAX)
    if beyond.any():
        raise ExportError(
            f"{where} holds {numbers[beyond].flat[0]:g}, and float16 ends at {HALF_MAX:g}: set export.target to float"
        )
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers.astype(np.float16), tensor.name))


def _cast_interface(model: ModelProto) -> None:
    """Cast float32 inputs to float16 and float16 results back, under the names they had."""
    inner: dict[str, str] = {}
    first, last = [], []
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inner[value.name] = f"{value.name}_half"
            first.append(_cast(value.name, inner[value.name], TensorProto.FLOAT16))
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inner[value.name] = f"{value.name}_half"
            last.append(_cast(inner[value.name], value.name, TensorProto.FLOAT))
    for node in model.graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                side[i] = inner.get(name, name)
    _set_nodes(model, [*first, *model.graph.node, *last])


def _cast(source: str, result: str, kind: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [source], [result], name=f"{source}/cast", to=kind)


def _set_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def extras(model: ModelProto, target: str) -> dict[str, bytes]:
    """The files that belong beside a target's .onnx, by suffix: `.ort` for mobile."""
    wanted = TARGETS[target].format
    return {wanted: ort_format(model)} if wanted == ".ort" else {}


def ort_format(model: ModelProto) -> bytes:
    """The model in ONNX Runtime's own format, optimised, which small builds of the runtime load without a parser.

    Layouts that suit this machine alone are left out, so that the file runs elsewhere as well. Raises ExportError
    where the runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.save_model_format", "ORT")
    with durable.temporary() as folder:
        written = folder / "model.ort"
        options.optimized_model_filepath = str(written)
        try:
            ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer"],
            )
        except Exception as error:  # the runtime's own exceptions share no base class but this
            raise ExportError(
                f"ONNX Runtime {ort.__version__} cannot write the graph in its own format: "
                f"{' '.join(str(error).split())}"
            ) from error
        return written.read_bytes()


def write_ort(path: Path) -> Path:
    """Write `net.ort` beside `net.onnx`; gives its path. Raises ExportError as `ort_format` does."""
    result = path.with_suffix(".ort")
    durable.write(result, ort_format(onnx.load(path)))
    return result
