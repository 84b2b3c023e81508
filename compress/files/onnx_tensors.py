"""The stored tensors of an ONNX file from outside: where their bytes lie, and whether they are as many as claimed."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnx import FunctionProto, GraphProto, ModelProto, SparseTensorProto, TensorProto
from onnx.external_data_helper import uses_external_data

from compress.errors import ModelError
from compress.files.archive import leads_outside

LIMIT_BYTES = 4 * 2**30  # twice what one protobuf message may hold; torchvision's largest nets stay under it
# ONNX Runtime takes an offset behind this name for an address in memory.
ADDRESS = "_ORT_MEM_ADDR_"
RANK = 64  # dimensions
UNNUMBERED = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}
Body = GraphProto | FunctionProto


def bodies(model: ModelProto) -> Iterator[Body]:
    """Every graph and function, those inside nodes among them."""
    waiting: list[Body] = [model.graph, *model.functions]
    waiting += [graph for each in model.training_info for graph in (each.initialization, each.algorithm)]
    while waiting:
        body = waiting.pop()
        yield body
        waiting += inner_graphs(body)


def inner_graphs(body: Body) -> Iterator[GraphProto]:
    """The graphs that the nodes of one hold, such as the branches of an If."""
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def stored_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a file stores, whether as an initializer or in an attribute, parts of sparse ones too."""
    for body in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.initializer
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
        for each in sparse_tensors(body):
            yield each.values
            yield each.indices


def sparse_tensors(body: Body) -> Iterator[SparseTensorProto]:
    """Those of one graph, without the graphs inside."""
    if isinstance(body, GraphProto):
        yield from body.sparse_initializer
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.sparse_tensors


def require_sound_tensors(model: ModelProto, path: Path, size: int) -> None:
    """See that each tensor has the bytes that its dimensions ask for, all of them within bounds; raises ModelError.

    `size` is the file's, in bytes; with all weights beside it, it is at most `LIMIT_BYTES`.
    """
    for each in (sparse for body in bodies(model) for sparse in sparse_tensors(body)):
        if _count(each.dims) is None:
            raise ModelError(f"{path}: the sparse tensor {each.values.name!r} claims dimensions that cannot be")
    for tensor in stored_tensors(model):
        needed = _bytes_of(tensor, path)
        if uses_external_data(tensor):
            _require_outside(tensor, needed, path)
            size += needed  # one file may serve many tensors, and each takes its own memory
        elif tensor.HasField("raw_data"):
            _require_equal(tensor, needed, len(tensor.raw_data), path)
        else:
            _require_numbers(tensor, path)
        if size > LIMIT_BYTES:
            raise ModelError(f"{path} has {size / 2**30:.1f} GiB; more than {LIMIT_BYTES / 2**30:g} GiB are not read")


def outside_files(path: Path, model: ModelProto) -> list[Path]:
    """The files beside an ONNX file in which it keeps weights; raises ModelError for one that lies elsewhere."""
    return list(dict.fromkeys(_outside(t, path)[0] for t in stored_tensors(model) if uses_external_data(t)))


def _bits(tensor: TensorProto) -> int:
    """Of one number; 0 for strings and types that are not known."""
    name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else ""
    number = re.search(r"\d+", name)
    return int(number[0]) if number else UNNUMBERED.get(name, 0)


def _bytes_of(tensor: TensorProto, path: Path) -> int:
    """How many bytes its dimensions ask for."""
    known = _bits(tensor) or tensor.data_type == TensorProto.STRING
    count = _count(tensor.dims)
    if not known or count is None:
        shape = "×".join(map(str, tensor.dims[:8]))
        raise ModelError(
            f"{path}: the stored tensor {tensor.name!r} of {shape} numbers of type {tensor.data_type} has dimensions "
            "or a type that cannot be; export it again"
        )
    return math.ceil(count * _bits(tensor) / 8)


def _count(dims: Sequence[int]) -> int | None:
    """How many numbers that is; None where a dimension is negative, or there are more than could be read."""
    if len(dims) > RANK or min(dims, default=0) < 0:
        return None
    count = math.prod(dims)
    return count if count <= LIMIT_BYTES else None


def _require_equal(tensor: TensorProto, needed: int, held: int, path: Path) -> None:
    if held != needed:
        raise ModelError(
            f"{path}: the stored tensor {tensor.name!r} needs {needed:,} bytes by its dimensions and has {held:,}; it "
            "is damaged, export it again"
        )


def _require_numbers(tensor: TensorProto, path: Path) -> None:
    """Numbers that are stored one by one."""
    count, bits = math.prod(tensor.dims), _bits(tensor)
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    held = sum(len(getattr(tensor, field)) for field in fields)
    together = max(8 // bits, 1) if bits else 1  # several of less than eight bits
    parts = 2 if bits >= 64 and tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    if held not in (count * parts, math.ceil(count / together)):
        raise ModelError(
            f"{path}: the stored tensor {tensor.name!r} needs {count:,} numbers by its dimensions and has {held:,}; it "
            "is damaged, export it again"
        )


def _outside(tensor: TensorProto, path: Path) -> tuple[Path, dict[str, str]]:
    """The file that holds a tensor's bytes, and what else is said of them; raises ModelError for one elsewhere."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    if len(said) != len(tensor.external_data):
        raise ModelError(f"{path} says twice where {tensor.name!r} lies; readers differ in which one they take")
    place = said.get("location", "")
    file = path.parent / place
    refused = leads_outside(place) or "\\" in place or ADDRESS in place
    if refused or not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path.parent)):
        raise ModelError(f"{path} wants to read {place!r}, outside its own folder; that is never done")
    if not file.is_file():
        raise ModelError(f"{path} keeps its weights in {file}, which is not there; put the two side by side")
    return file, said


def _require_outside(tensor: TensorProto, needed: int, path: Path) -> None:
    file, said = _outside(tensor, path)
    numbers = [said.get("offset", "0"), said.get("length", str(needed))]
    if not all(re.fullmatch(r"[0-9]{1,19}", number) for number in numbers):
        raise ModelError(f"{path}: {tensor.name!r} is at {' '.join(numbers)!r} in {file}, which is no place in a file")
    offset, length = map(int, numbers)
    size = file.stat().st_size
    # Without a length onnx takes all that follows.
    if offset + length > size or (length if "length" in said else size - offset) != needed:
        raise ModelError(
            f"{path}: the stored tensor {tensor.name!r} needs {needed:,} bytes by its dimensions and points to "
            f"{length:,} from {offset:,} on in {file}, which has {size:,}; export it again"
        )
