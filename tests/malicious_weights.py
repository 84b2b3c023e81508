"""State dicts that mean harm."""

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from malicious import Attack, Write

PIPELINE = """
data: {{synthetic: {{size: 8, classes: 2, samples: 8}}}}
student: {{plain_cnn: {{widths: [8], weights: {file}}}}}
stages: [{{quantize: {{method: ptq}}}}]
"""
OBJECTS = ("is a pickled module or holds other objects than tensors",)
BROKEN = ("is not a file written by torch.save, or is cut off or damaged",)
TOO_MUCH = ("Save the state dict of this network alone: plain tensors, at most",)
PLAIN = ("is no plain tensor of numbers",)
SAFE = ("is not a safetensors file, or is damaged",)
NUMBER = b"M\xe8\x03"  # a thousand, as pickled
ABSENT = ("no weights file",)


def fed(folder: Path, file: str, says: tuple[str, ...]) -> Attack:
    """The file as the weights of a student."""
    (folder / "pipeline.yaml").write_text(PIPELINE.format(file=file))
    return Attack(("run", "pipeline.yaml", "--out", "run", "--quiet"), 4, (file, *says))


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def command(canary: Path) -> Runs:
    return Runs(os.system, f"touch {canary}")


def edited(state: Any, edit: Callable[[str, bytes], tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, each member changed by name and content."""
    before, after = io.BytesIO(), io.BytesIO()
    torch.save(state, before)
    with zipfile.ZipFile(before) as source, zipfile.ZipFile(after, "w", method) as target:
        for member in source.infolist():
            target.writestr(*edit(member.filename, source.read(member)))
    return after.getvalue()


def with_pickle(content: bytes) -> bytes:
    """An archive of torch.save whose pickle is another."""
    return edited({"a": torch.ones(4)}, lambda name, raw: (name, content if name.endswith("data.pkl") else raw))


def numbers_changed(old: bytes, new: bytes) -> bytes:
    """An archive with one tensor of 1,000 numbers, some bytes of its pickle replaced."""

    def change(name: str, raw: bytes) -> tuple[str, bytes]:
        if name.endswith("data.pkl"):
            assert old in raw
            raw = raw.replace(old, new)
        return name, raw

    return edited({"a": torch.ones(1000)}, change)


def old_format(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def tar(canary: Path) -> bytes:
    """The format of 2016, with a link out of it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, str(canary)
        archive.addfile(link)
        for name in ("tensors", "pickle"):
            content = pickle.dumps(command(canary))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def twice(canary: Path) -> bytes:
    """Two pickles of one name: which one counts differs from reader to reader."""
    file = io.BytesIO(saved({"a": torch.ones(4)}))
    with zipfile.ZipFile(file, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with warnings.catch_warnings(action="ignore"):
            archive.writestr(name, pickle.dumps(command(canary), 2))
    return file.getvalue()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(shape: list[int], dtype: str = "F32", end: int = 16) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def hash_bomb() -> bytes:
    """A key of tuples of tuples, whose hash takes two to the power of sixty steps."""
    return b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"K\x01s."


def quantized() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


def tensors() -> Iterator[tuple[str, Callable[[], Any], tuple[str, ...]]]:
    """Tensors that are none of numbers side by side."""
    yield "complex", lambda: torch.ones(4, dtype=torch.complex64), OBJECTS
    yield "sparse", lambda: torch.eye(4).to_sparse(), TOO_MUCH
    yield "quantized", quantized, TOO_MUCH
    yield "without numbers", lambda: torch.ones(4, device="meta"), TOO_MUCH
    yield "of 8 bits", lambda: torch.ones(4).to(torch.float8_e4m3fn), TOO_MUCH
    yield "of 30 dimensions", lambda: torch.ones([1] * 30), TOO_MUCH
    yield "one number seen 10¹² times", lambda: torch.ones(1).expand(10**6, 10**6), TOO_MUCH


def torch_files() -> Iterator[tuple[str, Callable[[Path], bytes], tuple[str, ...]]]:
    """Content by the canary's path, and what must be said of it."""
    yield "a command", lambda c: saved(command(c)), OBJECTS
    yield "a command among tensors", lambda c: saved({"a": torch.ones(2), "b": command(c)}), OBJECTS
    yield "a command in the old format", lambda c: old_format(command(c)), OBJECTS
    yield "a command in a bare pickle", lambda c: pickle.dumps(command(c)), BROKEN
    yield "a command in the format of 2016", tar, BROKEN
    yield "a command in an archive in an archive", lambda c: zipped({"w.pth": saved(command(c))}), TOO_MUCH
    yield "exec", lambda c: saved(Runs(exec, f"open({str(c)!r}, 'w')")), OBJECTS
    yield "a module", lambda c: saved(torch.nn.Linear(2, 2)), OBJECTS
    yield (
        "a class by an opcode",
        lambda c: with_pickle(b"\x80\x02cposix\nsystem\n" + _text(f"touch {c}") + b"\x85R."),
        OBJECTS,
    )
    yield "an object of protocol 0", lambda c: with_pickle(f"cos\nsystem\n(S'touch {c}'\ntR.".encode()), OBJECTS
    yield "an instance by an opcode", lambda c: with_pickle(f"(S'touch {c}'\nios\nsystem\n.".encode()), BROKEN
    yield "two pickles of one name", twice, TOO_MUCH
    yield "10¹⁸ numbers", lambda _: numbers_changed(NUMBER, b"\x8a\x08" + (10**18).to_bytes(8, "little")), TOO_MUCH
    yield "more numbers than it stores", lambda _: numbers_changed(NUMBER + b"t", b"J\0\0\0\x70t"), BROKEN
    yield "a tensor beyond its storage", lambda _: numbers_changed(b"K\0" + NUMBER, b"M\0\x10" + NUMBER), TOO_MUCH
    yield "a negative size", lambda _: numbers_changed(b"K\0" + NUMBER, b"K\0J\xff\xff\xff\xff"), BROKEN
    yield "7 GiB in the old format", lambda _: _old(NUMBER, b"J\0\0\0\x70"), TOO_MUCH
    yield "more numbers than it stores in the old format", lambda _: _old(NUMBER + b"N", b"J\0\0\0\x70N"), BROKEN
    yield "a list index of 2³²", lambda _: with_pickle(b"\x80\x02}r\xff\xff\xff\xff."), ("holds no state dict",)
    yield "a key that cannot be hashed", lambda _: with_pickle(hash_bomb()), OBJECTS
    yield (
        "10¹² bytes by an opcode",
        lambda _: with_pickle(b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"."),
        BROKEN,
    )
    yield (
        "10¹² bytes by a class",
        lambda _: with_pickle(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."),
        OBJECTS,
    )
    yield (
        "a member outside",
        lambda _: edited({"a": torch.ones(2)}, lambda n, raw: (n.replace("archive/version", "../canary"), raw)),
        TOO_MUCH,
    )
    yield (
        "a member with an absolute name",
        lambda c: edited({"a": torch.ones(2)}, lambda n, raw: (n.replace("archive/version", str(c)), raw)),
        TOO_MUCH,
    )
    yield "300 MiB of nothing, compressed", _bomb, TOO_MUCH
    yield "9 MiB of names", lambda _: with_pickle(pickle.dumps(["x" * 9 * 2**20], 2)), TOO_MUCH


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _old(number: bytes, other: bytes) -> bytes:
    content = old_format({"a": torch.ones(1000)})
    assert number in content
    return content.replace(number, other)


def _bomb(_: Path) -> bytes:
    def large(name: str, raw: bytes) -> tuple[str, bytes]:
        return name, bytes(300 * 2**20) if name.endswith("data/0") else raw

    return edited({"a": torch.ones(2)}, large, zipfile.ZIP_DEFLATED)


def safetensors_files() -> Iterator[tuple[str, Callable[[Path], bytes], tuple[str, ...]]]:
    """The same for the other format."""
    yield "a command", lambda c: pickle.dumps(command(c)), SAFE
    yield "a command in an archive", lambda c: saved(command(c)), SAFE
    yield "a header of 2⁶⁰ bytes", lambda _: safetensors({}, length=2**60), SAFE
    yield "a header of 90 MB", lambda _: safetensors({}, length=90_000_000), SAFE
    yield "2⁶⁰ bytes", lambda _: safetensors(one([2**58], end=2**60), bytes(16)), SAFE
    yield "a product beyond 64 bits", lambda _: safetensors(one([2**40, 2**40]), bytes(16)), SAFE
    yield "fewer bytes than numbers", lambda _: safetensors(one([1000]), bytes(16)), SAFE
    yield (
        "an offset behind its end",
        lambda _: safetensors({"a": one([4])["a"] | {"data_offsets": [16, 0]}}, bytes(16)),
        SAFE,
    )
    yield "two tensors in one place", lambda _: safetensors({**one([4]), "b": one([4])["a"]}, bytes(16)), SAFE
    yield "a shape of 10,000 dimensions", lambda _: safetensors(one([1] * 9999 + [4]), bytes(16)), TOO_MUCH
    yield "lists in lists", lambda _: safetensors(b"[" * 100_000 + b"]" * 100_000), SAFE
    yield "complex numbers", lambda _: safetensors(one([2], "C64"), bytes(16)), PLAIN
    yield "a size that is no number", lambda _: safetensors({"a": one([4])["a"] | {"shape": ["4"]}}, bytes(16)), SAFE


def whole(file: str, content: Callable[[Path], bytes], says: tuple[str, ...]) -> Write:
    def write(folder: Path, canary: Path) -> Attack:
        (folder / file).write_bytes(content(canary))
        return fed(folder, file, says)

    return write


def place(file: str, make: Callable[[Path], object], says: tuple[str, ...]) -> Write:
    def write(folder: Path, canary: Path) -> Attack:
        make(folder / file)
        return fed(folder, file, says)

    return write


def hole(path: Path) -> None:
    """A file of 300 MiB that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(300 * 2**20)


def cases() -> Iterator[tuple[str, str, Write]]:
    for name, content, says in torch_files():
        yield "torch", name, whole("w.pth", content, says)
    for name, make, says in tensors():
        yield "torch", f"a tensor {name}", whole("w.pt", lambda _, make=make: saved({"a": make()}), says)  # type: ignore
    for name, content, says in safetensors_files():
        yield "safetensors", name, whole("w.safetensors", content, says)
    for file in ("w.pth", "w.safetensors"):
        yield "weights", f"300 MiB, {file}", place(file, hole, TOO_MUCH)
        yield "weights", f"a pipe, {file}", place(file, os.mkfifo, ABSENT)
        yield "weights", f"a folder, {file}", place(file, Path.mkdir, ABSENT)
        yield "weights", f"a link to a device, {file}", place(file, lambda path: path.symlink_to("/dev/zero"), ABSENT)
        yield "weights", f"a link to itself, {file}", place(file, lambda path: path.symlink_to(path), ABSENT)
