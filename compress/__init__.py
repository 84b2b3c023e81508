"""Compress image classifiers: distil, prune, quantize, export, prove.

`compress.run` runs a pipeline file; `compress.prune`, `quantize`, `distill` and `export` work on plain modules.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

FUNCTIONS = ("Rows", "distill", "export", "prune", "quantize", "run")

if TYPE_CHECKING:
    from compress.functions import Rows, distill, prune, quantize, run

__all__ = ["Rows", "distill", "prune", "quantize", "run"]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are asked for: torch takes seconds, and `compress --help` needs none of it."""
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("compress.functions"), name)
