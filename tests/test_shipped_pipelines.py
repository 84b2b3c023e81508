"""Every pipeline that ships: it is accepted, opens with what one wants to know, and runs with --smoke."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import done
from rich.console import Console

from compress.pipeline import parsed, read
from compress.running.plan import plan
from compress.verbs.plan_tree import tree
from compress.yamlfile import parse_yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "pipelines"
PIPELINES = sorted(FOLDER.rglob("*.yaml"))
WITHOUT_SMOKE = ("mobilenet",)  # the README's test smokes it
DOCS = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
SHORTEST: dict[str, Any] = {"name": "x", "data": "digits", "teacher": "resnet18", "student": "mobilenet_v1"}


pytestmark = pytest.mark.usefixtures("graphs")


def python_in(header: str) -> str:
    """The lines of Python that a pipeline's header has for who lacks the data."""
    return "\n".join(re.findall(r"^# {14}(\S.*)$", header, re.MULTILINE))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_header_and_row(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert read(path).name == path.stem
    assert f"({path.relative_to(FOLDER).as_posix()})" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("distillation/*.yaml")), ids=lambda path: path.stem)
def test_a_form_of_distillation_names_its_paper_and_the_page_names_it(path: Path) -> None:
    assert re.search(r"^# Papers +(arXiv:\d{4}\.\d{4,5}|doi:10\.)", path.read_text(), re.MULTILINE)
    assert f"(../pipelines/distillation/{path.name})" in DOCS


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL))
def test_what_the_page_shows_is_part_of_a_pipeline(block: str) -> None:
    shown = yaml.safe_load(block)
    stages = shown if isinstance(shown, list) else [{"distill": shown if "losses" in shown else {}}]
    above = shown if isinstance(shown, dict) and "losses" not in shown else {}
    assert parsed(SHORTEST | {"stages": stages} | above, "docs/distillation.md").stages


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PIPELINES if p.stem not in WITHOUT_SMOKE], ids=lambda path: path.stem)
def test_smoke_run_through_the_command_line(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    preparation = python_in(path.read_text())
    exec(compile(preparation, str(path), "exec"), {})
    done(tmp_path, "run", str(path), "--smoke", "--out", "out")
    report = json.loads((out / "report.json").read_text())
    assert (report["name"], report["verdict"]) == (path.stem, "untrained")
    assert any("smoke run" in warning for warning in report["warnings"])
    assert not (preparation and any("made-up" in warning for warning in report["warnings"]))
    last = report["rows"][-1]
    assert last["int8"]
    if "prune:" in path.read_text():
        assert last["macs"] < report["rows"][1]["macs"]
    assert (out / last["onnx"]).exists()


def test_show_plans_data_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "pipelines" / "cifar100.yaml"
    planned = plan(pipeline := read(file))
    steps = {step.net: step for step in planned.steps}
    assert (steps["teacher"].params, steps["teacher"].macs) == (23_705_252, 1_298_014_208)
    assert (steps["baseline"].params, steps["baseline"].macs) == (812_836, 6_523_648)
    assert steps["prune"].macs <= 0.7 * 6_523_648
    assert planned.seconds is not None
    assert planned.seconds > 3600
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(tree(planned, pipeline, parse_yaml(file)))
    assert "45,000 training images of 3×32×32, 100 classes" in console.export_text()
    assert "the data are missing" in planned.remarks[0]
