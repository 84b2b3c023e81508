"""`python -m compress` and the `compress` command."""

import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__" and not sys.flags.safe_path and Path.cwd() != Path(__file__).resolve().parent.parent:
    # `-m` looks into the current folder first, and a stranger's typer.py may lie there.
    sys.path = [folder for i, folder in enumerate(sys.path) if i or folder not in ("", str(Path.cwd()))]

from compress import cli

# They end soon and leave nothing to be tidied up: no looking for garbage, and not Python's way out of PyTorch, which
# takes as long as a quarter of the way in.
READING = ("ls", "validate", "show", "doctor")


def main() -> NoReturn:
    """Run the command line in a process of its own, and end it."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if verb in READING:
        gc.disable()
    try:
        cli.main()
    except SystemExit as end:
        if verb in READING and isinstance(end.code, int):
            with suppress(OSError, ValueError):  # the reader has gone
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code)
        raise


if __name__ == "__main__":
    main()
