"""The distillation benchmarks, small: the peers are what they say, and the script for a big GPU runs without one."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny
from torch import nn

from compress.data import DATASETS
from compress.data.base import Data
from compress.losses import LOSSES, CrossEntropy
from compress.net import Spec, build
from compress.recipe import Training
from compress.stages import Distill
from compress.training.objective import Tutor
from compress.training.targets import compute
from compress.training.train import Progress, fit

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import distillation_accuracy as accuracy  # noqa: E402
import distillation_data  # noqa: E402
import distillation_gpu as gpu  # noqa: E402
import distillation_gpu_place as places  # noqa: E402
import distillation_gpu_pool as pool  # noqa: E402
import distillation_gpu_runs as runs  # noqa: E402
import distillation_gpu_table as table  # noqa: E402
import distillation_gpu_teacher as teachers  # noqa: E402
import distillation_recipes as recipes  # noqa: E402
import distillation_speed as speed  # noqa: E402
from distillation_forms import forms, shared_out  # noqa: E402
from distillation_peer import Peer  # noqa: E402
from distillation_plain import Pictures, PlainLoop, soft_loss  # noqa: E402

CPU = torch.device("cpu")
STEPS = 3


@pytest.fixture(scope="module")
def images() -> Data:
    """Sixteen colour images in four classes."""
    made: Data = DATASETS["synthetic"].model_validate({"size": 16, "classes": 4, "samples": 16})(0)  # type: ignore[attr-defined]
    return replace(made, mirror=True)


def tiny(seed: int, data: Data) -> nn.Module:
    module = build(Spec(architecture=Tiny(), classes=data.classes, image=data.image), seed).module
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


@pytest.mark.parametrize("taught", [False, True])
def test_the_plain_loop_and_the_engine_take_the_same_steps(images: Data, taught: bool) -> None:
    """On the same images, unchanged, all in one batch, three steps of either end in the same weights."""
    theirs, ours = tiny(0, images), tiny(0, images)
    teacher = tiny(1, images).eval()
    batch = len(images.train)
    loop = PlainLoop(
        theirs, teacher if taught else None, Pictures(images, changed=False), batch, lr=0.05, weight_decay=0
    )
    loop.steps(STEPS)
    training = Training(
        epochs=STEPS, batch_size=batch, optimizer="sgd", lr=0.05, weight_decay=0, schedule="constant", augment="none"
    )
    losses = Distill().losses if taught else (CrossEntropy(),)
    tutors = [Tutor(teacher)] if taught else []
    fit(ours, images, training, losses, tutors=tutors, device=CPU, seed=0, progress=Progress("test"))
    before = tiny(0, images).state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], atol=2e-4, rtol=2e-3, msg=name)
        if name.endswith("weight"):
            assert not torch.equal(value, before[name])


def test_the_plain_loops_soft_loss_is_hintons() -> None:
    """T² Σ p log(p/q), mean over the images, in NumPy."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 5, 7))
    p, q = (np.exp(z / 4) / np.exp(z / 4).sum(1, keepdims=True) for z in (teacher, student))
    expected = 16 * (p * np.log(p / q)).sum(1).mean()
    assert soft_loss(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(expected, rel=1e-9)


def test_the_plain_loop_sees_the_views_that_the_engine_sees(images: Data) -> None:
    """Every changed picture is one of an image's finite views, padded, cut and mirrored in NumPy."""
    pictures = Pictures(images)
    pad, side = images.image[-1] // 8, images.image[-1]
    torch.manual_seed(0)
    for index in range(8):
        raw = images.train.images[np.array([index])][0].numpy()
        framed = np.pad(raw, ((0, 0), (pad, pad), (pad, pad)))
        cuts = [framed[:, y : y + side, x : x + side] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        views = np.stack([view for cut in cuts for view in (cut, cut[..., ::-1])]) / 255
        mean, std = (np.reshape(each, (3, 1, 1)) for each in (images.mean, images.std))
        seen, label = pictures[index]
        assert label == images.train.labels[index]
        assert np.abs((views - mean) / std - seen.numpy()).max((1, 2, 3)).min() < 1e-5


def test_speed_measures_both_loops_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many turns as rounds and one more, and the ratio is that of the speeds it gives."""
    made: Data = DATASETS["synthetic"].model_validate({"size": 32, "classes": 100, "samples": 100})(0)  # type: ignore[attr-defined]
    data = replace(made, train=made.train.first(64), val=made.val.first(2), mirror=True)
    targets = speed.made_up_targets(tmp_path, data)
    monkeypatch.setattr(speed, "fresh", lambda name: tiny(0, data))
    turns: list[object] = []

    class Turns:
        def __init__(self, student: str, teacher: str | None, data: Data, batch_size: int) -> None:
            turns.append((student, teacher, batch_size))

        def steps(self, count: int) -> float:
            turns.append(count)
            return 0.25

        def close(self) -> None:
            turns.append("closed")

    monkeypatch.setattr(speed, "Peer", Turns)
    found = speed.against(speed.Extent(64, 2, 1, 1), data, "off", targets)
    assert turns == [("mobilenet_v2_cifar", "resnet50_cifar", 64), 2, 2, "closed"]
    assert found.plain == pytest.approx(2 * 64 / 0.25)
    assert found.ratio == pytest.approx(found.ours / found.plain)


def test_the_plain_loop_takes_its_turns_in_a_process_of_its_own() -> None:
    data: Data = DATASETS["synthetic"].model_validate({"size": 16, "classes": 4, "samples": 32})(0)  # type: ignore[attr-defined]
    peer = Peer("mobilenet_v2_cifar", None, data, 16)
    assert 0 < peer.steps(1) < 60
    assert peer.process.is_alive()
    peer.close()
    assert peer.process.exitcode == 0


def test_every_loss_with_a_teacher_is_a_form() -> None:
    known = forms()
    assert {name for name, loss in LOSSES.items() if loss.needs_teacher} <= known.keys()
    assert {"alone", "self_distillation", "two_teachers", "progressive"} <= known.keys()
    for form in known.values():
        stage: Any = form.with_training(Training(epochs=8), 3 if form.cached else None)
        assert getattr(stage, "targets", None) == "cached" or not form.cached


def test_phases_share_all_epochs() -> None:
    phases = [
        {"part": 0.2, "losses": []},
        {"part": 0.2, "losses": []},
        {"part": 0.4, "losses": []},
        {"part": 0.2, "losses": []},
    ]
    assert [each["training"]["epochs"] for each in shared_out(phases, 8)] == [2, 2, 3, 1]


def test_gains_are_seed_by_seed(tmp_path: Path) -> None:
    """Mean gain and its standard error are those of the differences, in NumPy."""
    tops = {"alone": [60.0, 62.0, 64.0], "kd": [61.0, 62.5, 66.0], "hint": [59.0, 62.0, 63.0]}
    results = [
        {"data": "digits", "form": form, "seed": seed, "top1": top1}
        for form, values in tops.items() for seed, top1 in enumerate(values)
    ]  # fmt: skip
    alone, kd, hint = accuracy.of_data("digits", accuracy.settings(None)["digits"], results)
    gains = np.subtract(tops["kd"], tops["alone"])
    assert alone.measured.startswith("62.00 ±")
    assert kd.ok is True
    assert kd.measured.startswith(f"{gains.mean():+.2f} ± {gains.std(ddof=1) / math.sqrt(3):.2f}")
    assert hint.ok is None
    assert hint.measured.startswith("-0.67")


def test_accuracy_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the book has is not trained again; a line that was cut off counts for nothing."""
    setting = accuracy.settings(None)["digits"]
    jobs = [accuracy.Job("digits", setting, form, 0, tmp_path, quick=True) for form in ("alone", "kd")]
    book = tmp_path / "results.jsonl"
    book.write_text(json.dumps(jobs[0].named | {"top1": 50.0, "seconds": 1}) + "\n" + '{"data": "dig')
    assert [result["top1"] for result in accuracy.read(book)] == [50.0]
    assert jobs[0].key != jobs[1].key
    assert jobs[0].key != replace(jobs[0], seed=1).key != replace(jobs[0], epochs=3, quick=False).key
    book.write_text("".join(json.dumps(job.named | {"top1": 50.0, "seconds": 1}) + "\n" for job in jobs))
    monkeypatch.setattr(accuracy.Job, "__call__", lambda self: pytest.fail("trained again"))
    assert [result["form"] for result in accuracy.run_all(jobs, book)] == ["alone", "kd"]


def test_a_job_trains_and_keeps_teacher_and_logits(tmp_path: Path) -> None:
    setting = accuracy.settings(None)["digits"]
    job = accuracy.Job("digits", setting, "kd", 0, tmp_path, quick=True)
    first = job()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".targets" for path in kept)
    assert any(path.name == "weights.safetensors" for path in kept)
    assert job()["top1"] == first["top1"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four classes of ten and five pictures, as an archive of CIFAR's shape."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(tmp_path / "cifar.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "cifar.npz"


def test_everything_is_trained_on(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_data, "SEEN", 6)
    data = distillation_data.everything(archive)
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (40, 6, 20, 4)
    raw = np.load(archive)["train_images"]
    assert np.array_equal(data.train.images[np.arange(40)].permute(0, 2, 3, 1).numpy(), raw)
    apart = runs.held_out(data)
    assert (len(apart.train), len(apart.val)) == (36, 4)
    # Kept logits are found by an image's place, which stays.
    assert torch.equal(apart.train.images[np.arange(36)], data.train.images[np.arange(36)])
    assert torch.equal(apart.val.images[np.arange(4)], data.train.images[np.arange(36, 40)])


def test_a_subset_has_every_class_alike(archive: Path, tmp_path: Path) -> None:
    few = distillation_data.arrays(distillation_data.subset(archive, tmp_path / "few.npz", 12))
    assert np.bincount(few["train_labels"]).tolist() == [3, 3, 3, 3]
    assert len(few["test_labels"]) == 20


@pytest.mark.parametrize("content", [None, b"not an archive"])
def test_data_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cifar.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(distillation_data.NoData, match=r"cannot be read from .*cifar\.npz"):
        distillation_data.arrays(path)


def test_the_table_judges_means_times_and_published_figures() -> None:
    def result(group: str, recipe: str, seed: int, top1: float, seconds: float = 100.0) -> dict[str, Any]:
        return {"group": group, "recipe": recipe, "seed": seed, "top1": top1, "seconds": seconds, "epochs": 240,
                "batch_size": 512, "step_ms": 4.0, "epochs_s": seconds / 2, "engine": "graphs"}  # fmt: skip

    found = {
        "teacher": {"top1": 79.2, "seconds": 300.0, "engine": "graphs"},
        "best": "dkd",
        "plain": {"step_ms": 60.0, "steps": 60, "epoch_steps": 781, "batch_size": 64},
    }
    results = [result("best", "dkd", seed, 71.5 + seed / 10) for seed in (0, 1, 2)]
    results += [result("papers", recipes.BY_PAPERS["kd"].name, 0, 68.0), result("method", "DKD", 0, 71.0)]
    lines = {line.what: line for line in table.lines_of(found, results)}
    assert lines["teacher, top-1"].ok is False
    best = next(line for what, line in lines.items() if what.startswith("our best"))
    assert best.ok is True  # (71.5 + 71.6 + 71.7) / 3
    assert best.measured.startswith("71.60 ± 0.06")
    times = next(line for what, line in lines.items() if "plain loop" in what)
    # 60 ms · 781 · 240 in seconds, over 100 s
    assert times.measured.startswith(f"{0.06 * 781 * 240 / 100:.0f}×")
    assert times.ok is True
    seconds = next(line for what, line in lines.items() if what == "240 epochs of the student, seconds")
    assert seconds.measured.startswith("50 (batch 512; 100 with")
    assert seconds.ok is True
    kd = next(line for what, line in lines.items() if what.startswith("KD by the papers"))
    assert kd.ok is False  # 0.65 off
    dkd = next(line for what, line in lines.items() if what.startswith("DKD"))
    assert dkd.ok is None
    assert "published 70.35" in dkd.measured
    alone = table.lines_of({"best": "dkd"}, results[:1])
    assert alone[0].ok is None  # one seed is not three


def test_recipes_can_be_trained() -> None:
    """Losses and schedules are of the engine's own, and every published method has its figure."""
    for recipe in (*recipes.BEST.values(), *recipes.BY_PAPERS.values(), *recipes.METHODS.values()):
        assert recipe.training.epochs == 240
        assert all(loss.name in LOSSES for loss in recipe.losses)
    assert {each.published for each in recipes.METHODS.values()} == {70.35, 69.02, 68.66, 67.35, 64.6, 71.19, 71.04}
    names = [recipe.name for recipe in (*recipes.BY_PAPERS.values(), *recipes.METHODS.values())]
    assert len({*names}) == len(names)


def test_what_does_not_fit_into_the_time_is_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = places.Place(None, tmp_path, "cpu", trial=True)
    budget, known = pool.Budget(minutes=1), []
    run = runs.Run("method", recipes.METHODS["dkd"], 0)
    assert pool.expected_s(run, place, known) == 0  # nothing is known yet
    known.append({"batch_size": 16, "step_ms": 20_000.0})
    assert pool.expected_s(run, place, known) == pytest.approx(20 * (64 // 16))  # an epoch of four steps
    assert list(pool.trained(None, [run], 1, place, budget, known)) == []
    assert "not begun: 80 s due" in budget.notes[0]
    assert "DKD, seed 0" in capsys.readouterr().out


def test_what_still_runs_at_the_end_is_left(tmp_path: Path) -> None:
    place = places.Place(None, tmp_path, "cpu", trial=True)
    endless = SimpleNamespace(apply_async=lambda *given: SimpleNamespace(ready=lambda: False))
    budget = pool.Budget(minutes=0.005)
    run = runs.Run("method", recipes.METHODS["dkd"], 0)
    assert list(pool.trained(endless, [run], 1, place, budget, [])) == []
    assert budget.notes == ["DKD, seed 0: cut off: the time was over"]


def test_what_was_left_undone_is_forgotten_by_the_next_call(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    gpu.forget_notes(record)
    assert not record.exists()
    record.write_text(json.dumps({"lines": [{"what": "not done: DKD, seed 0: no time"}, {"what": "teacher, top-1"}]}))
    gpu.forget_notes(record)
    assert json.loads(record.read_text())["lines"] == [{"what": "teacher, top-1"}]


def test_a_form_that_fits_no_net_stops_no_other(tmp_path: Path) -> None:
    """Its reason stands in the table, and it is tried again next time."""
    setting = replace(accuracy.settings(None)["digits"], student={"plain_cnn": {"widths": (4, 8)}})
    found = accuracy._called(accuracy.Job("digits", setting, "attention", 0, tmp_path, quick=True))
    assert "no stage -4" in found["error"]
    alone = {"data": "digits", "form": "alone", "seed": 0, "top1": 50.0}
    lines = accuracy.of_data("digits", setting, [alone, found])
    assert lines[-1].what == "digits: gain by attention, points"
    assert lines[-1].measured.startswith("not measured: losses.attention.layers: student: no stage -4")


def test_a_run_that_fails_stops_no_other(tmp_path: Path) -> None:
    place = places.Place(None, tmp_path, "cpu", trial=True)
    failed = runs.train(place, runs.Run("method", recipes.METHODS["dkd"], 0))
    assert "the teacher or its logits are not there" in failed["error"]


def test_the_gpu_script_runs_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tiny nets on the CPU, students in processes of their own; a second call finds everything done."""
    monkeypatch.setattr(gpu, "METHODS", {"dkd": recipes.METHODS["dkd"]})
    monkeypatch.setattr(gpu, "BY_PAPERS", {"kd": recipes.BY_PAPERS["kd"], "alone": recipes.BY_PAPERS["alone"]})
    monkeypatch.setattr(gpu, "SEEDS", (0,))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    monkeypatch.setattr("sys.argv", ["distillation_gpu.py", "--trial", "--jobs", "1", "--folder", str(tmp_path)])
    for again in (False, True):
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert not ended.value.code
        said = capsys.readouterr().out
        assert "teacher's logits on all 162 views" in said
        for what in ("our best recipe", "KD by the papers' recipe", "student alone by the papers'", "DKD"):
            assert what in said
        assert "against the plain loop" in said
        assert "nothing was recorded" in said
        assert ("epoch 1 of 1" in said) is not again
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert sorted(result["group"] for result in results) == ["best", "method", "papers", "papers"]
    assert all(math.isfinite(result["loss"]) and 0 <= result["top1"] <= 100 for result in results)


def test_kept_logits_of_the_script_are_the_teachers(tmp_path: Path) -> None:
    """On two images' views, asked for one by one."""
    place = places.Place(None, tmp_path, "cpu", trial=True)
    data = place.images()
    few = replace(data, train=data.train.first(2))
    module = build(place.spec(recipes.TEACHER), 0).module.eval()
    ask, way = teachers._asking(module, few, CPU, 4)
    assert way == "as it is"
    targets = compute(tmp_path, "few", ask, few.train.images, 10, kind="shift_flip", mirror=True, size=32, batch=54)
    raw = np.pad(few.train.images[np.arange(2)].numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    for view, (top, left, mirrored) in {0: (0, 0, 0), 40: (4, 4, 0), 161: (8, 8, 1)}.items():
        cut = raw[:, :, top : top + 32, left : left + 32]
        cut = (cut[..., ::-1] if mirrored else cut).copy()
        with torch.no_grad():
            expected = module(data.inputs(torch.from_numpy(cut)))
        found = targets.logits(torch.arange(2), torch.full((2,), view))
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    assert teachers._distance(targets, module, few, CPU, 162)["furthest"] < 1e-2
