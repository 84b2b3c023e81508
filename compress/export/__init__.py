"""Writing ONNX files.

The package itself can be called: `compress.export(module, example, path)` is `compress.functions.exporting.export`. The
import system gives the name to this package as soon as anything in it is imported.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CalledAsFunction(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("compress.functions.exporting").export(*args, **kwargs)


sys.modules[__name__].__class__ = _CalledAsFunction
