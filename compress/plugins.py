"""The only way that a user's code comes in: a file named on the command line.

A plugin puts its classes into the tables: `from compress.losses import LOSSES; LOSSES[Margin.name] = Margin`.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from compress.errors import ConfigError
from compress.spelling import nearest_file


def load_plugins(files: Sequence[Path]) -> None:
    """Run the files; raises ConfigError where one is missing or fails."""
    for file in files:
        if not file.is_file():
            near = nearest_file(file, (".py",))
            raise ConfigError(f"--plugin {file}: no such file{'.' if near else ''}{near}")
        _explained(str(file), partial(_execute, file))


def _execute(file: Path) -> None:
    name = f"compress_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _explained(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:
        line = _last_line(error, name)
        raise ConfigError(f"plugin {name} failed{line}: {type(error).__name__}: {error}; mend or omit it") from error


def _last_line(error: BaseException, file: str) -> str:
    """` in line n`, the last of the file that was run, where it was."""
    if isinstance(error, SyntaxError):
        return ""  # which says its line itself
    trace, found = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(Path(file).absolute()):
            found = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return found
