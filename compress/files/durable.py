"""Writing files so that nothing is ever half there: a temporary name, fsync, rename, fsync of the folder."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from compress.environment import free_bytes
from compress.errors import ResourceError

UNFINISHED = ".unfinished"
ELSEWHERE = "choose another folder with --out; what was finished is kept"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP)  # from systems that sync files only
NO_ACCESS = (errno.EACCES, errno.EPERM)


_reading_only = False


@contextmanager
def reading_only() -> Iterator[None]:
    """Let the functions of this module change nothing for the while: another process of the same run writes."""
    global _reading_only
    before, _reading_only = _reading_only, True
    try:
        yield
    finally:
        _reading_only = before


def write(path: Path, content: bytes | str, *, instead: str = ELSEWHERE) -> None:
    """Write a file whole or not at all, with its folder if need be; text is UTF-8. Raises ResourceError.

    `instead` ends an error's sentence with what else could be done.
    """
    raw = content.encode() if isinstance(content, str) else content
    with writing(path, len(raw), instead=instead) as file:
        file.write(raw)


@contextmanager
def writing(path: Path, needed: int | None = None, *, instead: str = ELSEWHERE) -> Iterator[BinaryIO]:
    """A file to write that takes its name when the block ends well; what was under it stays until then.

    `needed` is its size in bytes where that is known beforehand. Raises ResourceError where the disk is full or the
    folder cannot be written, with the bytes that were needed and are free.
    """
    if _reading_only:
        with open(os.devnull, "wb") as file:
            yield file
        return
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)
        # Never through a link that someone left under this name.
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        settle(path.parent)
    except OSError as error:
        _remove(unfinished)
        raise cannot_write(path, error, needed, instead) from error
    except BaseException:
        _remove(unfinished)
        raise


def append(path: Path, line: str) -> None:
    """Add a line of text to a file, made if need be, and see it to the disk. Raises ResourceError.

    It stands on a line of its own even where an interruption left half a line before it; a line that cannot be written
    whole leaves the file as it was.
    """
    if _reading_only:
        return
    raw = line.encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0, opener=_not_through_links) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                raw = raw if file.read(1) == b"\n" else b"\n" + raw
            try:
                if file.write(raw) != len(raw):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                os.fsync(file.fileno())
            except OSError:
                _cut(path, size)
                raise
    except OSError as error:
        raise cannot_write(path, error, len(raw)) from error


def lines(path: Path) -> list[str]:
    """The whole lines of a file of `append`, without one that an interruption left half; none without a file."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    return text.split("\n")[:-1]


def settle(folder: Path) -> None:
    """See that what was renamed in a folder is still so after a power cut; a system without such a way is left be.

    Raises OSError where the disk refuses.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be written and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDERS:
            raise
    finally:
        os.close(handle)


def folder(path: Path) -> Path:
    """Make a folder with those above it, if they are not there; gives it back. Raises ResourceError."""
    try:
        if not _reading_only:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, None) from error
    return path


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises ResourceError."""
    try:
        if not _reading_only:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error, None) from error


def rename_file(path: Path, name: Path) -> None:
    """Give a file of `writing` another name in its folder, for good. Raises ResourceError."""
    if _reading_only:
        return
    try:
        os.replace(path, name)
        settle(name.parent)
    except OSError as error:
        raise cannot_write(name, error, None) from error


def rename(unfinished: Path, folder: Path) -> None:
    """Give a folder its name, in place of an older one, once all that is in it is on disk. Raises ResourceError."""
    if _reading_only:
        return
    try:
        for each in unfinished.rglob("*"):
            if each.is_file():
                with each.open("rb") as file:
                    os.fsync(file.fileno())
        for each in (unfinished, *(inner for inner in unfinished.rglob("*") if inner.is_dir())):
            settle(each)
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        settle(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error, None) from error


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder, outside of the run's, for what is needed for a moment only. Raises ResourceError."""
    try:
        # What cannot be removed is the system's to clean up, and no reason to end a run.
        made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ResourceError(
            f"no temporary folder can be made: {why}. Free some space in the system's folder for temporary files, or "
            "set TMPDIR to another"
        ) from error
    with made as name:
        yield Path(name)


def cannot_write(path: Path, error: OSError, needed: int | None, instead: str = ELSEWHERE) -> ResourceError:
    """What to tell a user of a file or folder that could not be written."""
    if error.errno in NO_SPACE:
        advice = "Free some space"
    elif error.errno in NO_ACCESS:
        advice = "Mend the folder's permissions"
    else:
        advice = "Mend that"
    return ResourceError(
        f"{path} cannot be written: {_why(path, error)}{sizes(path, error, needed)}. {advice}, or {instead}"
    )


def sizes(path: Path, error: OSError, needed: int | None = None) -> str:
    """The bytes that are needed and free, in brackets, where space is the reason; else nothing."""
    if error.errno not in NO_SPACE:
        return ""
    known = [f"{needed:,} bytes are needed"] if needed is not None else []
    with suppress(OSError):
        known.append(f"{free_bytes(path.parent):,} bytes are free")
    return f" ({', '.join(known)})" if known else ""


def _why(path: Path, error: OSError) -> str:
    """The system's reason in plain words, with the place where that is not the file itself."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    if isinstance(error, FileExistsError | NotADirectoryError):
        # What is in the way may be any of the folders above.
        blocking = next((each for each in (place, *place.parents) if each.is_symlink() or each.is_file()), place)
        if blocking.is_symlink() and not blocking.exists():
            return f"{blocking} is a link to nothing"
        return f"{blocking} is there and no folder" if blocking != path or not path.is_dir() else "a folder is there"
    if error.errno == errno.ELOOP and path.is_symlink():
        return "it is a link"
    if isinstance(error, IsADirectoryError):
        return f"{place} is a folder"
    said = error.strerror or str(error) or type(error).__name__
    return said if place in (path, path.with_name(path.name + UNFINISHED)) else f"{said} ({place})"


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _cut(path: Path, size: int) -> None:
    """Take back what was half written."""
    try:
        os.truncate(path, size)
    except OSError:
        return


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
