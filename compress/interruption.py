"""Signals that end a run, held back while work must not be torn apart."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """The run was asked to stop by a signal; `saved` tells whether a checkpoint of the training was written.

    The exit code is 128 plus the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.saved = False


_held_back = 0
_asked: int | None = None


def listen() -> None:
    """Answer Ctrl-C and SIGTERM by raising Stopped, at once or at the end of what is held together."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _answer)


@contextmanager
def held_together() -> Iterator[None]:
    """Let no signal interrupt this block; one that came is answered where `answer` is called, or by a second one."""
    global _held_back
    _held_back += 1
    try:
        yield
    finally:
        _held_back -= 1


def asked() -> bool:
    """Whether a signal has come that was not answered yet."""
    return _asked is not None


def answer(elsewhere: bool = False) -> None:
    """Raise Stopped if a signal has come in the meantime, to this process or `elsewhere`, to one it works with."""
    global _asked
    if _asked is not None or elsewhere:
        number, _asked = _asked or signal.SIGTERM, None
        raise Stopped(number)


def _answer(number: int, frame: FrameType | None) -> None:
    global _asked
    if _held_back:
        _asked = number
        return
    _asked = None
    raise Stopped(number)
