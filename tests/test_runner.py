"""Whole runs of a tiny pipeline: what they leave behind, how they are taken up again, and how they are judged."""

import csv
import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from filelock import FileLock
from hurry import Graphs
from safetensors.torch import save_file
from tiny import Tiny, raw_pipeline, tiny_pipeline

from compress import net as nets
from compress.errors import BusyError, ConfigError, ModelError, ResourceError
from compress.files.durable import lines
from compress.pipeline import parse_yaml, parsed
from compress.row import Control, Latency
from compress.running import kept
from compress.running.conclusion import Conclusion, Outcome
from compress.running.runner import run

STAGES = ["teacher", "baseline", "distill", "prune", "quantize"]
ROW_KEYS = {
    "net", "stage", "top1", "top1_low", "top1_high", "top5", "top1_onnx", "agreement", "samples", "params", "macs",
    "flops", "bytes", "latency_ms", "throughput", "seconds", "onnx", "int8",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("graphs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(tiny_pipeline(), tmp_path_factory.mktemp("runs") / "whole", command="compress run tiny.yaml")


@pytest.fixture(scope="module")
def first_bytes(whole: Outcome) -> dict[str, str]:
    """The hashes of all weights and files as the first run left them."""
    return hashes(whole.folder)


def events(folder: Path, kind: str) -> list[Any]:
    """The stages that events of a kind in the folder's last run are about."""
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    start = max(i for i, event in enumerate(found) if event["event"] == "started")
    return [event.get("stage") for event in found[start:] if event["event"] == kind]


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.onnx"), *folder.rglob("*.safetensors")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def untrained(**changes: Any) -> Any:
    training = {"epochs": 0}
    stages = [{"prune": {"keep_macs": 0.6, "training": training}}, {"quantize": {"training": training}}]
    return tiny_pipeline(**{"teacher": None, "stages": stages} | changes)


@pytest.mark.usefixtures("first_bytes")
def test_report_has_the_public_fields(whole: Outcome) -> None:
    report = json.loads((whole.folder / "report.json").read_text())
    assert {"name", "verdict", "budget", "rows", "alternatives", "baseline", "teacher", "environment"} <= set(report)
    assert [row["net"] for row in report["rows"]] == STAGES
    assert all(set(row) == ROW_KEYS for row in (*report["rows"], *report["alternatives"]))
    assert [row["int8"] for row in report["rows"]] == [False, False, False, False, True]
    assert (report["baseline"], report["teacher"]) == ("baseline", "teacher")
    machine = {"cpu", "flags", "threads", "gpu", "python", "packages", "commit"}
    assert machine | {"seed", "pipeline_hash", "data_fingerprint"} <= set(report["environment"])


def test_every_file_of_the_contract_is_there(whole: Outcome) -> None:
    folder = whole.folder
    for name in ("report.html", "report.md", "report.json", "pipeline.yaml", "test.npz", "events.jsonl"):
        assert (folder / name).stat().st_size > 0
    assert sorted(p.name for p in (folder / "models").glob("*.onnx")) == [
        "baseline.onnx", "distill.onnx", "prune.onnx", "quantize.int8.onnx", "teacher.onnx",
    ]  # fmt: skip
    assert [p.name for p in (folder / "models" / "alternatives").iterdir()] == ["quantize-ptq.int8.onnx"]
    stages = sorted(p.name.rsplit("-", 1)[0] for p in (folder / "stages").iterdir())
    assert stages == ["0-distill", "1-prune", "2-quantize", "baseline", "teacher"]
    for stage in (folder / "stages").iterdir():
        assert {"net.json", "weights.safetensors", "train.jsonl"} <= {p.name for p in stage.iterdir()}


def test_figures_can_be_recomputed_from_the_files(whole: Outcome) -> None:
    test = np.load(whole.folder / "test.npz")
    for row in (*whole.report.rows, *whole.report.alternatives):
        path = whole.folder / row.onnx
        session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        ours = session.run(None, {"input": test["inputs"]})[0].argmax(1)
        with (whole.folder / "predictions" / f"{row.net}.csv").open() as file:
            table = np.array([[int(value) for value in line] for line in list(csv.reader(file))[1:]])
        assert (table[:, 1] == test["labels"]).all()
        assert (table[:, 3] == ours).all()
        assert row.top1_onnx == pytest.approx(100 * (table[:, 3] == table[:, 1]).mean())
        assert row.top1 == pytest.approx(100 * (table[:, 2] == table[:, 1]).mean())
        assert row.agreement == pytest.approx(100 * (table[:, 3] == table[:, 2]).mean())
        assert (row.samples, row.bytes, row.flops) == (len(table), path.stat().st_size, 2 * row.macs)


def test_pruned_and_quantized_rows_are_smaller(whole: Outcome) -> None:
    baseline, _, pruned, quantized = whole.report.rows[1:]
    assert 0.98 * 0.6 * baseline.macs <= pruned.macs <= 0.6 * baseline.macs
    assert quantized.macs == pruned.macs
    assert quantized.bytes < pruned.bytes < baseline.bytes


def test_the_resolved_pipeline_runs_again_as_it_is(whole: Outcome) -> None:
    again = parsed(parse_yaml(whole.folder / "pipeline.yaml"), "pipeline.yaml")
    assert again == tiny_pipeline()


def test_baseline_trains_for_the_epochs_of_all_stages(whole: Outcome) -> None:
    curves = {curve.stage: len(curve.records) for curve in whole.report.curves}
    assert curves == {"teacher": 2, "baseline": 6, "distill": 2, "prune": 2, "quantize": 2}


def test_onnx_files_carry_their_metadata_and_no_notes(whole: Outcome) -> None:
    model = onnx.load(whole.folder / "models" / "quantize.int8.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == ["0", "1", "2", "3"]
    assert {"mean", "std", "input_range", "scheme", "compress_version", "resize"} <= set(metadata)
    text = str(model.graph.node) + str(metadata)
    assert str(Path.cwd()) not in text
    assert "stack_trace" not in text


def test_second_run_trains_nothing_and_changes_nothing(whole: Outcome) -> None:
    before = hashes(whole.folder)
    again = run(tiny_pipeline(), whole.folder)
    assert events(whole.folder, "unchanged") == STAGES
    assert events(whole.folder, "stage") == []
    assert events(whole.folder, "preflight") == []
    assert hashes(whole.folder) == before
    assert [row.top1_onnx for row in again.report.rows] == [row.top1_onnx for row in whole.report.rows]
    assert [row.seconds for row in again.report.rows] == [row.seconds for row in whole.report.rows]


def test_two_runs_from_scratch_give_the_same_bytes(first_bytes: dict[str, str], graphs: Graphs, tmp_path: Path) -> None:
    graphs.clear()
    run(tiny_pipeline(), tmp_path)
    assert hashes(tmp_path) == first_bytes


def test_another_seed_gives_other_weights(whole: Outcome, tmp_path: Path) -> None:
    other = run(untrained(seed=1), tmp_path)
    assert set(hashes(other.folder).values()).isdisjoint(hashes(whole.folder).values())


def test_a_changed_stage_reruns_with_all_after_it_and_nothing_before(whole: Outcome, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole.folder, folder)
    stages = raw_pipeline()["stages"]
    stages[1] = {"prune": stages[1]["prune"] | {"keep_macs": 0.7}}
    run(tiny_pipeline(stages=stages, baseline={"training": baseline_as_it_is()}), folder)
    assert events(folder, "unchanged") == ["teacher", "baseline", "distill"]
    assert events(folder, "stage") == ["prune", "quantize"]
    (changed,) = [event for line in lines(folder / "events.jsonl") if (event := json.loads(line))["event"] == "changed"]
    assert changed["fields"] == ["stages.1.prune.keep_macs: 0.6 → 0.7"]
    assert (changed["rerun"], changed["kept"]) == (["1-prune", "2-quantize"], ["teacher", "baseline", "0-distill"])
    run(tiny_pipeline(), folder)
    assert events(folder, "stage") == []  # the first results were kept


def baseline_as_it_is() -> Any:
    training = tiny_pipeline().baseline.training
    assert training is not None
    return training.model_dump(mode="json")


@pytest.mark.parametrize(
    ("start_from", "redone"),
    [
        ("quantize", ["quantize"]),
        ("1-prune", ["prune", "quantize"]),
        ("baseline", ["baseline"]),
        ("teacher", ["teacher", "distill", "prune", "quantize"]),
    ],
)
def test_from_redoes_a_stage_and_what_depends_on_it(whole: Outcome, start_from: str, redone: list[str]) -> None:
    before = hashes(whole.folder)
    run(tiny_pipeline(), whole.folder, start_from=start_from)
    assert events(whole.folder, "stage") == redone
    assert hashes(whole.folder) == before


def test_from_an_unknown_stage_names_the_nearest(whole: Outcome) -> None:
    with pytest.raises(ConfigError, match=r"--from prun: no such stage.*Did you mean 'prune'"):
        run(tiny_pipeline(), whole.folder, start_from="prun")


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(first_bytes: dict[str, str], tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["stage"] == "distill":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_pipeline(), tmp_path, emit=interrupt)
    assert sorted(p.name.rsplit("-", 1)[0] for p in (tmp_path / "stages").iterdir()) == ["baseline", "teacher"]
    run(tiny_pipeline(), tmp_path)
    assert events(tmp_path, "unchanged") == ["teacher", "baseline"]
    assert hashes(tmp_path) == first_bytes


def test_a_damaged_stage_is_found_out_and_run_again(whole: Outcome) -> None:
    before = hashes(whole.folder)
    (folder,) = (whole.folder / "stages").glob("2-quantize-*")
    (folder / "weights.safetensors").write_bytes(b"damaged")
    again = run(tiny_pipeline(), whole.folder)
    assert events(whole.folder, "stage") == ["quantize"]
    assert any("is damaged" in warning for warning in again.report.warnings)
    assert hashes(whole.folder) == before


def test_a_changed_onnx_file_is_written_again(whole: Outcome) -> None:
    before = hashes(whole.folder)
    (whole.folder / "models" / "baseline.onnx").write_bytes(b"changed")
    run(tiny_pipeline(), whole.folder)
    assert hashes(whole.folder) == before


def test_kept_nets_rebuild_with_identical_outputs(whole: Outcome) -> None:
    for folder in (whole.folder / "stages").iterdir():
        first, second = kept.load(folder), nets.load(folder)
        assert first is not None
        x = torch.randn(3, *second.spec.image, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(first.net.module.eval()(x), second.module.eval()(x))


def test_a_missed_budget_is_exit_code_5_with_everything_written(whole: Outcome) -> None:
    outcome = run(tiny_pipeline(budget={"max_bytes": 10, "max_macs_ratio": 0.9}), whole.folder)
    assert (outcome.exit_code, outcome.report.verdict) == (5, "fail")
    kept_limits = {limit.limit: limit.ok for limit in outcome.report.budget}
    assert kept_limits == {"max_bytes": False, "max_macs_ratio": True}
    assert json.loads((whole.folder / "report.json").read_text())["verdict"] == "fail"


def test_a_file_that_disagrees_with_its_net_is_exit_code_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.running.proof import Prover

    honest = Prover.file_logits
    monkeypatch.setattr(Prover, "file_logits", lambda self, path: np.roll(honest(self, path), 1, axis=1))
    stages = [{"quantize": {"training": {"epochs": 1, "batch_size": 16}}}]
    outcome = run(tiny_pipeline(teacher=None, stages=stages), tmp_path)
    assert (outcome.exit_code, outcome.report.verdict) == (4, "fail")
    assert "do not ship this file" in str(outcome.failure)
    assert (tmp_path / "report.html").exists()


def test_files_of_an_earlier_pipeline_do_not_stay(tmp_path: Path) -> None:
    run(untrained(), tmp_path)
    assert (tmp_path / "models" / "quantize.int8.onnx").exists()
    run(untrained(stages=[{"prune": {"keep_macs": 0.6, "training": {"epochs": 0}}}]), tmp_path)
    assert sorted(p.name for p in (tmp_path / "models").rglob("*.onnx")) == ["baseline.onnx", "prune.onnx"]
    assert sorted(p.stem for p in (tmp_path / "predictions").iterdir()) == ["baseline", "prune"]


def test_nothing_trained_is_untrained_and_exit_code_0(tmp_path: Path) -> None:
    outcome = run(untrained(budget={"max_bytes": 10}), tmp_path)
    assert (outcome.exit_code, outcome.report.verdict) == (0, "untrained")
    assert [row.net for row in outcome.report.rows] == ["baseline", "prune", "quantize"]
    assert outcome.report.alternatives == ()
    assert outcome.report.teacher is None


def test_a_net_at_chance_is_a_failed_verdict(tmp_path: Path) -> None:
    training = {"epochs": 1, "batch_size": 16, "lr": 1e-9}
    stages = [{"quantize": {"training": training}}]
    outcome = run(tiny_pipeline(teacher=None, stages=stages, baseline={"training": training}), tmp_path)
    assert (outcome.exit_code, outcome.report.verdict) == (5, "fail")
    assert any("no better than guessing" in warning for warning in outcome.report.warnings)


def test_first_stage_other_than_distill_starts_from_the_baseline(tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 16, "lr": 0.01}
    stages = [{"quantize": {"method": "ptq"}}]
    outcome = run(tiny_pipeline(teacher=None, stages=stages, baseline={"training": training}), tmp_path)
    baseline, result = outcome.report.rows
    assert abs(baseline.top1 - result.top1) < 5
    assert outcome.report.alternatives == ()


def test_a_teacher_that_is_no_better_is_said(tmp_path: Path) -> None:
    teacher = {"model": "tiny", "training": {"epochs": 0}}
    outcome = run(tiny_pipeline(teacher=teacher, stages=raw_pipeline()["stages"][:1]), tmp_path)
    assert any("no better than the baseline" in warning for warning in outcome.report.warnings)


def test_a_student_with_weights_is_its_own_baseline_and_a_replaced_head_is_said(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # one draw in a hundred is better than chance
        given = Tiny()(7, (3, 16, 16))
    save_file(given.state_dict(), tmp_path / "given.safetensors")
    student = {"tiny": {"weights": str(tmp_path / "given.safetensors")}}
    stages = [{"quantize": {"method": "ptq"}}]
    outcome = run(tiny_pipeline(teacher=None, student=student, stages=stages), tmp_path / "run")
    assert outcome.report.curves == ()
    assert outcome.report.verdict == "fail"  # weights were given, so a net at chance is judged
    assert any("7 classes became 4" in warning for warning in outcome.report.warnings)
    loaded = nets.load(next((tmp_path / "run" / "stages").glob("baseline-*"))).module
    assert torch.equal(loaded.stem[0].weight, given.stem[0].weight)  # type: ignore[index,union-attr]
    student["tiny"]["keep_head"] = True  # type: ignore[assignment]
    strict = tiny_pipeline(teacher=None, student=student, stages=stages)
    with pytest.raises(ModelError, match="keep_head"):
        run(strict, tmp_path / "strict")


def test_few_calibration_images_are_a_warning(tmp_path: Path) -> None:
    data = {"synthetic": {"size": 16, "classes": 4, "samples": 40}}
    outcome = run(untrained(data=data), tmp_path)
    assert any("come from 40 images only" in warning for warning in outcome.report.warnings)


@pytest.mark.parametrize(("chance", "said_of_it"), [(0.0, ""), (0.3, ", which is within the noise of 30 %")])
def test_an_int8_file_that_is_not_faster_is_said_with_the_cause(
    whole: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chance: float, said_of_it: str
) -> None:
    def timed(self: Conclusion, proofs: Any, again: str) -> tuple[dict[str, Latency], tuple[()], Control]:
        found = {name: Latency(*3 * [3.0 if "quantize" in name else 2.4]) for name in proofs}
        return found, (), Control(again, 1.0, chance)

    monkeypatch.setattr(Conclusion, "timed", timed)
    folder = Path(shutil.copytree(whole.folder, tmp_path / "slow"))
    (said,) = (text for text in run(tiny_pipeline(), folder).report.warnings if "not faster" in text)
    assert said.startswith(
        f"models/quantize.int8.onnx is not faster than models/prune.onnx here, 0.80 times its speed{said_of_it}. "
        "Likely causes: "
    )


def test_two_stages_of_a_kind_get_names_of_their_own(tmp_path: Path) -> None:
    training = {"epochs": 0}
    stages = [{"prune": {"keep_macs": keep, "training": training}} for keep in (0.7, 0.5)]
    outcome = run(untrained(stages=stages), tmp_path)
    assert [row.net for row in outcome.report.rows] == ["baseline", "prune", "prune-2"]
    dense, _, twice = outcome.report.rows
    assert 0.98 * 0.5 <= twice.macs / dense.macs <= 0.5


def test_raw_pixels_in_give_the_same_accuracy(whole: Outcome, tmp_path: Path) -> None:
    outcome = run(untrained(export={"input": "uint8_nhwc"}), tmp_path / "raw")
    plain = run(untrained(), tmp_path / "plain")
    fed = np.load(tmp_path / "raw" / "test.npz")["inputs"]
    assert (fed.dtype, fed.shape[1:]) == (np.uint8, (16, 16, 3))
    for raw, float_in in zip(outcome.report.rows, plain.report.rows, strict=True):
        assert raw.top1_onnx == pytest.approx(float_in.top1_onnx, abs=2)


def _hold(path: str, ready: Any, done: Any) -> None:
    with FileLock(path):
        ready.set()
        done.wait(30)


def test_a_folder_in_use_is_busy(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / ".lock"), ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(BusyError, match="another run uses"):
            run(untrained(), tmp_path)
    finally:
        done.set()
        holder.join()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ResourceError, match="is a file, and a run needs a folder"):
        run(untrained(), tmp_path / "taken")


def test_what_cannot_be_exported_fails_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.errors import ExportError
    from compress.export.onnx import Exporter

    def refuse(self: Any, net: Any, metadata: Any) -> Any:
        raise ExportError("no")

    monkeypatch.setattr(Exporter, "__call__", refuse)
    with pytest.raises(ExportError):
        run(tiny_pipeline(), tmp_path)
    assert not (tmp_path / "stages").exists()
