"""A seal over what a file says and computes, so that a changed weight does not go unnoticed."""

import hashlib
from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

KEY = "seal"


def seal(model: ModelProto) -> None:
    """Write the SHA-256 of the model's content into its metadata, in place, over one that is there."""
    entries = {entry.key: entry.value for entry in model.metadata_props} | {KEY: digest(model)}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))


def sealed(model: ModelProto) -> bool | None:
    """Whether the model is as it was when it was sealed; None where it has no seal."""
    written = [entry.value for entry in model.metadata_props if entry.key == KEY]
    return written == [digest(model)] if written else None


def digest(model: ModelProto) -> str:
    """SHA-256, in hexadecimal, of nodes, attributes, stored tensors, inputs, outputs and metadata but the seal.

    How the model is serialised does not matter: where tensors keep their bytes, the order of tensors and of
    metadata, notes for people. Anyone can seal a file anew: this tells of damage, not of forgery.
    """
    content = hashlib.sha256()
    for part in _model(model):
        content.update(len(part).to_bytes(8, "big"))  # so that no two lists of parts read the same
        content.update(part)
    return content.hexdigest()


def _model(model: ModelProto) -> Iterator[bytes]:
    yield f"ir {model.ir_version}".encode()
    for opset in sorted(f"{entry.domain} {entry.version}" for entry in model.opset_import):
        yield opset.encode()
    for key, value in sorted((entry.key, entry.value) for entry in model.metadata_props if entry.key != KEY):
        yield from (key.encode(), value.encode())
    for function in sorted(model.functions, key=lambda each: (each.domain, each.name)):
        yield function.SerializeToString(deterministic=True)
    yield from _graph(model.graph)


def _graph(graph: GraphProto) -> Iterator[bytes]:
    for value in (*graph.input, *graph.output):
        yield from (b"value", value.name.encode(), value.type.SerializeToString(deterministic=True))
    for tensor in sorted(graph.initializer, key=lambda each: each.name):
        yield from _tensor(tensor)
    for sparse in graph.sparse_initializer:
        yield sparse.SerializeToString(deterministic=True)
    for node in graph.node:
        yield from _node(node)


def _node(node: NodeProto) -> Iterator[bytes]:
    yield from (b"node", node.domain.encode(), node.op_type.encode(), node.name.encode())
    for side in (node.input, node.output):
        yield str(len(side)).encode()
        yield from (value.encode() for value in side)
    for attribute in sorted(node.attribute, key=lambda each: each.name):
        yield from _attribute(attribute)


def _attribute(attribute: AttributeProto) -> Iterator[bytes]:
    yield from (b"attribute", attribute.name.encode(), str(attribute.type).encode())
    if attribute.type == AttributeProto.TENSOR:
        yield from _tensor(attribute.t)
    elif attribute.type == AttributeProto.GRAPH:
        yield from _graph(attribute.g)
    else:
        bare = AttributeProto()
        bare.CopyFrom(attribute)
        bare.ClearField("doc_string")
        yield bare.SerializeToString(deterministic=True)


def _tensor(tensor: TensorProto) -> Iterator[bytes]:
    yield from (b"tensor", tensor.name.encode(), f"{tensor.data_type} {list(tensor.dims)}".encode())
    outside = tensor.data_location == TensorProto.EXTERNAL
    if outside or tensor.data_type == TensorProto.STRING:
        yield tensor.SerializeToString(deterministic=True)
        return
    try:
        yield onnx.numpy_helper.to_array(tensor).tobytes()
    except (ValueError, TypeError):  # damaged: fewer bytes than its shape asks for
        yield tensor.SerializeToString(deterministic=True)
