"""A mistyped name gets the nearest one that there is: verbs, options, every kind of name and key, files, folders."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from commandline import as_it_was

from compress import cli
from compress.spelling import nearest, nearest_file

BRIEF: dict[str, Any] = {
    "data": {"synthetic": {"size": 16, "classes": 4, "samples": 32}},
    "student": "tiny",
    "stages": [{"prune": {"keep_macs": 0.6}}, "quantize"],
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """What the command line says when it refuses; there is a pipeline p.yaml, a run folder, and more, to be missed."""
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(yaml.safe_dump(BRIEF))
    Path("photos/cat").mkdir(parents=True)
    Path("reports/mobilenet").mkdir(parents=True)
    Path("student.onnx").touch()
    Path("mine.py").touch()
    torch.save(tiny.Tiny()(4, (3, 16, 16)).state_dict(), "student.pth")

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compress", *words])
        with as_it_was(), pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code not in (0, 1)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.err

    return call


WORDS = [
    (["rn", "p.yaml"], "run"),
    (["validat", "p.yaml"], "validate"),
    (["run", "p.yaml", "--smoek"], "--smoke"),
    (["run", "p.yaml", "--tensorbord"], "--tensorboard"),
    (["benchmark", "student.onnx", "--thread", "2"], "--threads"),
    (["run", "p.yaml", "--device", "cud"], "'cuda'"),
    (["ls", "modls"], "'models'"),
    (["validate", "p.yml"], "'p.yaml'"),
    (["validate", "p.yaml", "--set", "stages.prun.keep_macs=0.5"], "'prune'"),
    (["validate", "p.yaml", "--set", "stages.prune.keep_mac=0.5"], "'keep_macs'"),
    (["validate", "p.yaml", "--set", "benchmrk.rounds=2"], "'benchmark'"),
    (["validate", "p.yaml", "--plugin", "mien.py"], "'mine.py'"),
    (["report", "reports/mobilnet"], "'reports/mobilenet'"),
    (["report", "report/mobilenet"], "'reports'"),
    (["compare", "reports/mobilnet"], "'reports/mobilenet'"),
    (["benchmark", "studnet.onnx"], "'student.onnx'"),
    (["verify", "studnet.onnx"], "'student.onnx'"),
    (["verify", "student.onnx", "--target", "tensort"], "'tensorrt'"),
    (["init", "x", "--data", "photo"], "'photos'"),
    (["init", "x", "--target", "tensort"], "'tensorrt'"),
    (["init", "x", "--limit", "max_byte=1"], "'max_bytes'"),
]


@pytest.mark.parametrize(("words", "near"), WORDS, ids=[" ".join(words) for words, _ in WORDS])
def test_on_the_command_line(words: list[str], near: str, refused: Callable[..., str]) -> None:
    said = refused(*words)
    assert near in said
    assert "Did you mean" in said or "Possible options" in said


PIPELINES: list[tuple[dict[str, Any], str]] = [
    ({"stagse": []}, "'stages'"),
    ({"data": "digts"}, "'digits'"),
    ({"data": {"synthetic": {"sise": 16}}}, "'size'"),
    ({"data": {"synthetic": {"size": 16, "resize": "squish"}}}, "'squash'"),
    ({"student": "mobilnet_v2"}, "'mobilenet_v2'"),
    ({"student": {"mobilenet_v2": {"widht": 1}}}, "'width'"),
    ({"student": {"mobilenet_v2": {"weights": "IMAGENET1K_V3"}}}, "'IMAGENET1K_V2'"),
    ({"student": {"tiny": {"weights": "studnet.pth"}}}, "'student.pth'"),
    ({"teacher": "resnet5"}, "'resnet50'"),
    ({"teacher": {"model": "tiny", "trainig": {}}}, "'training'"),
    ({"teacher": {"model": "tiny", "view": {"siez": 8}}}, "'size'"),
    ({"baseline": {"trainig": {}}}, "'training'"),
    ({"stages": ["distil"]}, "'distill'"),
    ({"stages": [{"prune": {"keep_mac": 0.5}}]}, "'keep_macs'"),
    ({"stages": [{"prune": {"importance": "tailor"}}]}, "'taylor'"),
    ({"stages": [{"prune": {"allocation": "unifrom"}}]}, "'uniform'"),
    ({"stages": [{"prune": {"schedule": "cubik"}}]}, "'cubic'"),
    ({"stages": [{"prune": {"include": ["sten.*"]}}]}, "stem.0"),
    ({"stages": [{"train": {"losses": ["cros_entropy"]}}]}, "'cross_entropy'"),
    ({"teacher": "tiny", "stages": [{"distill": {"losses": [{"kd": {"temprature": 4}}]}}]}, "'temperature'"),
    ({"stages": [{"train": {"training": {"epoch": 3}}}]}, "'epochs'"),
    ({"stages": [{"train": {"training": {"optimizer": "adam"}}}]}, "'adamw'"),
    ({"stages": [{"train": {"training": {"schedule": "cosin"}}}]}, "'cosine'"),
    ({"stages": [{"train": {"training": {"augment": "shift_flp"}}}]}, "'shift_flip'"),
    ({"stages": [{"quantize": {"method": "qta"}}]}, "'qat'"),
    ({"stages": [{"quantize": {"weights": "int"}}]}, "'int8'"),
    ({"stages": [{"quantize": {"ranges": "percentil"}}]}, "'percentile'"),
    ({"stages": [{"quantize": {"float_layers": ["hed"]}}]}, "'head'"),
    ({"export": {"target": "onnxrutime"}}, "'onnxruntime'"),
    ({"export": {"opse": 18}}, "'opset'"),
    ({"export": {"input": "uint8_nwhc"}}, "'uint8_nhwc'"),
    ({"benchmark": {"round": 3}}, "'rounds'"),
    ({"budget": {"max_byte": 3}}, "'max_bytes'"),
    ({"robustness": {"corruption": []}}, "'corruptions'"),
    ({"unlabelled": {"paht": "x"}}, "'path'"),
]


@pytest.mark.parametrize(("changes", "near"), PIPELINES, ids=[str(changes) for changes, _ in PIPELINES])
def test_in_a_pipeline_file(changes: dict[str, Any], near: str, refused: Callable[..., str]) -> None:
    Path("p.yaml").write_text(yaml.safe_dump(BRIEF | changes))
    assert near in refused("validate", "p.yaml")


@pytest.mark.parametrize(("stage", "near"), [("quantise", "'quantize'"), ("baselin", "'baseline'")])
def test_a_stage_to_start_from(stage: str, near: str, refused: Callable[..., str]) -> None:
    assert f"no such stage in this pipeline. Did you mean {near}?" in refused(
        "run", "p.yaml", "--smoke", "--from", stage
    )


def test_a_folder_of_images(refused: Callable[..., str]) -> None:
    Path("p.yaml").write_text(yaml.safe_dump(BRIEF | {"data": {"image_folder": {"path": "photo", "size": 16}}}))
    assert "there is no folder photo; " in (said := refused("run", "p.yaml"))
    assert "Did you mean 'photos'?" in said


def test_what_is_near_nothing_gets_no_suggestion(tmp_path: Path) -> None:
    assert nearest("zebra", ("kd", "l2")) == ""
    assert nearest("kdd", ("kd", "l2")) == " Did you mean 'kd'?"
    (tmp_path / "a.yaml").touch()
    (tmp_path / "second.txt").touch()
    assert nearest_file(tmp_path / "a.yml", (".yaml",)) == f" Did you mean {str(tmp_path / 'a.yaml')!r}?"
    assert nearest_file(tmp_path / "b.yaml", (".yaml",)) == ""  # of all it has but an ending in common
    assert nearest_file(tmp_path / "secnd.yaml", (".yaml",)) == ""
    assert nearest_file(tmp_path / "quite_another.yaml", (".yaml",)) == ""
    assert nearest_file(tmp_path / "no" / "such" / "a.yaml", (".yaml",)) == ""
    assert nearest_file("nul\0name") == ""
