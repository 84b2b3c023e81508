"""Files that mean harm, each fed to the command line: a canary must not be touched, memory must stay bounded.

`python tests/malicious.py FOLDER [NAME…]` runs the whole table in one process, a line of JSON for each case.
"""

import io
import json
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECONDS = 30  # after which a case hangs
PEAK_BYTES = 768 * 2**20  # what a case may take on top of what the program has anyway
SPARE_BYTES = 6 * 2**30  # address space on top of that: a bomb should not take the machine with it


@dataclass(frozen=True)
class Attack:
    """What `compress` is called with, and how it must end: `says` are parts of the message, beside the file's name."""

    words: tuple[str, ...]
    exit_code: int
    says: tuple[str, ...]


# Writes a case into a folder; the second path is the canary, outside the folder, which is not there.
Write = Callable[[Path, Path], Attack]


@dataclass(frozen=True)
class Result:
    """How a case ended; `complaints` says what is wrong with that, nothing if all is well."""

    name: str
    exit_code: int
    said: str
    seconds: float
    peak_bytes: int
    complaints: tuple[str, ...]


def table() -> dict[str, Write]:
    """All cases by name."""
    import malicious_archives
    import malicious_images
    import malicious_onnx
    import malicious_weights

    modules = (malicious_weights, malicious_onnx, malicious_archives, malicious_images)
    cases = [(f"{kind}: {name}", write) for module in modules for kind, name, write in module.cases()]
    assert len(dict(cases)) == len(cases), "two cases have one name"
    return dict(cases)


def run_case(name: str, write: Write, folder: Path) -> Result:
    """Write a case into a new folder, call the command line on it, and judge how that ended."""
    inside, canary = folder / "inside", folder / "canary"
    inside.mkdir(parents=True)
    attack = write(inside, canary)
    before, began = _reset_peak(), time.perf_counter()
    code, said = call(attack.words, inside)
    seconds, peak = time.perf_counter() - began, max(_peak() - before, 0)
    wrong = [f"exit {code}, not {attack.exit_code}"] if code != attack.exit_code else []
    wrong += [f"the message lacks {part!r}" for part in attack.says if part not in said]
    wrong += ["the canary was touched"] if canary.exists() or canary.is_symlink() else []
    wrong += ["a traceback"] if "Traceback" in said else []
    wrong += [f"{peak:,} bytes of memory"] if peak > PEAK_BYTES else []
    return Result(name, code, said, seconds, peak, tuple(wrong))


def call(words: Iterable[str], folder: Path) -> tuple[int, str]:
    """The exit code of `compress` with these words in a folder, and all that it prints; -1 where it hangs."""
    from compress import cli

    printed = io.StringIO()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with chdir(folder), _arguments(words), redirect_stdout(printed), redirect_stderr(printed), _at_most(SECONDS):
            try:
                cli.main()
            except SystemExit as end:
                return int(end.code or 0), printed.getvalue()
            except BaseException:
                return -1, printed.getvalue() + traceback.format_exc()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("the command line always exits")


@contextmanager
def _arguments(words: Iterable[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, ["compress", *words]
    try:
        yield
    finally:
        sys.argv = before


class Hanging(BaseException):
    """No program catches it."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hanging

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reset_peak() -> int:
    """Forget the highest memory so far, where the system can; gives the highest since."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _peak()


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))


def main(folder: Path, names: Iterable[str] = ()) -> int:
    """Run cases, all or those named; returns how many ended wrong."""
    import torch

    import compress.running.runner
    import compress.verbs.verifying  # noqa: F401 - imported before memory is counted

    torch.set_num_threads(1)
    _limit_memory()
    wrong = 0
    cases = table()
    for i, name in enumerate(names or cases):
        result = run_case(name, cases[name], folder / str(i))
        print(json.dumps(asdict(result)), flush=True)
        wrong += bool(result.complaints)
    return wrong


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(min(main(Path(sys.argv[1]).resolve(), sys.argv[2:]), 100))
