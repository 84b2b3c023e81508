"""`python -m compress` and the `compress` command."""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path and Path.cwd() != Path(__file__).resolve().parent.parent:
    # `-m` looks into the current folder first, and a stranger's typer.py may lie there.
    sys.path = [folder for i, folder in enumerate(sys.path) if i or folder not in ("", str(Path.cwd()))]

from compress.cli import main

if __name__ == "__main__":
    main()
