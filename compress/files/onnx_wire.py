"""The bytes of an ONNX file before they are parsed: a few bytes of a message can ask for many times their memory."""

from functools import cache
from pathlib import Path
from typing import Any

from onnx import ModelProto

from compress.errors import ModelError

FIELDS = 1_000_000  # each costs some hundred bytes once parsed
PACKED_BYTES = 2**27  # of numbers of varying length, which take up to eight bytes of memory for one of the file
DEPTH = 40  # messages inside each other: a graph within a graph adds three
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5


def require_bounded_fields(raw: bytes, path: Path) -> None:
    """See that parsing a file takes no more than a few times its size in memory, and no deep recursion.

    Raises ModelError where it would, ValueError or IndexError where the bytes are no message at all.
    """
    fields = packed = 0
    waiting: list[tuple[int, int, str, int]] = [(0, len(raw), ModelProto.DESCRIPTOR.full_name, 0)]
    while waiting:
        at, end, message, depth = waiting.pop()
        known = _messages()[message]
        while at < end:
            key, at = _varint(raw, at)
            fields += 1
            kind = key & 7
            if kind == LENGTH:
                size, at = _varint(raw, at)
                inner = known.get(key >> 3, "")
                if inner is None:
                    packed += size
                elif inner:
                    waiting.append((at, at + size, inner, depth + 1))
                at += size
            elif kind == VARINT:
                _, at = _varint(raw, at)
            elif kind in (FIXED_32, FIXED_64):
                at += 4 if kind == FIXED_32 else 8
            else:
                raise ValueError("groups are in no ONNX file")
            if at > end:
                raise ValueError("a field ends behind its message")
            if depth >= DEPTH:
                raise ModelError(f"{path} nests graphs deeper than any net does; it is not read")
            if fields > FIELDS or packed > PACKED_BYTES:
                raise ModelError(
                    f"{path} holds more than {FIELDS:,} entries or {PACKED_BYTES:,} bytes of single numbers, and would "
                    "take many times its size in memory; it is not read. Store weights as raw data"
                )


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, least first, and where it ends."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


@cache
def _messages() -> dict[str, dict[int, str | None]]:
    """By message and number of each field: the message inside, or None where it holds packed numbers."""
    found: dict[str, dict[int, str | None]] = {}
    waiting: list[Any] = [ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        fields = found[message.full_name] = {}
        for field in message.fields:
            if field.message_type is not None:
                fields[field.number] = field.message_type.full_name
                waiting.append(field.message_type)
            elif field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
                fields[field.number] = None
    return found
