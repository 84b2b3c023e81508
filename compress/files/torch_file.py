"""What a file of torch.save claims to hold, found out without making one tensor and without running anything.

torch.load(weights_only=True) runs no code either, but it takes the memory that a file asks for.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from compress.files.archive import members

PICKLE_BYTES = 8 * 2**20  # of names and shapes; a state dict has some 200 bytes a tensor
RANK = 8
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # with which files of torch before 1.6 begin
ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "Untyped": 1,
}  # fmt: skip
OTHER_TENSORS = (
    "_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage", "_rebuild_from_type_v2",
    "_rebuild_wrapper_subclass", "_rebuild_tensor_v3",
)  # fmt: skip
# What torch's own unpickler for weights knows, without sets and classes, which no state dict needs.
OPCODES = (
    b"\x80", b".", b"(", b"}", b"]", b")", b"t", b"\x85", b"\x86", b"\x87", b"N", b"\x88", b"\x89", b"J", b"K", b"M",
    b"\x8a", b"G", b"X", b"\x8c", b"U", b"c", b"R", b"Q", b"q", b"r", b"h", b"j", b"a", b"e",
)  # fmt: skip


class OtherObjects(Exception):
    """The file holds more than numbers, text and tensors."""


class Damaged(Exception):
    """The file is none of torch.save, or is cut off."""


class Refused(Exception):
    """The file claims what no state dict has; the message says what, in a few words."""


@dataclass(frozen=True)
class Storage:
    """The bytes behind tensors: where they are in the file, and how many."""

    key: str
    item_bytes: int
    numel: int


@dataclass
class Structure:
    """A pickle's lists and dicts, with a claim where a tensor would be."""

    limit_bytes: int
    storages: dict[str, int] = field(default_factory=dict)
    tensor_bytes: int = 0

    def storage(self, said: Any) -> Storage:
        """What a file says of a storage."""
        if not isinstance(said, tuple) or len(said) not in (5, 6) or said[0] != "storage":
            raise OtherObjects
        kind, key, numel = said[1], str(said[2]), said[4]
        if not isinstance(kind, int) or not isinstance(numel, int) or numel < 0:
            raise Damaged
        self.storages[key] = max(kind * numel, self.storages.get(key, 0))
        return Storage(key, kind, numel)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        """A tensor that is claimed: no larger than its storage, and all of them within the limit."""
        if not isinstance(storage, Storage) or not all(isinstance(each, tuple) for each in (size, stride)):
            raise Damaged
        numbers = (offset, *size, *stride)
        if not all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers) or len(size) != len(stride):
            raise Damaged
        if len(size) > RANK:
            raise Refused(f"a tensor of {len(size)} dimensions, where {RANK} are the most")
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if 0 not in size and reach > storage.numel:
            raise Refused(f"a tensor of {reach:,} numbers in a storage of {storage.numel:,}")
        self.tensor_bytes += math.prod(size) * storage.item_bytes
        if self.tensor_bytes > self.limit_bytes:
            raise Refused(f"tensors of {self.tensor_bytes / 2**20:,.0f} MiB or more")


# The unpickler in C takes the memory for an index that a file makes up.
class Reader(pickle._Unpickler):
    """Reads the pickle of a state dict; every class in it is a function of `Structure`, or refused."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES
    }

    def __init__(self, file: BinaryIO, structure: Structure) -> None:
        super().__init__(file)
        self.structure = structure

    def persistent_load(self, pid: Any) -> Storage:
        """What a name for a storage stands for here."""
        return self.structure.storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for here."""
        if module in ("torch", "torch.cuda", "torch.storage") and name.removesuffix("Storage") in ITEM_BYTES:
            return ITEM_BYTES[name.removesuffix("Storage")]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _pairs,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): self.structure.tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self.structure.tensor,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch._utils", "_rebuild_parameter_with_state"): _first,
        }
        if name in OTHER_TENSORS:
            raise Refused("tensors that are sparse, quantized, empty of numbers or of a class of their own")
        if (module, name) not in known:
            raise OtherObjects
        return known[module, name]

    def build(self) -> None:
        """State of objects, such as a dict's metadata, is of no use here."""
        self.stack.pop()

    def set_item(self) -> None:
        """One entry of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_pairs([(key, value)]))

    def set_items(self) -> None:
        """Entries of a dict."""
        items = self.pop_mark()
        self.stack[-1].update(_pairs(list(zip(items[::2], items[1::2], strict=True))))

    dispatch |= {b"b"[0]: build, b"s"[0]: set_item, b"u"[0]: set_items}


def _pairs(items: Any = ()) -> dict[Any, Any]:
    """A dict; hashing a key that is a tuple of tuples of tuples could take for ever."""
    if not all(isinstance(key, str | int) for key, _ in items):
        raise OtherObjects
    return dict(items)


def _first(data: Any, *_: Any) -> Any:
    return data


def require_bounded(path: Path, limit_bytes: int) -> None:
    """See what loading a file would take, before it is loaded.

    Raises OtherObjects, Damaged or Refused; of the last, the message completes "it holds …".
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY))
            if start[:4] == b"PK\3\4":
                _require_zip(file, limit_bytes)
            elif start == LEGACY:
                _require_legacy(file, path.stat().st_size, limit_bytes)
            else:
                raise Damaged
    except (OtherObjects, Refused, Damaged, MemoryError):
        raise
    except Exception as error:  # nearly every kind occurs where a pickle is damaged
        raise Damaged from error


def _require_zip(file: BinaryIO, limit_bytes: int) -> None:
    try:
        found = {member.filename: member for member in members(file)}
    except ValueError as error:
        raise Refused(f"what torch.save does not write: {error}") from error
    root = next(iter(found)).split("/")[0]
    if f"{root}/constants.pkl" in found:
        raise OtherObjects  # TorchScript
    if any(not name.startswith(f"{root}/") or member.compress_type for name, member in found.items()):
        raise Refused("what torch.save does not write: members that are compressed or outside its one folder")
    total = sum(member.file_size for member in found.values())
    if total > min(limit_bytes, file.seek(0, 2)):
        raise Refused(f"members of {total / 2**20:,.0f} MiB")
    pickled = found[f"{root}/data.pkl"]
    if pickled.file_size > PICKLE_BYTES:
        raise Refused(f"{pickled.file_size / 2**20:,.0f} MiB of names and shapes")
    with zipfile.ZipFile(file) as archive:
        structure = _read(io.BytesIO(archive.read(pickled)), limit_bytes)
    for key, size in structure.storages.items():
        held = found.get(f"{root}/data/{key}")
        if held is None or held.file_size != size:
            raise Damaged


def _require_legacy(file: BinaryIO, size: int, limit_bytes: int) -> None:
    file.seek(0)
    pickles = io.BytesIO(file.read(PICKLE_BYTES))
    for _ in range(3):  # a magic number, a version and what system wrote it
        _read(pickles, limit_bytes)
    structure = _read(pickles, limit_bytes)
    if sum(structure.storages.values()) > size:
        raise Damaged


def _read(file: BinaryIO, limit_bytes: int) -> Structure:
    structure = Structure(limit_bytes)
    Reader(file, structure).load()
    return structure
