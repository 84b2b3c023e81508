"""No telemetry, no code but by `--plugin`, no look at the test images: tried where each would be noticed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import raw_pipeline, tiny_pipeline
from torch import Tensor

from compress.data import Data
from compress.data.base import Split
from compress.errors import ConfigError
from compress.named_nets import Model
from compress.net import Net, Spec, build
from compress.pipeline import Pipeline
from compress.running.sources import load
from compress.stages import Env

ROOT = Path(__file__).parent.parent
# Notes every attempt at the network and lets none through.
BLOCKED = """
import os, socket

def blocked(what):
    def refuse(*given, **named):
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{what} {given} {named}\\n")
        raise OSError(101, "Network is unreachable")
    return refuse

class Socket(socket.socket):
    def __init__(self, family=socket.AF_INET, *rest, **named):
        if family in (socket.AF_INET, socket.AF_INET6):
            blocked("socket")(family)
        super().__init__(family, *rest, **named)

socket.socket = Socket
for name in ("create_connection", "getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, blocked(name))
"""
TOUCH = "import os\nopen(os.environ['CANARY'], 'a').write(__name__ + '\\n')\n"
# One process for all verbs: each would spend five seconds on imports.
VERBS = """
import contextlib, io, json, sys
from compress import cli

answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["compress", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            answers.append((words, ended.code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""
WEB = "https://example.invalid"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a stranger might have left it: modules, packages and settings that would be code, were they read."""
    folder = tmp_path_factory.mktemp("strange")
    for name in ("torch", "yaml", "typer", "onnx", "sklearn", "compress_plugin", "conftest", "setup", "plugins/own"):
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(TOUCH)
    # An installed package with an entry point, which programs of other houses load unasked.
    site = folder / "site"
    (site / "stranger-1.0.dist-info").mkdir(parents=True)
    (site / "stranger.py").write_text(TOUCH)
    (site / "stranger-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    entry = "[compress.plugins]\nstranger = stranger\n[compress.models]\nstranger = stranger\n"
    (site / "stranger-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (site / "sitecustomize.py").write_text(BLOCKED)
    settings = "plugins: [plugins/own.py]\nplugin: plugins/own.py\n"
    for name in (".compressrc", "compress.yaml", ".compress.yaml", "compress.toml", "setup.cfg", ".env"):
        (folder / name).write_text(settings)
    (folder / "matplotlibrc").write_text("backend: module://torch\n")
    training = {"epochs": 1, "batch_size": 16, "lr": 0.01}
    raw = raw_pipeline(
        data={"synthetic": {"size": 16, "classes": 4, "samples": 32}}, teacher=None,
        baseline={"training": training}, stages=[{"quantize": {"training": training}}],
    )  # fmt: skip
    (folder / "p.yaml").write_text(yaml.safe_dump(raw))
    (folder / "verbs").mkdir()
    (folder / "verbs" / "verbs.py").write_text(VERBS)
    return folder


def surroundings(place: Path) -> dict[str, str]:
    path = os.pathsep.join([str(place / "site"), str(ROOT)])
    noted = {"ATTEMPTS": str(place / "attempts"), "CANARY": str(place / "canary"), "PYTHONPATH": path}
    settings = {"COMPRESS_PLUGINS": str(place / "plugins/own.py"), "COMPRESS_PLUGIN": str(place / "plugins/own.py")}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), WEB)
    return os.environ | noted | settings | proxies | {"OMP_NUM_THREADS": "1"}


def without_network(place: Path, *commands: list[str]) -> list[tuple[list[str], int, str, str]]:
    script = [sys.executable, "-W", "ignore", str(place / "verbs" / "verbs.py"), json.dumps(commands)]
    ended = subprocess.run(script, cwd=place, env=surroundings(place), capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return [tuple(answer) for answer in json.loads(ended.stdout)]


def test_everything_but_downloads_works_without_a_network_and_imports_nothing_unasked(place: Path) -> None:
    plugin = ["--plugin", str(ROOT / "tests" / "tiny.py")]
    file = "reports/tiny-smoke/models/quantize.int8.onnx"
    found = without_network(
        place,
        ["validate", "p.yaml", *plugin],
        ["run", "p.yaml", "--smoke", *plugin],
        ["report", "reports/tiny-smoke"],
        ["compare", "reports/tiny-smoke"],
        ["show", "p.yaml", *plugin],
        ["benchmark", file, "--rounds", "2"],
        ["verify", file, *plugin],
        ["ls"],
        ["doctor"],
        ["init", "mine"],
    )
    assert [(words[0], code, err) for words, code, _, err in found if code != 0] == []
    assert not (place / "attempts").exists()
    assert not (place / "canary").exists()
    report = json.loads((place / "reports/tiny-smoke/report.json").read_text())
    assert "code came in by --plugin tiny.py" in report["notes"]
    assert "stranger" not in found[7][2]


def test_the_block_would_have_noticed(place: Path, tmp_path: Path) -> None:
    """What has to be downloaded is said in one sentence, and the attempt was seen."""
    noted = surroundings(place) | {"ATTEMPTS": str(tmp_path / "attempts")}
    code = "import urllib.request as web\ntry: web.urlopen('https://example.invalid')\nexcept OSError: print('blocked')"
    ended = subprocess.run([sys.executable, "-c", code], env=noted, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("blocked\n", "")
    assert "create_connection" in (tmp_path / "attempts").read_text()


def test_modules_in_the_current_folder_are_not_taken_for_ours(place: Path) -> None:
    command = [sys.executable, "-m", "compress", "--version"]
    ended = subprocess.run(command, cwd=place, env=surroundings(place), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (place / "canary").exists()


CODE = [
    {"plugin": "plugins/own.py"},
    {"plugins": ["plugins/own.py"]},
    {"import": "os"},
    {"student": "torch.hub.load"},
    {"student": {"plugins.own.Net": {}}},
    {"data": {"plugins/own.py": {}}},
    {"stages": [{"os.system": {"command": "true"}}]},
    {"stages": [{"distill": {"losses": ["plugins.own:Loss"]}}]},
]  # fmt: skip


@pytest.mark.parametrize("change", CODE, ids=[str(change) for change in CODE])
def test_no_pipeline_names_code(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no such key|no '(torch|plugins|os)"):
        tiny_pipeline(**change)


# The test images are for measuring alone


class Sealed:
    """Images that may not be looked at."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        raise AssertionError("a stage looks at the test images")


TRAINED = {"training": {"epochs": 1, "batch_size": 16, "lr": 0.001}}
STAGES: list[dict[str, Any]] = [
    {"distill": TRAINED},
    {"prune": {"keep_macs": 0.6, "importance": "taylor"} | TRAINED},
    {"prune": {"keep_macs": 0.6, "allocation": "sensitivity"} | TRAINED},
    {"sensitivity": {"ratios": [0.5], "images": 16}},
    {"sparsify": {"sparsity": 0.5} | TRAINED},
    {"quantize": {"method": "ptq", "calibration": 32, "correct_bias": True}},
    {"quantize": {"method": "ptq", "calibration": 32, "max_accuracy_drop": 0.0}},
    {"quantize": {"method": "ptq", "ranges": "kl"}},
    {"quantize": {"ranges": "moving_average"} | TRAINED},
    {"quantize": {"learn": "lsq"} | TRAINED},
]  # fmt: skip


@pytest.fixture(scope="module")
def sealed() -> tuple[Data, Net, Net]:
    """Data with sealed test images, a net and a teacher."""
    data = load(tiny_pipeline(data={"synthetic": {"size": 16, "classes": 4, "samples": 48}})).data
    shut = replace(data, test=Split(Sealed(len(data.test)), data.test.labels))
    spec = Spec(architecture=Model.parse("tiny").architecture, classes=4, image=data.image)
    return shut, build(spec, 0), build(spec, 1)


@pytest.mark.parametrize("stage", STAGES, ids=[str(stage)[:60] for stage in STAGES])
def test_no_stage_looks_at_the_test_images(
    stage: dict[str, Any], sealed: tuple[Data, Net, Net], tmp_path: Path
) -> None:
    data, net, teacher = sealed
    pipeline: Pipeline = tiny_pipeline(stages=[stage])
    env = Env(data=data, teachers=(teacher,), device=torch.device("cpu"), seed=0, stage="stage", out=tmp_path)
    found = pipeline.stages[0](net, env)  # a look at a sealed image raises
    assert found.spec.classes == data.classes
    assert not found.module.training


@pytest.mark.parametrize("value", ["test", {"split": "test"}, [0, 1], True])
@pytest.mark.parametrize("key", ["calibration", "calibration_split", "calibrate_on", "data"])
def test_nothing_can_be_calibrated_on_them(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"stages.0.quantize.{key}: (should be a|no such key)"):
        tiny_pipeline(stages=[{"quantize": {key: value}}])
