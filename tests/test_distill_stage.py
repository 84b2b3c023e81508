"""The distill stage: its phases, what it writes down, and what follows from it for the rest of a pipeline."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hurry import Graphs
from tiny import Tiny, raw_pipeline, tiny_pipeline

from compress.config import as_named
from compress.data.base import Data
from compress.errors import ConfigError
from compress.losses import KD, CrossEntropy
from compress.losses.hint import Hint
from compress.net import Net, Spec, build
from compress.pipeline import Pipeline, parsed, read
from compress.recipe import Training
from compress.running.making import Maker
from compress.running.plan import plan
from compress.running.runner import run
from compress.running.smoke import for_smoke
from compress.running.sources import load
from compress.stages import Distill, untrained
from compress.stages.base import Env, losses_of, retrained, trainings_of
from compress.stages.distill import DEFAULT_LOSSES
from compress.training.train import Progress, fit

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.01}
# As of the form: features first, then logits, then labels alone.
PHASES: list[dict[str, Any]] = [
    {"losses": [{"hint": {"layers": -1, "weight": 10}}], "training": {"epochs": 1}},
    {"training": {"lr": 0.005}},
    {"losses": ["cross_entropy"], "training": {"epochs": 3, "optimizer": "sgd"}},
]
PROGRESSIVE = {"training": SHORT, "phases": PHASES}


pytestmark = pytest.mark.usefixtures("graphs")


def net(width: int = 8, seed: int = 0) -> Net:
    return build(Spec(architecture=Tiny(width=width), classes=4, image=(3, 16, 16)), seed)


def env(data: Data, *teachers: Net, **more: Any) -> Env:
    return Env(data=data, teachers=teachers, device=CPU, seed=3, stage="distill", **more)


def state(given: Net) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in given.module.state_dict().items()}


def same(a: Net, b: Net) -> bool:
    mine, theirs = state(a), state(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def distill_of(raw: dict[str, Any], **changes: Any) -> Distill:
    (stage,) = tiny_pipeline(stages=[{"distill": raw}], **changes).stages
    assert isinstance(stage, Distill)
    return stage


# Phases


def test_a_phase_takes_from_the_stage_what_it_does_not_say() -> None:
    first, second, third = distill_of(PROGRESSIVE).parts
    assert first.losses == (Hint(layers=-1, weight=10),)
    assert second.losses == DEFAULT_LOSSES
    assert third.losses == (CrossEntropy(),)
    assert first.training == Training(epochs=1, batch_size=16, lr=0.01)
    assert second.training == Training(epochs=2, batch_size=16, lr=0.005)
    assert third.training == Training(epochs=3, batch_size=16, lr=0.01, optimizer="sgd")


def test_the_stages_own_losses_are_the_phases_default() -> None:
    stage = distill_of({"losses": [{"kd": {"temperature": 2}}], "phases": [{}, {"losses": ["cross_entropy"]}]})
    assert [part.losses for part in stage.parts] == [(KD(temperature=2),), (CrossEntropy(),)]
    assert losses_of(stage) == (KD(temperature=2), CrossEntropy())


def test_without_phases_the_stage_is_one() -> None:
    stage = distill_of({"training": SHORT})
    (part,) = stage.parts
    assert (part.losses, part.training) == (stage.losses, stage.training)
    assert trainings_of(stage) == (stage.training,)


def test_phases_follow_each_other(images: Data) -> None:
    """The weights of one are the start of the next: the stage is its phases one after the other by hand."""
    stage, teacher, given = distill_of(PROGRESSIVE), net(12, 5), net()
    before = state(given)
    result = stage(given, env(images, teacher))
    student = net()
    for number, part in enumerate(stage.parts):
        own = env(images, teacher).part(number, stage.trainings)
        tutors = own.tutors() if any(loss.needs_teacher for loss in part.losses) else []
        fit(student.module, images, part.training, part.losses, tutors=tutors, device=CPU, seed=own.seed,
            progress=Progress("distill"))  # fmt: skip
    assert same(result, student)
    assert not same(result, given)
    assert all(torch.equal(value, before[name]) for name, value in state(given).items())
    assert same(stage(net(), env(images, net(12, 5))), result)


def test_every_phase_has_chance_of_its_own() -> None:
    trainings = [Training(epochs=2)] * 3
    parts = [replace(env(None), seed=2**31 - 5).part(i, trainings).seed for i in range(3)]  # type: ignore[arg-type]
    assert parts[0] == 2**31 - 5
    assert len(set(parts)) == 3
    assert all(0 <= seed < 2**31 for seed in parts)


def test_epochs_are_counted_through_the_phases(images: Data) -> None:
    told: list[Any] = []
    distill_of(PROGRESSIVE)(net(), env(images, net(12, 5), emit=told.append))
    epochs = [event for event in told if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2, 3, 4, 5, 6]
    assert [event["phase"] for event in epochs] == [1, 2, 2, 3, 3, 3]
    assert {event["epochs"] for event in epochs} == {6}
    assert [event.get("losses", {}).keys() for event in epochs[1:3]] == [{"cross_entropy", "kd"}] * 2
    assert [epochs[i]["lr"] for i in (1, 3)] == pytest.approx([0.005 / 25, 0.01 / 25])  # where one_cycle starts


def test_weights_that_change_count_the_epochs_of_their_phase(images: Data) -> None:
    """A window over the first epoch of a phase opens in each phase."""
    weight = {"window": {"value": 1, "last": 1}}
    phases = [{"losses": [{"cross_entropy": {"weight": weight}}]}] * 2
    told: list[Any] = []
    distill_of({"training": SHORT, "phases": phases})(net(), env(images, net(12, 5), emit=told.append))
    losses = [event["loss"] for event in told if event["event"] == "epoch"]
    assert [loss > 0 for loss in losses] == [True, False, True, False]


def test_a_blend_by_weight_stands_above_phases_without_a_teacher(images: Data) -> None:
    stage = distill_of(PROGRESSIVE | {"blend": [0.7, 0.3]})
    given = net()
    assert not same(stage(given, env(images, net(12, 5), net(6, 6))), given)


def test_the_teachers_are_blended_as_the_stage_says(images: Data) -> None:
    teachers = [net(12, 5), net(12, 6)]
    for teacher in teachers:
        teacher.module.head.weight.data *= 20
    students = {}
    for blend in ("mean", "confidence", [1.0, 1.0], [1.0, 1e-9]):
        students[str(blend)] = distill_of({"training": SHORT, "blend": blend})(net(), env(images, *teachers))
    first = distill_of({"training": SHORT})(net(), env(images, teachers[0]))

    def apart(a: Net, b: Net) -> float:
        return max(float((x - y).abs().max()) for x, y in zip(state(a).values(), state(b).values(), strict=True))

    assert apart(students["mean"], students["[1.0, 1.0]"]) < 1e-4
    assert apart(students["[1.0, 1e-09]"], first) < 1e-4
    assert apart(students["mean"], first) > 1e-3
    assert apart(students["mean"], students["confidence"]) > 1e-3


# In a file


@pytest.mark.parametrize(
    "raw",
    [
        {},
        PROGRESSIVE,
        PROGRESSIVE | {"losses": [{"kd": {"weight": {"warm_up": {"to": 1, "epochs": 2}}}}]},
        {"blend": "confidence", "targets": "cached"},
        {"blend": [0.5, 0.25], "views": 8},
        {"phases": [{}, {}]},
        {"losses": [{"hint": {"layers": [1, {"student": 2, "teacher": "layer?.0"}, "embedding"]}}]},
        {"losses": [{"kd": {"weight": {"window": {"value": 1, "first": 2}}}}, {"attention": {"layers": [-1]}}]},
    ],
)
def test_a_stage_comes_back_from_what_it_writes(raw: dict[str, Any], tmp_path: Path) -> None:
    first = tiny_pipeline(stages=[{"distill": raw}])
    (tmp_path / "again.yaml").write_text(first.as_yaml())
    again = read(tmp_path / "again.yaml")
    assert again == first
    assert again.key == first.key
    assert again.as_yaml() == first.as_yaml()


def test_what_is_not_used_is_not_written() -> None:
    """Seeds follow from what is written down: published results stay what they are."""
    written = yaml.safe_load(tiny_pipeline().as_yaml())
    assert set(written["stages"][0]["distill"]) == {"losses", "training"}
    assert written["stages"][0]["distill"]["losses"] == [
        {"cross_entropy": {"weight": 0.1}},
        {"kd": {"temperature": 4.0, "weight": 0.9}},
    ]
    assert set(written["teacher"]) == {"model", "training"}
    assert not {"unlabelled", "robustness"} & set(written)
    assert not {"bn_l1", "compile"} & set(written["teacher"]["training"])


def test_what_is_used_is_written() -> None:
    stage = as_named(distill_of({"blend": "confidence", "targets": "online", "phases": [{}]}))["distill"]
    assert {"blend", "targets", "phases"} <= set(stage)
    assert "views" not in stage


REFUSED = [
    ({"blend": "median"}, "stages.0.distill.blend"),
    ({"blend": [0.5, 0]}, "stages.0.distill.blend"),
    ({"targets": "sometimes"}, "stages.0.distill.targets: should be 'auto', 'online' or 'cached'"),
    ({"views": 0}, "stages.0.distill.views: should be greater than or equal to 1"),
    (
        {"views": 3, "targets": "online"},
        "stages.0.distill: views are what is kept of a teacher's outputs, and targets: online keeps none; drop one",
    ),
    ({"phases": [{"los": ["kd"]}]}, "stages.0.distill.phases.0.los: no such key. Did you mean 'losses'?"),
    ({"phases": [{}, {"training": {"lr": -1}}]}, "stages.0.distill.phases.1.training.lr: should be greater than 0"),
    ({"phases": [{"losses": ["kdd"]}]}, "stages.0.distill.phases.0.losses.0: no 'kdd' here. Did you mean 'kd'?"),
    ({"phases": 3}, "stages.0.distill.phases: should be a valid tuple"),
    ({"phases": ["kd"]}, "stages.0.distill.phases.0: "),
    ({"losses": [{"kd": {"temperature": 0}}]}, "stages.0.distill.losses.0.kd.temperature: should be greater than 0"),
    ({"losses": [{"kd": {"weight": -1}}]}, "stages.0.distill.losses.0.kd.weight: "),
    ({"losses": [{"kd": {"weight": {"warm": {}}}}]}, "stages.0.distill.losses.0.kd.weight: no 'warm' here"),
]


@pytest.mark.parametrize(("raw", "said"), REFUSED)
def test_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_pipeline(stages=[{"distill": raw}])
    assert any(line.strip().startswith(said) for line in str(caught.value).splitlines()), str(caught.value)


# What follows from it


def test_the_baseline_trains_for_all_phases_on_the_stages_schedule() -> None:
    phases = [{"training": {"epochs": 2}}, {"training": {"epochs": 5}}]
    shared = {"epochs": 7, "lr": 0.02, "schedule": "step", "milestones": [3, 5]}
    stages = [{"distill": {"training": shared, "phases": phases}}, {"prune": {"training": {"epochs": 7}}}]
    training = tiny_pipeline(stages=stages).baseline.training
    assert training == Training(epochs=14, lr=0.02, schedule="step", milestones=(6, 10))


def test_all_trainings_are_changed_together() -> None:
    stage = distill_of(PROGRESSIVE)
    none = untrained(stage)
    assert [each.epochs for each in (*trainings_of(none), none.training)] == [0, 0, 0, 0]
    assert losses_of(none) == losses_of(stage)
    twice = retrained(stage, lambda t: t.model_copy(update={"epochs": 2 * t.epochs}))
    assert [each.epochs for each in trainings_of(twice)] == [2, 4, 6]


def test_a_smoke_run_has_every_phase_for_an_epoch() -> None:
    (stage,) = for_smoke(tiny_pipeline(stages=[{"distill": PROGRESSIVE}]), []).stages
    assert [each.epochs for each in trainings_of(stage)] == [1, 1, 1]


def test_untrained_is_the_net_as_given(images: Data) -> None:
    assert same(untrained(distill_of(PROGRESSIVE))(net(), env(images)), net())


def test_the_plan_counts_the_epochs_of_all_phases() -> None:
    steps = {step.net: step for step in plan(tiny_pipeline(stages=[{"distill": PROGRESSIVE}])).steps}
    assert (steps["distill"].epochs, steps["baseline"].epochs) == (6, 6)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (["cross_entropy", {"kd": {"temperature": 2}}, "hint"], (CrossEntropy(), KD(temperature=2))),
        (["cross_entropy", "kd", "crd", "self_distillation"], (CrossEntropy(), KD())),
        (["cross_entropy", {"kd": {"weight": {"warm_up": {"to": 1, "epochs": 2}}}}], DEFAULT_LOSSES),
        (["cross_entropy", "hint"], DEFAULT_LOSSES),
        (["cross_entropy", "adversarial"], DEFAULT_LOSSES),
        ([{"kd": {"temperature": 2}}], (KD(temperature=2),)),
    ],
)
def test_later_stages_learn_from_what_looks_at_logits_alone(losses: Any, expected: Any) -> None:
    stages = tiny_pipeline(stages=[{"distill": {"losses": losses}}, "prune", "quantize"]).stages
    assert losses_of(stages[1]) == losses_of(stages[2]) == expected


def test_later_stages_learn_from_the_plain_losses_of_all_phases() -> None:
    phases = [{"losses": ["hint"]}, {"losses": ["cross_entropy", {"kd": {"temperature": 3}}]}]
    assert losses_of(tiny_pipeline(stages=[{"distill": {"phases": phases}}, "prune"]).stages[1]) == (
        CrossEntropy(),
        KD(temperature=3),
    )


def test_a_phase_that_listens_to_nobody_needs_no_teacher() -> None:
    raw = raw_pipeline(teacher=None, stages=[{"distill": {"losses": ["cross_entropy"], "phases": [{}, {}]}}])
    assert parsed(raw, "x").teacher == ()
    listening = raw_pipeline(teacher=None, stages=[{"distill": {"losses": ["cross_entropy"], "phases": [
        {}, {"losses": ["kd"]}]}}])  # fmt: skip
    with pytest.raises(ConfigError, match=r"stages\.0\.distill\.losses: kd needs a teacher"):
        parsed(listening, "x")


def test_figures_of_a_told_epoch_are_numbers(images: Data) -> None:
    told: list[Any] = []
    distill_of(PROGRESSIVE)(net(), env(images, net(12, 5), emit=told.append))
    for event in told:
        assert "NaN" not in json.dumps(event)
    values = [value for e in told if e["event"] == "epoch" for value in e.get("losses", {}).values()]
    assert np.isfinite(values).all()


# A whole run


def two_teachers(tmp_path: Path) -> Pipeline:
    """Two teachers, one with a view of its own, blended by confidence, in phases, with images that have no labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", images=pixels)
    brief = {"epochs": 1, "batch_size": 32, "lr": 0.01}
    phases = [
        {"losses": [{"attention": {"layers": -1}}]},
        {"losses": [{"cross_entropy": {"weight": 0.5}}, "kd"], "training": {"epochs": 2}},
        {"losses": ["cross_entropy"]},
    ]
    return tiny_pipeline(
        data={"synthetic": {"size": 16, "classes": 4, "samples": 64}},
        unlabelled={"path": str(tmp_path / "more.npz")},
        teacher=[
            {"model": {"tiny": {"width": 12}}, "training": brief, "view": {"size": 24, "channels": 1}},
            {"model": {"tiny": {"width": 16}}, "training": brief},
        ],
        stages=[{"distill": {"training": brief, "blend": "confidence", "phases": phases}},
                {"prune": {"keep_macs": 0.6, "training": brief}}],
        benchmark={"rounds": 1},
    )  # fmt: skip


def events(folder: Path) -> list[dict[str, Any]]:
    """What happened in a folder's last run."""
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return found[max(i for i, event in enumerate(found) if event["event"] == "started") :]


def kept_files(folder: Path) -> dict[str, bytes]:
    files = [*folder.rglob("*.onnx"), *folder.rglob("*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path]:
    folder = tmp_path_factory.mktemp("two teachers")
    given = two_teachers(folder)
    run(given, folder / "run")
    return given, folder / "run"


def test_every_net_of_a_run_with_two_teachers_has_its_row(whole: tuple[Pipeline, Path]) -> None:
    report = json.loads((whole[1] / "report.json").read_text())
    assert [row["net"] for row in report["rows"]] == ["teacher", "teacher-2", "baseline", "distill", "prune"]
    best = max(report["rows"][:2], key=lambda row: row["top1_onnx"])["net"]
    assert report["teacher"] == best
    (folder,) = (whole[1] / "stages").glob("0-distill-*")
    curve = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [(epoch["phase"], epoch["epoch"], epoch["epochs"]) for epoch in curve] == [
        (1, 1, 4),
        (2, 2, 4),
        (2, 3, 4),
        (3, 4, 4),
    ]
    assert [sorted(epoch.get("losses", {})) for epoch in curve] == [[], *[["cross_entropy", "kd"]] * 2, []]


def test_a_resumed_run_takes_over_every_teacher_and_stage(whole: tuple[Pipeline, Path]) -> None:
    given, folder = whole
    before = kept_files(folder)
    run(read(folder / "pipeline.yaml"), folder)
    assert read(folder / "pipeline.yaml") == given
    assert [e["stage"] for e in events(folder) if e["event"] == "unchanged"] == [
        "teacher",
        "teacher",
        "baseline",
        "distill",
        "prune",
    ]
    assert not [e for e in events(folder) if e["event"] in ("stage", "epoch", "preflight")]
    assert kept_files(folder) == before


@pytest.mark.parametrize(
    ("start_from", "gone"),
    [
        ("teacher", {"teacher", "0-distill", "1-prune"}),
        ("teacher-2", {"teacher-2", "0-distill", "1-prune"}),
        ("baseline", {"baseline"}),
        ("distill", {"0-distill", "1-prune"}),
    ],
)
def test_what_listened_to_a_teacher_is_forgotten_with_it(whole, tmp_path, start_from, gone) -> None:
    given, folder = whole
    shutil.copytree(folder / "stages", tmp_path / "stages")
    maker = Maker(given, load(given), tmp_path, CPU, lambda event: None, [None, None])
    assert maker.all_there()
    maker.forget(start_from)
    assert {name for name, kept in maker.folders().items() if not kept.is_dir()} == gone


def test_two_runs_from_scratch_give_the_same_bytes(
    whole: tuple[Pipeline, Path], graphs: Graphs, tmp_path: Path
) -> None:
    graphs.clear()
    given, folder = whole
    run(given, tmp_path / "again")
    assert kept_files(tmp_path / "again") == kept_files(folder)
