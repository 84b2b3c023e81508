"""ONNX files that mean harm, given to every verb that reads one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from malicious import Attack, Write
from malicious_weights import PIPELINE
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

FILE = "net.onnx"
NO_ONNX = ("is not a valid ONNX file: it is something else, cut off or damaged",)
OUTSIDE = ("outside its own folder; that is never done",)
GONE = ("is not there; put the two side by side",)
PLACE = ("bytes by its dimensions and points to",)
BYTES = ("bytes by its dimensions and has",)
NUMBERS = ("numbers by its dimensions and has",)
CANNOT_BE = ("has dimensions or a type that cannot be",)
NO_CLASSIFIER = ("which no image classifier has",)
FOREIGN = ("which only a library of its own brings; none is ever loaded",)
TOO_LARGE = ("more than 4 GiB are not read",)
TOO_MANY = ("would take many times its size in memory",)
NESTED = ("nests graphs deeper than any net does",)
ENDLESS = ("call each other without end",)
NODES = ("has more than 200,000 nodes",)

VERBS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "benchmark": lambda file: ("benchmark", "good.onnx", file, "--rounds", "1"),
    "verify": lambda file: ("verify", file),
    "reference": lambda file: ("verify", "good.onnx", "--reference", file),
    "weights": lambda file: ("run", "pipeline.yaml", "--out", "run", "--quiet"),
}


def net(nodes: list[NodeProto] | None = None, stored: dict[str, np.ndarray] | None = None) -> ModelProto:
    """A small net: a convolution and what is given behind it."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), *(nodes or [helper.make_node("Relu", ["c"], ["y"])])]
    arrays = {"w": np.ones((4, 3, 3, 3), np.float32), **(stored or {})}
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k", "h", "w"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def kept_at(tensor: TensorProto, place: str, **more: str) -> None:
    """Let a tensor's bytes lie beside the file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": place, **more}.items():
        tensor.external_data.add(key=key, value=value)


def outside(place: str, **more: str) -> ModelProto:
    model = net()
    kept_at(model.graph.initializer[0], place, **more)
    return model


def surroundings(folder: Path) -> None:
    """A secret beside the folder, ways to it, and bytes that may be read."""
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(432))
    (folder / "bytes").write_bytes(bytes(432))
    (folder / "a").mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "way").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    place = folder / "*" / "_ORT_MEM_ADDR_"
    place.mkdir(parents=True)
    (place / "*").write_bytes(bytes(432))


def places() -> Iterator[tuple[str, ModelProto, tuple[str, ...]]]:
    """Weights beside the file."""
    for place in ("../secret", "/etc/passwd", "a/../../secret", "link", "way/secret", "*/_ORT_MEM_ADDR_/*", ""):
        yield f"weights in {place or 'no place'}", outside(place), OUTSIDE
    for place in ("..\\secret", "C:\\secret", "a\0b", "./../secret", "//server/secret"):
        yield f"weights in {place!r}", outside(place), OUTSIDE
    for place in ("gone", "a", "pipe", "loop"):
        yield f"weights in {place}", outside(place), GONE
    twice = outside("bytes")
    twice.graph.initializer[0].external_data.add(key="location", value="../secret")
    yield "two places", twice, ("says twice where",)
    yield "an offset behind the end", outside("bytes", offset="433"), PLACE
    yield "a length behind the end", outside("bytes", length="433"), PLACE
    yield "a length of less", outside("bytes", length="4"), PLACE
    yield "no length and more bytes", outside("way/inside/net.onnx"), PLACE
    yield "a negative offset", outside("bytes", offset="-8"), ("which is no place in a file",)
    yield "an offset beyond 64 bits", outside("bytes", offset="9" * 30), ("which is no place in a file",)
    yield "an offset in letters", outside("bytes", offset="0x10"), ("which is no place in a file",)
    inner = net([helper.make_node("Constant", [], ["k"], value=_far()), helper.make_node("Add", ["c", "k"], ["y"])])
    yield "an attribute outside", inner, OUTSIDE
    yield "a branch outside", _branch(_far()), OUTSIDE
    sparse = net()
    sparse.graph.sparse_initializer.append(SparseTensorProto(values=_far(), indices=_indices(), dims=[8]))
    yield "a sparse tensor outside", sparse, OUTSIDE


def _far() -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "far")
    kept_at(tensor, "../secret")
    return tensor


def _indices() -> TensorProto:
    return numpy_helper.from_array(np.zeros(1, np.int64), "indices")


def _branch(tensor: TensorProto) -> ModelProto:
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Identity", ["far"], ["o"])], "branch", [], [output], [tensor])
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph)
    return net([choice], {"yes": np.array(True)})


def changed(edit: Callable[[TensorProto], object]) -> ModelProto:
    model = net()
    edit(model.graph.initializer[0])
    return model


def sizes() -> Iterator[tuple[str, ModelProto, tuple[str, ...]]]:
    """Dimensions that are no classifier's, and bytes that do not fit them."""
    for shape in ([-4, 3, 3, 3], [2**62, 2**62], [2**40], [2**31, 2**31, 2**31, 2**31]):
        yield f"weights of {shape}", changed(lambda t, shape=shape: _shape(t, shape)), CANNOT_BE  # type: ignore[misc]
    yield "weights of 100,000 dimensions", changed(lambda t: _shape(t, [2**62] * 100_000)), CANNOT_BE
    yield "weights of an unknown type", changed(lambda t: setattr(t, "data_type", 99)), CANNOT_BE
    yield "fewer bytes than numbers", changed(lambda t: setattr(t, "raw_data", bytes(4))), BYTES
    yield "more bytes than numbers", changed(lambda t: setattr(t, "raw_data", bytes(4000))), BYTES
    yield "no numbers", changed(lambda t: t.ClearField("raw_data")), NUMBERS
    yield "fewer numbers than claimed", changed(_few), NUMBERS
    sparse = net()
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    sparse.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=_indices(), dims=[2**40]))
    yield "a sparse tensor of 2⁴⁰", sparse, ("claims dimensions that cannot be",)
    for shape in ([1, 3, 2**30, 2**30], [1, 3, -8, 8], [2**28, 3, 8, 8]):
        model = net()
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
        yield f"an input of {shape}", model, NO_CLASSIFIER
    model = net()
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2**20, 2**20]))
    yield "a value of 2⁴⁰", model, NO_CLASSIFIER
    size = np.array([2**20, 2**20], np.int64)
    yield "a constant of 2⁴⁰", net([helper.make_node("ConstantOfShape", ["s"], ["y"])], {"s": size}), NO_CLASSIFIER
    one = np.ones((1, 1), np.float32)
    for operator in ("Expand", "Tile"):
        node = helper.make_node(operator, ["one", "s"], ["y"])
        yield f"2⁴⁰ numbers by {operator}", net([node], {"s": size, "one": one}), NO_CLASSIFIER
    pads = helper.make_node("Conv", ["c", "v"], ["y"], pads=[2**30] * 4)
    yield "pads of 2³⁰", net([pads], {"v": np.ones((4, 4, 1, 1), np.float32)}), NO_CLASSIFIER


def _shape(tensor: TensorProto, shape: list[int]) -> None:
    del tensor.dims[:]
    tensor.dims.extend(shape)


def _few(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 3)


def graphs() -> Iterator[tuple[str, ModelProto, tuple[str, ...]]]:
    """Operators from elsewhere, depth and number."""
    for domain in ("evil", "ai.onnx.contrib"):
        model = net([helper.make_node("Run", ["c"], ["y"], domain=domain)])
        model.opset_import.append(helper.make_opsetid(domain, 1))
        yield f"an operator of {domain}", model, FOREIGN
    yield "an operator in a branch", _operator_in_a_branch(), FOREIGN
    yield "twenty branches in each other", _nested(20), NESTED
    yield "a function that calls itself", _functions([("f0", ["f0"])]), ENDLESS
    yield "2³⁰ nodes by functions", _functions([(f"f{i}", [f"f{i + 1}"] * 2) for i in range(30)] + [("f30", [])]), NODES


def _operator_in_a_branch() -> ModelProto:
    model = _branch(numpy_helper.from_array(np.ones(1, np.float32), "far"))
    model.graph.node[1].attribute[0].g.node[0].domain = "evil"
    return model


def _nested(depth: int) -> ModelProto:
    model = _branch(numpy_helper.from_array(np.ones(1, np.float32), "far"))
    for _ in range(depth):
        graph = GraphProto()
        graph.CopyFrom(model.graph.node[1].attribute[0].g)
        inner = helper.make_node("If", ["yes"], ["o"], then_branch=graph)
        del model.graph.node[1].attribute[0].g.node[:]
        model.graph.node[1].attribute[0].g.node.append(inner)
    return model


def _functions(calls: list[tuple[str, list[str]]]) -> ModelProto:
    model = net([helper.make_node(calls[0][0], ["c"], ["y"], domain="own")])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.opset_import.append(opsets[1])
    for name, called in calls:
        nodes = [helper.make_node("Relu", ["a"], ["b0"])]
        nodes += [helper.make_node(f, [f"b{i}"], [f"b{i + 1}"], domain="own") for i, f in enumerate(called)]
        outputs = [f"b{len(called)}"]
        model.functions.append(helper.make_function("own", name, ["a"], outputs, nodes, opsets))
    return model


def raw_files() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """What is no graph, or one that only parsing would show to be a bomb."""
    whole = net().SerializeToString()
    yield "two million empty nodes", b"\x3a" + _varint(4_000_000) + b"\x0a\0" * 2_000_000, TOO_MANY
    deep = b""
    for _ in range(1000):
        deep = b"\x0a" + _varint(len(deep) + 4) + b"\x2a" + _varint(len(deep) + 2) + b"\x32" + _varint(len(deep)) + deep
    yield "messages in messages", b"\x3a" + _varint(len(deep)) + deep, (FILE,)
    yield "a length beyond its end", b"\x3a" + _varint(2**62), NO_ONNX
    yield "a number without end", b"\x08" + b"\xff" * 100, NO_ONNX
    yield "the runtime's own format", b"\x20\0\0\0ORTM" + bytes(100), NO_ONNX
    yield "a graph cut off", whole[: len(whole) // 2], NO_ONNX
    yield "a pickle", __import__("pickle").dumps([1, 2]), NO_ONNX


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def written(verb: str, content: bytes, says: tuple[str, ...]) -> Write:
    def write(folder: Path, canary: Path) -> Attack:
        return given(verb, folder, lambda path: path.write_bytes(content), says)

    return write


def given(verb: str, folder: Path, make: Callable[[Path], object], says: tuple[str, ...]) -> Attack:
    surroundings(folder)
    onnx.save(net(), folder / "good.onnx")
    (folder / "pipeline.yaml").write_text(PIPELINE.format(file=FILE))
    make(folder / FILE)
    return Attack(VERBS[verb](FILE), 4, (FILE, *says))


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 * 2**30)


def kinds() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Things in the file's place that are no file."""
    yield "a pipe", os.mkfifo
    yield "a folder", Path.mkdir
    yield "a link to a device", lambda path: path.symlink_to("/dev/zero")


def cases() -> Iterator[tuple[str, str, Write]]:
    messages = [
        (name, model.SerializeToString(), says) for part in (places, sizes, graphs) for name, model, says in part()
    ]
    for i, (name, content, says) in enumerate([*messages, *raw_files()]):
        verbs: Any = VERBS if name == "weights in ../secret" else [[*VERBS][i % len(VERBS)]]
        for verb in verbs:
            yield f"onnx, {verb}", name, written(verb, content, says)
    for verb in VERBS:
        absent = ("no weights file",) if verb == "weights" else ("no ONNX file",)
        for name, make in kinds():
            yield (
                f"onnx, {verb}",
                name,
                lambda folder, _, verb=verb, make=make, says=absent: given(verb, folder, make, says),
            )  # type: ignore[misc]
        yield f"onnx, {verb}", "5 GiB", lambda folder, _, verb=verb: given(verb, folder, hole, TOO_LARGE)  # type: ignore[misc]
