"""Whatever a verb imports can be the first that is imported: which one is, depends on the verb."""

import ast
import subprocess
import sys
from pathlib import Path

from compress import cli

# One process pays for the libraries; each module is then imported in a fork of it that knows none of ours.
FIRST = """
import importlib, os, sys, traceback
import jinja2, matplotlib.figure, onnxruntime, onnxscript.optimizer, plotly, rich.progress, sklearn.datasets, typer
import torch.onnx, torch_pruning, torchvision
assert not any(name.split(".")[0] == "compress" for name in sys.modules)
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


def imported_by_verbs() -> list[str]:
    """The modules of ours that the command line imports only where it needs them, such as `compress.running.runner`."""
    found = set()
    for verb in ast.walk(ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))):
        if not isinstance(verb, ast.FunctionDef):
            continue
        for line in ast.walk(verb):
            if isinstance(line, ast.ImportFrom) and str(line.module).split(".")[0] == "compress":
                names = [f"{line.module}.{alias.name}" for alias in line.names]
                found |= {name if is_module(name) else str(line.module) for name in names}
    return sorted(found)


def is_module(name: str) -> bool:
    return (Path(cli.__file__).parent.parent / (name.replace(".", "/") + ".py")).is_file()


def test_whatever_a_verb_imports_can_be_imported_first() -> None:
    names = imported_by_verbs()
    verbs = {"compress.verbs.catalogue", "compress.verbs.schema"}
    assert verbs | {"compress.running.runner", "compress.running.plan", "compress.pipeline"} <= {*names}
    command = [sys.executable, "-W", "ignore", "-c", FIRST, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
