"""Writing files so that nothing is ever half there: a temporary name, fsync, rename, fsync of the folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from compress.environment import free_bytes
from compress.errors import ResourceError

UNFINISHED = ".unfinished"


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, with its folder if need be; text is UTF-8. Raises ResourceError."""
    raw = content.encode() if isinstance(content, str) else content
    with writing(path, len(raw)) as file:
        file.write(raw)


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes its name when the block ends well; what was under it stays until then.

    `needed` is its size in bytes where that is known beforehand. Raises ResourceError where the disk is full or the
    folder cannot be written, with the bytes that were needed and are free.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        settle(path.parent)
    except OSError as error:
        _remove(unfinished)
        raise cannot_write(path, error, needed) from error
    except BaseException:
        _remove(unfinished)
        raise


def settle(folder: Path) -> None:
    """See that what was renamed in a folder is still so after a power cut; a system without such a way is left be."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def rename(unfinished: Path, folder: Path) -> None:
    """Give a folder its name, in place of an older one, once all that is in it is on disk. Raises ResourceError."""
    try:
        for each in unfinished.rglob("*"):
            if each.is_file():
                with each.open("rb") as file:
                    os.fsync(file.fileno())
        for each in (unfinished, *(inner for inner in unfinished.rglob("*") if inner.is_dir())):
            settle(each)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        settle(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error, None) from error


def cannot_write(path: Path, error: OSError, needed: int | None) -> ResourceError:
    """What to tell a user of a file that could not be written."""
    why = error.strerror or str(error) or type(error).__name__
    try:
        free = f", {free_bytes(path.parent):,} bytes are free"
    except OSError:
        free = ""
    size = f" ({needed:,} bytes are needed{free})" if needed is not None else f" ({free[2:]})" if free else ""
    return ResourceError(
        f"{path} cannot be written: {why}{size}. Free some space, mend the folder's permissions, or choose another "
        "folder with --out; what was finished is kept"
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
