"""`--seeds N`: one run as without it, further ones beside it from other weights, and what they come to together."""

import csv
import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import yaml
from commandline import as_it_was
from safetensors.torch import save_file
from tiny import Tiny, raw_pipeline, tiny_pipeline

from compress import cli
from compress import net as nets
from compress.errors import ConfigError
from compress.measure.accuracy import Accuracy
from compress.report import OverSeeds, read, wording, write
from compress.running.conclusion import Outcome
from compress.running.kept import Finished, load
from compress.running.proof import Proof
from compress.running.repeats import Repeated, said, spread
from compress.running.runner import run

TRAINING = {"epochs": 1, "batch_size": 16, "lr": 0.01}
BRIEF: dict[str, Any] = {
    "teacher": {"model": {"tiny": {"width": 40}}, "training": TRAINING},
    "stages": [{"distill": {"training": TRAINING}}, {"quantize": {"method": "ptq"}}],
}
MADE = ["baseline", "distill", "quantize"]
UNTRAINED = {"epochs": 0}


def brief(**changes: Any) -> Any:
    return tiny_pipeline(**BRIEF | changes)


pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run without --seeds."""
    return run(brief(), tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same with three seeds, from scratch."""
    return run(brief(), tmp_path_factory.mktemp("several") / "run", seeds=3)


@pytest.fixture
def copy(several: Outcome, tmp_path: Path) -> Path:
    """The finished run, to be spoilt."""
    return Path(shutil.copytree(several.folder, tmp_path / "copy"))


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.onnx"), *folder.rglob("*.safetensors"), *folder.rglob("*.csv")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def made(folder: Path) -> list[str]:
    """What the last run in a folder made and did not take over."""
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    start = max(i for i, event in enumerate(found) if event["event"] == "started")
    return [event["stage"] for event in found[start:] if event["event"] == "stage"]


def labels(folder: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in (folder / "stages").iterdir())


def test_the_first_seed_is_the_run_without_seeds_to_the_byte(plain: Outcome, several: Outcome) -> None:
    alone, together = hashes(plain.folder), hashes(several.folder)
    assert {name: together.get(name) for name in alone} == alone
    assert {"-seed-" in name or "/seeds/" in name for name in together.keys() - alone.keys()} == {True}
    rows = zip(several.report.rows, plain.report.rows, strict=True)
    assert all((ours.top1_onnx, ours.bytes) == (theirs.top1_onnx, theirs.bytes) for ours, theirs in rows)
    assert several.report.verdict == plain.report.verdict
    assert several.exit_code == plain.exit_code


def test_every_seed_makes_everything_but_the_teacher(several: Outcome) -> None:
    again = [f"{net}-seed-{k}" for k in (1, 2) for net in MADE]
    assert made(several.folder) == ["teacher", *MADE, *again]
    own = ["0-distill", "1-quantize", "baseline"]
    assert labels(several.folder) == sorted(["teacher", *own, *(f"{name}-seed-{k}" for k in (1, 2) for name in own)])
    seeds = [json.loads(line) for line in (several.folder / "events.jsonl").read_text().splitlines()]
    assert [(e["seed"], e["of"]) for e in seeds if e["event"] == "seed"] == [(0, 3), (1, 3), (2, 3)]


def test_the_nets_of_two_seeds_share_nothing(several: Outcome) -> None:
    for name in ("baseline", "0-distill", "1-quantize"):
        folders = [path for path in (several.folder / "stages").iterdir() if path.name.startswith(f"{name}-")]
        weights = [nets.load(folder).module.state_dict() for folder in folders]
        assert len(weights) == 3
        first = next(key for key, value in weights[0].items() if value.ndim == 4)
        assert not any(
            torch.equal(a[first], b[first]) for a, b in zip(weights, [*weights[1:], weights[0]], strict=True)
        )


def test_files_and_predictions_of_every_seed_are_there_and_nothing_more(several: Outcome) -> None:
    folder = several.folder
    wanted = [f"{net}-{k}" for net in MADE for k in (1, 2)]
    assert sorted(p.stem for p in (folder / "predictions" / "seeds").iterdir()) == wanted
    files = [f"{name}.int8.onnx" if name.startswith("quantize") else f"{name}.onnx" for name in wanted]
    assert sorted(p.name for p in (folder / "models" / "seeds").iterdir()) == files
    assert {row.net for row in several.report.rows} == {"teacher", *MADE}  # no rows of their own


def test_figures_are_those_of_the_files_by_numpy(several: Outcome) -> None:
    test = np.load(several.folder / "test.npz")
    lines = json.loads((several.folder / "report.json").read_text())["seeds"]
    assert [line["net"] for line in lines] == MADE
    measured = {}
    for line in lines:
        right = []
        for path in line["onnx"]:
            session = ort.InferenceSession((several.folder / path).read_bytes(), providers=["CPUExecutionProvider"])
            right.append(session.run(None, {"input": test["inputs"]})[0].argmax(1) == test["labels"])
        values = measured[line["net"]] = 100 * np.array(right).mean(1)
        assert line["values"] == pytest.approx(values.tolist())
        assert line["mean"] == pytest.approx(values.mean())
        assert line["std"] == pytest.approx(np.std(values, ddof=1))
        assert line["standard_error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert (lines[0]["gain"], lines[0]["gain_standard_error"]) == (None, None)
    for line in lines[1:]:
        paired = measured[line["net"]] - measured["baseline"]
        assert line["gain"] == pytest.approx(paired.mean(), abs=1e-9)
        assert line["gain_standard_error"] == pytest.approx(np.std(paired, ddof=1) / np.sqrt(3), abs=1e-9)
    rows = {row.net: row for row in several.report.rows}
    assert all(
        (line["values"][0], line["onnx"][0]) == (rows[line["net"]].top1_onnx, rows[line["net"]].onnx) for line in lines
    )


def test_predictions_of_a_further_seed_are_its_files(several: Outcome) -> None:
    line = several.report.seeds[-1]
    with (several.folder / "predictions" / "seeds" / "quantize-2.csv").open() as file:
        table = np.array([[int(value) for value in row] for row in list(csv.reader(file))[1:]])
    assert line.onnx[2] == "models/seeds/quantize-2.int8.onnx"
    assert line.values[2] == pytest.approx(100 * (table[:, 3] == table[:, 1]).mean())


def test_a_second_run_makes_nothing_and_changes_nothing(several: Outcome, copy: Path) -> None:
    before = hashes(copy)
    again = run(brief(), copy, seeds=3)
    assert made(copy) == []
    assert hashes(copy) == before
    assert again.report.seeds == several.report.seeds


def test_only_what_is_gone_is_made_again(several: Outcome, copy: Path) -> None:
    before = hashes(copy)
    (gone,) = (copy / "stages").glob("0-distill-seed-1-*")
    shutil.rmtree(gone)
    again = run(brief(), copy, seeds=3)
    assert made(copy) == ["distill-seed-1"]
    assert hashes(copy) == before
    assert again.report.seeds == several.report.seeds


def test_an_interrupted_seed_goes_on_from_a_run_without_seeds(plain: Outcome, several: Outcome, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain.folder, tmp_path / "run"))

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["stage"] == "distill-seed-1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(brief(), folder, seeds=2, emit=interrupt)
    assert made(folder) == ["baseline-seed-1", "distill-seed-1"]
    run(brief(), folder, seeds=2)
    assert made(folder) == ["distill-seed-1", "quantize-seed-1"]
    after, wanted = hashes(folder), hashes(several.folder)
    assert after == {name: wanted[name] for name in after}


def test_from_the_teacher_redoes_what_every_seed_learnt_of_it(copy: Path) -> None:
    before = hashes(copy)
    run(brief(), copy, seeds=2, start_from="teacher")
    assert made(copy) == ["teacher", "distill", "quantize", "distill-seed-1", "quantize-seed-1"]
    after = hashes(copy)
    assert {name: before[name] for name in after} == after


def test_fewer_seeds_later_leave_no_stale_file(plain: Outcome, copy: Path) -> None:
    outcome = run(brief(), copy)
    assert (made(copy), outcome.report.seeds) == ([], ())
    models = {path for path in hashes(copy) if path.startswith(("models", "predictions"))}
    assert models == {path for path in hashes(plain.folder) if path.startswith(("models", "predictions"))}
    assert "Over several seeds" not in (copy / "report.md").read_text()


def test_a_student_that_is_not_distilled_first_starts_from_its_own_baseline(tmp_path: Path) -> None:
    stages = [{"prune": {"keep_macs": 0.6, "training": UNTRAINED}}]
    pipeline = brief(teacher=None, stages=stages, baseline={"training": UNTRAINED})
    outcome = run(pipeline, tmp_path, seeds=2)
    assert made(tmp_path) == ["baseline", "prune", "baseline-seed-1", "prune-seed-1"]
    folders = sorted((tmp_path / "stages").glob("baseline-*"), key=lambda path: "-seed-" in path.name)
    first, second = map(load, folders)
    assert first is not None
    assert second is not None
    drawn = nets.build(first.net.spec, pipeline.seed).module.state_dict()
    assert torch.equal(first.net.module.state_dict()["head.weight"], drawn["head.weight"])
    assert not torch.equal(second.net.module.state_dict()["head.weight"], drawn["head.weight"])
    assert outcome.report.verdict == "untrained"
    assert wording.over_seeds(outcome.report) == (
        "Nothing was trained and no weights were given, so these accuracies mean nothing.",
    )


def test_weights_that_are_given_are_those_of_every_seed(tmp_path: Path) -> None:
    save_file(Tiny()(4, (3, 16, 16)).state_dict(), tmp_path / "given.safetensors")
    student = {"tiny": {"weights": str(tmp_path / "given.safetensors")}}
    outcome = run(brief(teacher=None, student=student, stages=BRIEF["stages"][1:]), tmp_path / "run", seeds=2)
    for line in outcome.report.seeds:
        assert line.values[0] == line.values[1]
        assert (line.std, line.standard_error) == (0, 0)


def test_spread_by_numpy() -> None:
    random = np.random.default_rng(0)
    values = {net: random.uniform(80, 99, 5) for net in ("baseline", "distill", "prune")}
    found = {each.net: each for each in spread({net: [("f", float(v)) for v in vs] for net, vs in values.items()})}
    for net, each in found.items():
        assert each.mean == pytest.approx(values[net].mean())
        assert each.std == pytest.approx(values[net].std(ddof=1))
        assert each.standard_error == pytest.approx(values[net].std(ddof=1) / 5**0.5)
    gains = values["prune"] - values["baseline"]
    assert found["prune"].gain == pytest.approx(gains.mean())
    assert found["prune"].gain_standard_error == pytest.approx(gains.std(ddof=1) / 5**0.5)


def told(gains: list[float]) -> OverSeeds:
    pairs = {
        "baseline": [("b", 90.0 + k) for k in range(3)],
        "distill": [("d", 90 + k + g) for k, g in enumerate(gains)],
    }
    return spread(pairs)[1]


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ([0.5, 1.0, 1.5], "Over 3 seeds distill is 1.00 ± 0.29 points above the baseline, better with 3 of 3."),
        ([-3.0, 1.0, -1.0], "Over 3 seeds distill is 1.00 ± 1.15 points below the baseline, better with 1 of 3."),
        ([-1.0, 0.0, 1.0], "Over 3 seeds distill is level with the baseline (0.00 ± 0.58 points), better with 1 of 3."),
    ],
)
def test_the_gain_in_words(several: Outcome, gains: list[float], sentence: str) -> None:
    baseline = spread({"baseline": [("b", 90.0 + k) for k in range(3)]})
    report = replace(several.report, verdict="pass", seeds=(*baseline, told(gains)))
    assert wording.over_seeds(report) == (sentence,)


def test_the_report_keeps_its_section_when_it_is_written_again(several: Outcome, tmp_path: Path) -> None:
    report = replace(several.report, verdict="pass", budget=())
    line = report.seeds[-1]
    mean, error = f"{np.mean(line.values):.2f}", f"{np.std(line.values, ddof=1) / 3**0.5:.2f}"
    write(report, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in ("report.html", "report.md", "report.json")}
    assert read(tmp_path) == replace(report, seeds=read(tmp_path).seeds, curves=read(tmp_path).curves)
    assert read(tmp_path).seeds == report.seeds
    write(read(tmp_path), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    for name in ("report.html", "report.md"):
        text = first[name].decode().replace("\u00a0", " ")
        assert "Over several seeds" in text
        assert f"{mean} ± {error}" in text
        assert wording.over_seeds(report)[0] in text
        assert (
            f"Judged is the first of 3 seeds ({line.values[0]:.2f} %); the mean of all is {mean} ± {error} %." in text
        )


def proof(agreement: float, warnings: tuple[str, ...]) -> Proof:
    accuracy = Accuracy(80.0, 70.0, 90.0, 80.0, 100.0, agreement, 100)
    return Proof("models/seeds/distill-1.onnx", "", accuracy, 1, 1, 1, False, warnings)


@pytest.mark.parametrize("judged", [True, False])
def test_what_only_a_further_seed_has_to_say_is_said(judged: bool, tmp_path: Path) -> None:
    net = nets.build(nets.Spec(architecture=Tiny(), classes=4, image=(3, 16, 16)), 0)
    first = Finished("distill", "0", tmp_path, net, 1.0, warnings=("few images",))
    second = Finished("distill-seed-1", "1", tmp_path, net, 1.0, warnings=("few images", "the rate was too high"))
    of_first = Repeated("distill", first, proof(100.0, ("old opset",)), (second,))
    found = [*said(of_first, second, proof(90.0, ("old opset", "saturates")), "seeds/distill-1", judged)]
    assert found[:2] == ["distill-seed-1: the rate was too high", "seeds/distill-1: saturates"]
    assert len(found) == (3 if judged else 2)
    if judged:
        assert "another class than the PyTorch net seeds/distill-1 for 10 of 100" in found[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Call `compress run` on a tiny pipeline; gives the exit code and both outputs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(raw_pipeline(**BRIEF)))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compress", "run", "p.yaml", *words])
        with as_it_was(), pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return call


def test_a_smoke_run_with_two_seeds(command: Any, tmp_path: Path) -> None:
    code, out, err = command("--smoke", "--seeds", "2", "--out", "out")
    assert code == 0
    assert "quantize-seed-1: finished" in err
    assert "no more than a trial (a smoke run)" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["command"] == "compress run p.yaml --smoke --seeds 2"
    assert [len(line["values"]) for line in report["seeds"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("0", "error: --seeds 0: should be 1 or more, as many times as the student is to be made"),
        ("-3", "error: --seeds -3: should be 1 or more"),
        ("two", "error: Invalid value for '--seeds'"),
    ],
)
def test_a_number_of_seeds_that_makes_no_sense(command: Any, tmp_path: Path, number: str, message: str) -> None:
    code, _, err = command("--seeds", number, "--out", "out")
    assert code == ConfigError.exit_code == 2
    assert message in err
    assert not (tmp_path / "out").exists()
