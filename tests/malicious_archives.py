"""Archives of images that mean harm, as data, as images without labels, and for `verify --data`."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from malicious import Attack, Write
from malicious_onnx import net
from malicious_weights import command

FILE = "data.npz"
PIPELINE = """
data: {{npz: {{path: {file}, size: 8}}}}
student: {{plain_cnn: {{widths: [8]}}}}
stages: [{{quantize: {{method: ptq}}}}]
"""
UNLABELLED = """
data: {{synthetic: {{size: 8, classes: 2, samples: 8}}}}
unlabelled: {{path: {file}}}
teacher: {{model: {{plain_cnn: {{widths: [8]}}}}, training: {{epochs: 0}}}}
student: {{plain_cnn: {{widths: [8]}}}}
stages: [{{distill: {{losses: [kd], training: {{epochs: 1}}}}}}]
"""
CIFAR = "data: {cifar10: {path: data}}\nstudent: {plain_cnn: {widths: [8]}}\nstages: [{quantize: {method: ptq}}]\n"
# The array that each verb reads first.
ARRAYS = {"npz": "train_images", "unlabelled": "images", "verify": "inputs"}
PICKLED = ("holds pickled Python objects, which are never read",)
LEADS_OUT = ("leads outside the archive",)
TWICE = ("it holds",)
LARGE = ("more than 8 GiB are not taken into memory",)
DAMAGED = ("is damaged",)
NO_ARCHIVE = ("is not an .npz archive",)
RARE = ("is encrypted or compressed in a rare way",)


def array(header: str | None = None, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A file of numpy.save with this header."""
    raw = (header or str({"descr": "|u1", "fortran_order": False, "shape": (4, 8, 8)})).encode() + b"\n"
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(raw))
    return b"\x93NUMPY" + version + size + raw + data


def shaped(shape: str, descr: str = "|u1") -> bytes:
    return array(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}", bytes(16))


def packed(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, method
            archive.writestr(info, content)
    return file.getvalue()


def pickled(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([command(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def sound() -> bytes:
    return array(data=bytes(256))


def archives(name: str) -> Iterator[tuple[str, Callable[[Path], bytes], tuple[str, ...]]]:
    """Content by the canary's path, given the name of the array that will be read, and what must be said of it."""
    file = f"{name}.npy"
    yield "a command", lambda c: packed([(file, pickled(c))]), PICKLED
    yield "a command instead of an archive", lambda c: pickle.dumps(command(c)), NO_ARCHIVE
    yield "a member outside", lambda _: packed([(file, sound()), ("../canary", b"x")]), LEADS_OUT
    yield "a member with an absolute name", lambda c: packed([(file, sound()), (str(c), b"x")]), LEADS_OUT
    yield "a member with a drive", lambda _: packed([(file, sound()), ("C:\\canary", b"x")]), LEADS_OUT
    yield "an array twice", lambda _: packed([(file, sound()), (name, sound())]), TWICE
    yield "10¹⁵ images", lambda _: packed([(file, shaped("(1000000000000000, 8, 8)"))]), LARGE
    yield "a product beyond 64 bits", lambda _: packed([(file, shaped("(4294967296, 4294967296, 4294967296)"))]), LARGE
    yield "numbers of 10¹² bytes", lambda _: packed([(file, shaped("(4, 8, 8)", "|V1000000000"))]), LARGE
    yield "more than it holds", lambda _: packed([(file, shaped("(4000, 800, 8)"))]), DAMAGED
    yield "a negative shape", lambda _: packed([(file, shaped("(-4, 8, 8)"))]), DAMAGED
    yield "a shape in letters", lambda _: packed([(file, shaped("('a', 8, 8)"))]), DAMAGED
    yield "a call in the header", lambda c: packed([(file, shaped(f"(open({str(c)!r}, 'w'), 8)"))]), DAMAGED
    yield "brackets in brackets", lambda _: packed([(file, array("(" * 9000 + ")" * 9000))]), DAMAGED
    yield "a header of 4 GiB", lambda _: packed([(file, array()[:6] + b"\2\0\xff\xff\xff\xff" + bytes(99))]), DAMAGED
    yield "no array", lambda _: packed([(file, b"hello there, no array here")]), DAMAGED
    yield "a rare compression", lambda _: packed([(file, sound())], zipfile.ZIP_LZMA), RARE
    yield "a password", _with_password(file), RARE
    yield "a size that is a lie", _with_another_size(file), DAMAGED
    yield "a list of 4 GiB", _with_a_long_list(file), ("lists far more members",)
    yield (
        "another archive behind it",
        lambda _: packed([(file, sound())]) + b"PK\5\6" + bytes(16) + b"\2\0xx",
        ("is a damaged archive",),
    )
    yield (
        "something before it",
        lambda _: packed([])[:0] + b"PK\3\4" + packed([(file, sound())]),
        ("stands before its",),
    )


def _with_password(file: str) -> Callable[[Path], bytes]:
    def make(_: Path) -> bytes:
        content = bytearray(packed([(file, sound())]))
        content[6] |= 1
        content[content.rindex(b"PK\1\2") + 8] |= 1
        return bytes(content)

    return make


def _with_another_size(file: str) -> Callable[[Path], bytes]:
    """The list says that a member is larger than what is packed."""

    def make(_: Path) -> bytes:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**30, 1, 1)}
        content = bytearray(packed([(file, array(str(header), bytes(256)))], zipfile.ZIP_DEFLATED))
        at = content.rindex(b"PK\1\2") + 24
        content[at : at + 4] = struct.pack("<I", 2**30 + len(array(str(header))))
        return bytes(content)

    return make


def _with_a_long_list(file: str) -> Callable[[Path], bytes]:
    def make(_: Path) -> bytes:
        content = bytearray(packed([(file, sound())]))
        content[-10:-6] = b"\xf0\xff\xff\xff"
        return bytes(content)

    return make


def fed(kind: str, folder: Path) -> Attack:
    """The file as what it pretends to be."""
    if kind == "verify":
        onnx.save(net(), folder / "good.onnx")
        return Attack(("verify", "good.onnx", "--data", FILE), 3, (FILE,))
    (folder / "pipeline.yaml").write_text((PIPELINE if kind == "npz" else UNLABELLED).format(file=FILE))
    return Attack(("run", "pipeline.yaml", "--out", "run", "--quiet"), 3, (FILE,))


def written(kind: str, make: Callable[[Path, Path], object], says: tuple[str, ...]) -> Write:
    def write(folder: Path, canary: Path) -> Attack:
        make(folder / FILE, canary)
        attack = fed(kind, folder)
        return Attack(attack.words, attack.exit_code, (*attack.says, *says))

    return write


def cifar(make: Callable[[Path, Path], object]) -> Write:
    """What pretends to be CIFAR-10; there is no network."""

    def write(folder: Path, canary: Path) -> Attack:
        (folder / "data").mkdir()
        make(folder / "data", canary)
        (folder / "pipeline.yaml").write_text(CIFAR)
        os.environ["https_proxy"] = "http://127.0.0.1:9"
        return Attack(("run", "pipeline.yaml", "--out", "run", "--quiet"), 3, ("CIFAR10", "cannot be downloaded"))

    return write


def cifar_archive(folder: Path, canary: Path) -> None:
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("../../canary", str(canary), "cifar-10-batches-py/data_batch_1"):
            content = pickle.dumps(command(canary))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar_pickles(folder: Path, canary: Path) -> None:
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (inside / name).write_bytes(pickle.dumps(command(canary)))


def cases() -> Iterator[tuple[str, str, Write]]:
    for kind, name in ARRAYS.items():
        for i, (said, content, says) in enumerate(archives(name)):
            # One path reads them all: a third of the table for each shows that it is taken.
            if i % len(ARRAYS) == [*ARRAYS].index(kind) or i == 0:
                make: Any = lambda path, canary, content=content: path.write_bytes(content(canary))  # noqa: E731
                yield f"archive, {kind}", said, written(kind, make, says)
    yield "archive, npz", "a pipe", written("npz", lambda path, _: os.mkfifo(path), ("is no ordinary file",))
    yield "archive, npz", "a device", written("npz", lambda path, _: path.symlink_to("/dev/zero"), ("is no ordinary",))
    yield "cifar", "an archive that leads out", cifar(cifar_archive)
    yield "cifar", "pickles in its folder", cifar(cifar_pickles)
