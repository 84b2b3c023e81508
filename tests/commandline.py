"""The command line, called in this process: a fresh one would spend five seconds on imports for every call."""

import io
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from compress import cli
from compress.verbs.catalogue import TABLES


@contextmanager
def as_it_was() -> Iterator[None]:
    """Afterwards signals and tables are what they were: a command sets handlers, a plugin adds members."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    tables = {kind: dict(table) for kind, table in TABLES.items()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for kind, table in TABLES.items():
            for name in table.keys() - tables[kind].keys():
                del table[name]  # type: ignore[attr-defined]


def done(folder: Path, *words: str) -> str:
    """What `compress` with these words prints in a folder, where it ends with 0."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, as_it_was(), chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["compress", *words])
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 0, err.getvalue()
    return out.getvalue()
