"""How a command ends: its last words and its exit code, for people, as JSON, and among processes that share it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import typer

from compress import interruption


@contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """Where JSON is wanted, say an error there too, as the last line; `main` says it to people."""
    try:
        yield
    except (Exception, interruption.Stopped) as error:
        if wanted:
            from compress.showing.json_lines import JsonLines

            message, code = (
                (stopped(error), error.code) if isinstance(error, interruption.Stopped) else explained(error)
            )
            JsonLines()({"event": "error", "message": message.removeprefix("error: "), "exit_code": code})
        raise


def stopped(stop: interruption.Stopped) -> str:
    """What is said of a signal: which it was, and what is kept."""
    done = next((done for verb, done in (("run", "stages"), ("sensitivity", "rows")) if verb in sys.argv), "")
    kept = f"; finished {done} are kept" if done else ""
    kept += ", and the training as it is" if stop.saved else ""
    again = ": the same command goes on from there" if kept else ""
    return f"{'interrupted' if stop.number == signal.SIGINT else 'terminated'}{kept}{again}"


def explained(error: BaseException) -> tuple[str, int]:
    """One message and the exit code for whatever went wrong."""
    # The classes of its usage errors are click's in some versions of typer and its own in others.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        text = usage()
        end = "" if text.endswith((".", "?")) else "."
        return f"error: {text}{end} `compress --help` and `compress VERB --help` show what there is", 2
    if isinstance(error, typer.Abort) and error.__cause__ is not None:
        error = error.__cause__  # typer takes every EOFError for a user who closed the input
    from compress.console import explain

    return explain(error)


@contextmanager
def together(device: str) -> Iterator[Any]:
    """Join the processes that torchrun started with this one, if it did; the first of them alone writes and talks.

    The others end with its exit code and without a word, unless they lost it.
    """
    from compress.distributed.failure import Lost
    from compress.distributed.joining import start
    from compress.distributed.launch import pick_device
    from compress.files import durable

    leads = True
    try:
        with start(pick_device(device)) as group:
            leads = group.leads
            with nullcontext() if leads else durable.reading_only():
                yield group
    except Lost:
        raise
    except SystemExit as stop:  # a signal
        if leads:
            raise
        sys.exit(stop.code)
    except Exception as error:
        if leads or "--debug" in sys.argv:
            raise
        sys.exit(explained(error)[1])


def say(text: str, *, err: bool = False) -> None:
    """Print a result or an error, whatever names it holds."""
    from compress import console

    console.say(text, err=err)


def say_json(value: Any) -> None:
    """Print a result as JSON."""
    from compress.showing.json_lines import json_of

    say(json_of(value, indent=1))
