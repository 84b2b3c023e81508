"""Every pipeline that ships: it is accepted, opens with what one wants to know, and runs with --smoke."""

import json
from pathlib import Path

import pytest
from commandline import done

from compress.pipeline import read
from compress.plan import plan, render

ROOT = Path(__file__).parent.parent
PIPELINES = sorted((ROOT / "pipelines").rglob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_header_and_row(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert read(path).name == path.stem
    assert f"({path.name})" in (ROOT / "pipelines" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PIPELINES if p.stem != "mobilenet"], ids=lambda path: path.stem)
def test_smoke_run_through_the_command_line(path: Path, tmp_path: Path) -> None:
    """(The README's test smokes mobilenet.yaml.)"""
    done(tmp_path, "run", str(path), "--smoke", "--out", "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"] == "untrained"
    assert any("smoke run" in warning for warning in report["warnings"])
    last = report["rows"][-1]
    assert last["int8"]
    if "prune:" in path.read_text():
        assert last["macs"] < report["rows"][1]["macs"]
    assert (tmp_path / "out" / last["onnx"]).exists()


def test_show_plans_data_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan(read(ROOT / "pipelines" / "cifar100.yaml"))
    steps = {step.net: step for step in planned.steps}
    assert (steps["teacher"].params, steps["teacher"].macs) == (23_705_252, 1_298_014_208)
    assert (steps["baseline"].params, steps["baseline"].macs) == (812_836, 6_523_648)
    assert steps["prune"].macs <= 0.7 * 6_523_648
    assert planned.seconds is not None
    assert planned.seconds > 3600
    text = render(planned)
    assert "45,000 training images of 3×32×32, 100 classes" in text
    assert "the data are missing" in text
