"""Pictures that mean harm, or are none, in a folder of good ones."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from malicious import Attack, Write
from PIL import Image

PIPELINE = """
data: {image_folder: {path: images, size: 8}}
student: {plain_cnn: {widths: [8]}}
stages: [{quantize: {method: ptq}}]
"""
UNKNOWN = ("not an image in a known format",)
NO_FILE = ("it is no ordinary file",)


def picture(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit grey that claims a size, with further chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def huge_jpeg() -> bytes:
    content = bytearray(picture("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(content)


def floats() -> bytes:
    file = io.BytesIO()
    Image.new("F", (8, 8)).save(file, "TIFF")
    return file.getvalue()


def contents() -> Iterator[tuple[str, str, Callable[[Path], bytes], tuple[str, ...]]]:
    """A name, a file's name, its content by the canary's path, and what must be said of it."""
    yield "nothing", "x.png", lambda _: b"", ("the file is empty",)
    yield "a page", "x.jpg", lambda _: b"<html><script>alert(1)</script>", UNKNOWN
    yield (
        "a drawing with a script",
        "x.png",
        lambda _: b"<svg onload='alert(1)' xmlns='http://www.w3.org/2000/svg'/>",
        UNKNOWN,
    )
    yield "PostScript", "x.png", lambda c: f"%!PS-Adobe-3.0 EPSF-3.0\n({c}) (w) file closefile".encode(), UNKNOWN
    yield "a program", "x.png", lambda c: f"#!/bin/sh\ntouch {c}\n".encode(), UNKNOWN
    yield (
        "64,000 × 64,000 pixels",
        "x.png",
        lambda _: png(64_000, 64_000, (b"IDAT", zlib.compress(bytes(99)))),
        ("decompression bomb",),
    )
    yield (
        "9,000 × 9,000 pixels",
        "x.png",
        lambda _: png(9_000, 9_000, (b"IDAT", zlib.compress(bytes(99)))),
        ("9000 x 9000",),
    )
    yield "2³¹ pixels in a row", "x.png", lambda _: png(2**31 - 1, 1, (b"IDAT", b"")), ()
    yield "a text that unpacks to 64 MiB", "x.png", _text_bomb, ("too large",)
    yield "a JPEG of 65,000 × 65,000 pixels", "x.jpg", lambda _: huge_jpeg(), ("4225000000",)
    for kind, name in (("PNG", "x.png"), ("JPEG", "x.jpg"), ("WEBP", "x.webp"), ("GIF", "x.gif"), ("TIFF", "x.tif")):
        yield f"half a {kind}", name, lambda _, kind=kind: picture(kind)[: len(picture(kind)) // 2], ()  # type: ignore[misc]
    yield "pixels that are no colours", "x.tif", lambda _: floats(), ("floating-point numbers",)
    yield "a file of 1 GiB of nothing", "x.png", lambda _: b"", ("the file has 1,073,741,824 bytes",)


def _text_bomb(_: Path) -> bytes:
    text = b"k\0\0" + zlib.compress(bytes(64 * 2**20))
    return png(8, 8, (b"zTXt", text), (b"IDAT", zlib.compress(bytes(72))))


def places() -> Iterator[tuple[str, Callable[[Path], object], tuple[str, ...]]]:
    """Things in a picture's place."""
    yield "a pipe", os.mkfifo, NO_FILE
    yield "a link to a device", lambda path: path.symlink_to("/dev/zero"), NO_FILE
    yield "a link to itself", lambda path: path.symlink_to(path), ("too many levels of symbolic links",)
    yield "a link to nothing", lambda path: path.symlink_to("nowhere"), ("no such file",)


def folder_of_images(folder: Path) -> Path:
    """Two classes of four pictures; gives one class's folder."""
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / "images" / label / f"{i}.png")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    return folder / "images" / "cat"


def among_good(name: str, make: Callable[[Path, Path], object], says: tuple[str, ...]) -> Write:
    def write(folder: Path, canary: Path) -> Attack:
        path = folder_of_images(folder) / name
        make(path, canary)
        if "1,073,741,824" in "".join(says):
            os.truncate(path, 2**30)
        said = ("1 image file cannot be read; repair or remove", f"cat/{name}: ", *says)
        return Attack(("run", "pipeline.yaml", "--out", "run", "--quiet"), 3, said)

    return write


def cases() -> Iterator[tuple[str, str, Write]]:
    for said, name, content, says in contents():
        yield "image", said, among_good(name, lambda path, c, content=content: path.write_bytes(content(c)), says)  # type: ignore[misc]
    for said, make, says in places():
        yield "image", said, among_good("x.png", lambda path, _, make=make: make(path), says)  # type: ignore[misc]
