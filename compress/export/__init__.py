"""Writing ONNX files.

The package itself can be called: `compress.export(module, example, path)` is the function of `compress.functions`,
whose name the import system gives to this package as soon as anything in it is imported.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CalledAsFunction(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("compress.functions").export(*args, **kwargs)


sys.modules[__name__].__class__ = _CalledAsFunction
