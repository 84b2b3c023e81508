"""One run a folder: who has it, who waits, and what becomes of a lock whose owner died."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compress.errors import BusyError, ResourceError
from compress.files import lock
from compress.files.lock import FILE, Owner, locked

HOLD = """
import sys
from pathlib import Path
from compress.errors import CompressError
from compress.files.lock import locked
try:
    with locked(Path(sys.argv[1])) as dead:
        print("held", dead, flush=True)
        sys.stdin.read()
except CompressError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """A process that takes a folder, if it can, and keeps it until it may read to the end."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def end(process: "subprocess.Popen[str]") -> int:
    process.communicate(timeout=60)
    return process.returncode


def record(folder: Path, **changes: Any) -> None:
    """Leave the lock as an owner does that died."""
    known = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "2026-01-02T03:04:05+00:00"} | changes
    (folder / FILE).write_text(json.dumps(known))


def test_of_eight_at_once_one_has_the_folder_and_seven_are_told_who(tmp_path: Path) -> None:
    began = time.monotonic()
    processes = [holder(tmp_path) for _ in range(8)]
    lines = [said(process) for process in processes]
    (winner,) = [process for process, line in zip(processes, lines, strict=True) if line == "held None"]
    owner = json.loads((tmp_path / FILE).read_text())
    assert owner["host"] == socket.gethostname()
    assert owner["pid"] == winner.pid
    wanted = (
        f"another run uses {tmp_path}: pid {winner.pid} on host {owner['host']} has it since {owner['started']}; "
        "wait for it, or choose another folder with --out"
    )
    assert sorted(lines) == sorted([*[wanted] * 7, "held None"])
    assert sorted(end(process) for process in processes) == [0] + [7] * 7
    assert time.monotonic() - began < 30
    assert (tmp_path / FILE).read_text() == ""


def test_the_lock_of_a_killed_owner_is_taken_over_and_said(tmp_path: Path) -> None:
    first = holder(tmp_path)
    assert said(first) == "held None"
    os.kill(first.pid, signal.SIGKILL)
    assert end(first) == -signal.SIGKILL
    with locked(tmp_path) as dead:
        assert dead is not None
        assert (dead.host, dead.pid) == (socket.gethostname(), first.pid)
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    with locked(tmp_path) as dead:
        assert dead is None


def test_a_run_that_fails_leaves_no_owner(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within"), locked(tmp_path):
        raise ValueError("within")
    assert (tmp_path / FILE).read_text() == ""


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"host": "a"}', '{"host": 1, "pid": "x", "started": 1}', "\0"]
)
def test_a_lock_that_names_nobody_is_free(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with locked(tmp_path) as dead:
        assert dead is None


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_that_is_no_file(kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    if kind == "link":
        (tmp_path / FILE).symlink_to(outside)
    else:
        (tmp_path / FILE).mkdir()
    with pytest.raises(ResourceError, match=r"\.lock cannot be written: "), locked(tmp_path):
        pass
    assert outside.read_text() == "precious"


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "SETTLED_S", 0.0)


@pytest.mark.usefixtures("lockless")
def test_without_locks_a_dead_owner_of_this_host_has_lost_the_folder(tmp_path: Path) -> None:
    record(tmp_path)
    with locked(tmp_path) as dead:
        assert dead == Owner(socket.gethostname(), 2**22 + 1, "2026-01-02T03:04:05+00:00")


@pytest.mark.usefixtures("lockless")
@pytest.mark.parametrize("changes", [{"pid": os.getppid()}, {"host": "elsewhere"}, {"pid": 2**80}])
def test_without_locks_whoever_may_be_alive_keeps_it(changes: dict[str, Any], tmp_path: Path) -> None:
    record(tmp_path, **changes)
    with (
        pytest.raises(BusyError, match=r"has it since 2026-01-02.*; if it is dead, delete .*\.lock$"),
        locked(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / FILE).read_text()) | changes == json.loads((tmp_path / FILE).read_text())


@pytest.mark.usefixtures("lockless")
def test_without_locks_the_last_to_come_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: record(tmp_path, host="elsewhere"))
    with pytest.raises(BusyError, match="on host elsewhere has it"), locked(tmp_path):
        pass
