"""What is done to a freshly exported graph so that the file holds what is needed, once, and no more."""

from collections.abc import Mapping

import onnx
from onnx import ModelProto

from compress.export.naming import rename

SMALL = 4096  # elements: weights larger than this are never alike but by chance, in a net that was not trained


def share_equal(model: ModelProto) -> None:
    """Let equal small tensors stand in the file once: zero points of biases, mostly, of which every layer has one."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        key = (tensor.data_type, tuple(tensor.dims), values.tobytes() if values.size <= SMALL else tensor.name.encode())
        if key in first:
            renamed[tensor.name] = first[key]
        else:
            first[key] = tensor.name
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def part_int8(model: ModelProto) -> None:
    """Give every layer int8 tensors of its own where equal ones were made one.

    On CPUs without VNNI users switch on `session.x64quantprecision`, with which ONNX Runtime rewrites weights and
    their zero points; it refuses a file in which two layers share one.
    """
    whole = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    used: set[str] = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in used:
                own = model.graph.initializer.add()
                own.CopyFrom(whole[name])
                own.name = node.input[i] = f"{name}_{node.name}"
            elif name in whole:
                used.add(name)


def strip(model: ModelProto, names: Mapping[str, str]) -> None:
    """Remove what the exporter adds for people, stack traces, shape notes, doc strings, and name the nodes.

    `names` are those of `node_names`.
    """
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.ClearField("functions")
    model.graph.ClearField("value_info")
    model.graph.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.graph.name = "net"
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    rename(model, names)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
