"""Compress image classifiers: distil, prune, quantize, export, prove.

`compress.run` runs a pipeline file; `compress.prune`, `quantize`, `distill` and `export` work on plain modules.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each lives; `export` is found under its name as soon as that package is imported, and can be called.
FUNCTIONS = {
    "run": "compress.functions.running", "Rows": "compress.functions.running",
    "prune": "compress.functions.pruning", "quantize": "compress.functions.quantization",
    "distill": "compress.functions.distillation", "export": "compress.functions.exporting",
}  # fmt: skip

if TYPE_CHECKING:
    from compress.functions.distillation import distill
    from compress.functions.pruning import prune
    from compress.functions.quantization import quantize
    from compress.functions.running import Rows, run

__all__ = ["Rows", "distill", "prune", "quantize", "run"]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are asked for: torch takes seconds, and `compress --help` needs none of it."""
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(FUNCTIONS[name]), name)
