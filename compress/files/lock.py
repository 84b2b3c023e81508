"""One run a folder: a lock that falls away with its process, and says who holds it."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from compress.errors import BusyError
from compress.files.durable import cannot_write

try:
    import fcntl
except ImportError:  # a system without them: the file's content is all there is to go by
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
MOST_BYTES = 4096
SETTLED_S = 0.3  # after which those that came at the same time have written who they are
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
UNKNOWN_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """Who holds a run folder, or held it until it died: host, process, and when it started (ISO 8601)."""

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host}"

    @property
    def alive(self) -> bool:
        """Whether the process may still run; of another host's nothing is known."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            return True
        return True


@contextmanager
def locked(folder: Path) -> Iterator[Owner | None]:
    """Hold a run folder for this process alone; gives the owner that died with it in hand, if one did.

    The lock is the system's own on the file, so that it ends with its process, however that ends. Where the file system
    knows no locks the file's content decides: an owner of this host that no longer runs has lost the folder, one of
    another host keeps it, for nothing can be known of it. Raises BusyError where another process has the folder, and
    ResourceError where the file cannot be written.
    """
    path = folder / FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise cannot_write(path, error, None) from error
    try:
        before = _read(handle)
        own = _taken(handle, path)
        if not own and before is not None and before.alive:
            raise _busy(folder, before, f"; if it is dead, delete {path}")
        _sign(handle, path, own)
        try:
            yield before
        finally:
            with suppress(OSError):  # the lock ends all the same
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _taken(handle: int, path: Path) -> bool:
    """Whether the system gave the lock; False where it knows none. Raises BusyError where another process has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise _busy(path.parent, _read(handle) or _read_later(handle)) from None
        if error.errno in UNKNOWN_HERE:
            return False
        raise cannot_write(path, error, None) from error
    return True


def _sign(handle: int, path: Path, own: bool) -> None:
    """Write who has the folder; where the system gave no lock, of several that come at once the last one has it."""
    mine = _myself()
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(mine)).encode() + b"\n", 0)
        os.fsync(handle)
    except OSError as error:
        raise cannot_write(path, error, None) from error
    if not own:
        time.sleep(SETTLED_S)
        if (winner := _read(handle)) != mine:
            raise _busy(path.parent, winner)


def _busy(folder: Path, owner: Owner | None, more: str = "") -> BusyError:
    who = f": {owner} has it since {owner.started}" if owner else ""
    return BusyError(f"another run uses {folder}{who}; wait for it, or choose another folder with --out{more}")


def _myself() -> Owner:
    return Owner(socket.gethostname(), os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds"))


def _read(handle: int) -> Owner | None:
    """The owner that the file names, None where it names none."""
    try:
        found = json.loads(os.pread(handle, MOST_BYTES, 0))
        return Owner(str(found["host"]), int(found["pid"]), str(found["started"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def _read_later(handle: int) -> Owner | None:
    """The same, for an owner that may not have written its name yet."""
    time.sleep(SETTLED_S)
    return _read(handle)
