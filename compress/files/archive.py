"""A zip archive from outside, looked at before anything in it is read: what it lists, how large, nothing hidden."""

import zipfile
from collections import Counter
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

DIRECTORY_BYTES = 16 * 2**20  # the list of some 200,000 members
END, END_BYTES = b"PK\5\6", 22
END_64, END_64_BYTES = b"PK\6\6", 56
LOCATOR_64, LOCATOR_64_BYTES = b"PK\6\7", 20
ENCRYPTED = 0x1
WAYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def members(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """What a zip archive lists, in its order; nothing is unpacked.

    Raises zipfile.BadZipFile where it is damaged and ValueError, in a few words, for what no program writes that means
    well: an endless list, a name twice, a name that is absolute or leads outside, a password, a rare compression, bytes
    before or behind the archive (one reader may find another list there than the next).
    """
    if _directory_bytes(file) > DIRECTORY_BYTES:
        raise ValueError("it lists far more members than anything that is read here")
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
    if found and min(member.header_offset for member in found) != 0:
        raise ValueError("something else stands before its first member")
    name, times = Counter(member.filename for member in found).most_common(1)[0] if found else ("", 1)
    if times > 1:
        raise ValueError(f"it holds {name!r} {times} times")
    for member in found:
        _require_plain(member)
    return found


def _require_plain(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if leads_outside(name):
        raise ValueError(f"its member {name!r} leads outside the archive")
    if member.flag_bits & ENCRYPTED or member.compress_type not in WAYS:
        raise ValueError(f"its member {name!r} is encrypted or compressed in a rare way")


def leads_outside(name: str) -> bool:
    """Whether a relative file name is none: absolute, with a drive, a step upwards or a NUL, on any system."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    windows = PureWindowsPath(name)
    return not name or "\0" in name or ".." in parts or name.startswith("/") or bool(windows.drive or windows.root)


def _directory_bytes(file: BinaryIO) -> int:
    """The size of an archive's list, which its reader takes into memory as a whole."""
    size = file.seek(0, 2)
    file.seek(max(size - END_BYTES - LOCATOR_64_BYTES - END_64_BYTES, 0))
    tail = file.read()
    file.seek(0)
    end = tail[-END_BYTES:]
    # An end with a comment could hold a second end.
    if len(end) < END_BYTES or end[:4] != END or end[-2:] != b"\0\0":
        raise zipfile.BadZipFile("File is not a zip file")
    before = tail[:-END_BYTES]
    if before[-LOCATOR_64_BYTES:][:4] == LOCATOR_64 and before[:4] == END_64:
        return int.from_bytes(before[40:48], "little")
    return int.from_bytes(end[12:16], "little")
