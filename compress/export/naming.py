"""Names of nodes in a file: those of the layers and quantizers that they come from."""

from collections.abc import Iterable, Mapping

from onnx import ModelProto, NodeProto

from compress.export.reading import LAYERS, Reading


def node_names(model: ModelProto, within: str = "") -> dict[str, str]:
    """What to call the nodes of a freshly exported graph, by the name of a node's first output.

    A Conv, Gemm or MatMul is called as its layer (`features.0.0`), a QuantizeLinear as its quantizer
    (`quantizer_features_0_0`, and where that is called again `quantizer_features_0_0_1`) with
    `<quantizer>/dequantize` behind it, the DequantizeLinear of a weight or bias `<layer>/weight` and
    `<layer>/bias`. Other nodes have no entry. `within` is the prefix of all layers' names, not to be repeated.
    To be called while tensors have their own names, before equal ones are made one.
    """
    graph = Reading(model)
    owners = {node.output[0]: owner for node in graph.nodes if (owner := _owner(node, graph))}
    names = _numbered({output: owner.removeprefix(within) for output, owner in owners.items()})
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear":
            _name_dequantize(node, graph, names, within)
        elif node.op_type in LAYERS and node.output[0] in names:
            before = graph.producers.get(node.input[0])
            if before is not None and before.op_type == "DynamicQuantizeLinear":
                names.setdefault(before.output[0], f"{names[node.output[0]]}/quantize")
    return _numbered(names)


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Give every node its name, or its operator and position where it has none."""
    taken = set(names.values())
    for i, node in enumerate(model.graph.node):
        name = names.get(node.output[0])
        if name is None:
            name = _free(f"{node.op_type}_{i}", taken)
            taken.add(name)
        node.name = name


def _owner(node: NodeProto, graph: Reading) -> str:
    """The layer or quantizer whose tensor a node works with; empty where there is none."""
    if node.op_type in LAYERS or node.op_type == "QuantizeLinear":
        tensor = graph.stored(node.input[1])
        return tensor.name.rpartition(".")[0] if tensor is not None else ""
    return ""


def _name_dequantize(node: NodeProto, graph: Reading, names: dict[str, str], within: str) -> None:
    before = graph.producers.get(node.input[0])
    if before is not None and before.output[0] in names:
        names[node.output[0]] = f"{names[before.output[0]]}/dequantize"
    elif node.input[0] in graph.tensors:
        layer, _, tensor = node.input[0].removeprefix(within).rpartition(".")
        names[node.output[0]] = f"{layer}/{tensor}"


def _numbered(names: Mapping[str, str]) -> dict[str, str]:
    """The same names, each once: the second of a name gets `_1`, or the next number that no other has."""
    reserved = set(names.values())
    seen: set[str] = set()
    numbered = {}
    for output, name in names.items():
        own = name
        if name in seen:
            own = _free(name, reserved)
            reserved.add(own)
        seen.add(own)
        numbered[output] = own
    return numbered


def _free(name: str, taken: Iterable[str]) -> str:
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
