"""The three questions that `compress init` asks at a terminal."""

from collections.abc import Callable
from typing import TypeVar

import typer

from compress.console import one_line, say
from compress.errors import CompressError, ConfigError
from compress.export.targets import TARGETS
from compress.verbs.starting import (
    DEFAULT_LIMIT,
    DEMO,
    LIMITS,
    folder_here,
    images_of,
    limit_of,
    target_here,
    target_of,
)

Answer = TypeVar("Answer")


def ask_images() -> str:
    """The folder of images, or the demo."""
    say("1  Your images: a folder with one folder a class, or `digits` for a demo that downloads nothing")
    return _asked("   images", str(folder_here() or DEMO), images_of)


def ask_target() -> str:
    """What the files are for."""
    say("2  Your device:")
    for name, target in TARGETS.items():
        say(f"   {name:18} {target.summary}")
    return _asked("   device", target_here(), target_of)


def ask_limit() -> str:
    """The limit that matters most."""
    say(f"3  Your limit, against the same net uncompressed: {', '.join(LIMITS)}")
    say("   such as max_accuracy_drop=1 (points), max_bytes=500kB, max_latency_ratio=0.5")
    return _asked("   limit", DEFAULT_LIMIT, limit_of)


def _asked(words: str, default: str, check: Callable[[str], Answer]) -> str:
    """The first answer that will do; raises ConfigError where there is none."""
    while True:
        try:
            answer: str = typer.prompt(words, default=default).strip()
            check(answer)
        except typer.Abort:
            raise ConfigError(
                "init got no answer; give --data, --target and --limit, or --yes for the defaults"
            ) from None
        except CompressError as error:
            said = str(error).removeprefix("--target ").removeprefix("--limit ")
            say(f"   {one_line(said)}")
        else:
            return answer
