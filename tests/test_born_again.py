"""Born-again nets: who teaches whom, that every generation is a fresh net, and what the report hears of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import raw_pipeline, tiny_pipeline
from torch import nn

from compress.config import OneOf
from compress.edits import Channels
from compress.errors import ConfigError
from compress.losses import KD, CrossEntropy
from compress.losses.hint import Hint
from compress.net import Net
from compress.pipeline import parsed
from compress.pruning.channels import prune_channels
from compress.recipe import Training
from compress.running.plan import plan
from compress.running.runner import run
from compress.running.smoke import for_smoke
from compress.stages import STAGES, BornAgain, Distill, Env, Sparsify, base, born_again
from compress.stages.base import losses_of, rehearsed, trainings_of
from compress.stages.born_again import fresh

CPU = torch.device("cpu")
BRIEF = Training(epochs=2, batch_size=16, lr=0.01)


@pytest.fixture
def env(images) -> Env:
    return Env(images, (), CPU, seed=5, stage="born_again")


def state(net: Net) -> dict[str, torch.Tensor]:
    return net.module.state_dict()


def same(one: Net, other: Net) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def logits(module: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(images).numpy()


def accuracy(net: Net, data) -> float:
    inputs = data.inputs(data.val.images[np.arange(len(data.val))])
    return 100 * float((logits(net.module, inputs).argmax(1) == data.val.labels).mean())


def test_a_generation_is_a_fresh_net_distilled_from_the_one_given(env, small_net):
    net, stage = small_net(1), BornAgain(training=BRIEF)
    taught = replace(env, teachers=(net,), teacher_keys=("given",))
    expected = Distill(losses=stage.losses, training=BRIEF)(fresh(net, env.seed), taught)
    result = stage(net, env)
    assert result.spec == net.spec
    assert same(result, expected)
    assert same(net, small_net(1))


def test_each_generation_is_taught_by_the_one_before(env, monkeypatch, small_net):
    heard, teach = [], born_again.teach

    def listen(net, part, *given, **named):
        begun = {name: value.clone() for name, value in state(net).items()}
        teach(net, part, *given, **named)
        heard.append((begun, net, part))

    monkeypatch.setattr(born_again, "teach", listen)
    net = small_net(1)
    given = replace(env, teachers=(small_net(9), small_net(8)), teacher_keys=("a", "b"), augmented=(False, True))
    result = BornAgain(generations=3, training=Training(epochs=1, batch_size=16))(net, given)
    begun, born, parts = zip(*heard, strict=True)
    assert same(parts[0].teachers[0], net)
    assert [len(part.teachers) for part in parts] == [1, 1, 1]
    assert (parts[1].teachers[0], parts[2].teachers[0], result) == born
    assert {(part.views, part.augmented) for part in parts} == {((), ())}
    assert len({part.seed for part in parts}) == 3
    weights = [each["classifier.weight"] for each in begun]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_pipelines_teachers_say_nothing(env, small_net):
    stage = BornAgain(training=BRIEF)
    beside = replace(env, teachers=(small_net(9),), teacher_keys=("nine",))
    assert same(stage(small_net(1), env), stage(small_net(1), beside))


def test_the_labels_alone_would_give_another_net(env, small_net):
    one, other = (BornAgain(training=BRIEF)(small_net(seed), env) for seed in (1, 2))
    assert not same(one, other)


def test_the_accuracy_of_every_generation_is_noted(env, images, small_net):
    notes, net = [], small_net(1)
    first = BornAgain(training=BRIEF)(net, env)
    result = BornAgain(generations=2, training=BRIEF)(net, replace(env, note=notes.append))
    said = [f"{accuracy(each, images):.1f} %" for each in (net, first, result)]
    assert notes == [
        "soft labels: the teacher runs beside the student",
        f"validation accuracy: {said[0]} as given, {said[1]}, {said[2]} by generation",
    ]


def test_what_is_kept_on_disk_is_each_teachers_own(env, images, monkeypatch, tmp_path, small_net):
    found, with_targets = [], base.with_targets

    def listen(*given, **named):
        tutors = with_targets(*given, **named)
        (tutor,) = tutors
        rows = torch.arange(images.samples)
        seen = tutor.targets.logits(rows, torch.zeros_like(rows)).numpy()
        found.append((seen, logits(tutor.module, images.inputs(images.train.images[rows.numpy()]))))
        return tutors

    monkeypatch.setattr(base, "with_targets", listen)
    # One view of each image is fewer than the epochs, so that the teachers' outputs are kept.
    stage = BornAgain(generations=2, training=BRIEF.model_copy(update={"augment": "none"}))
    stage(small_net(1), replace(env, out=tmp_path))
    assert len(found) == 2
    for kept, expected in found:
        np.testing.assert_allclose(kept, expected, atol=1e-2)
    assert np.abs(found[0][1] - found[1][1]).max() > 0.1


def test_an_epoch_less_stage_keeps_the_weights_that_it_is_given(env, small_net):
    idle = BornAgain(generations=3, training=Training(epochs=0))
    assert same(idle(small_net(1), env), small_net(1))


def test_the_shape_of_a_pruned_net_is_kept(env, small_net):
    net = small_net(1)
    pruned = prune_channels(net.module, net.example(1), keep_macs=0.6).module
    smaller = Net(net.spec.edited(Channels.of(pruned, net.module)), pruned)
    result = BornAgain(training=Training(epochs=1))(smaller, env)
    shapes = {name: value.shape for name, value in state(smaller).items()}
    assert {name: value.shape for name, value in state(result).items()} == shapes
    assert result.spec == smaller.spec


def test_weights_that_were_removed_stay_removed(env, small_net):
    sparse = Sparsify(sparsity=0.7, training=Training(epochs=0))(small_net(1), env)
    result = BornAgain(generations=2, training=BRIEF)(sparse, env)
    (edit,) = sparse.spec.edits
    for path, zeros in edit.layers.items():
        before, after = (state(net)[f"{path}.weight"] == 0 for net in (sparse, result))
        assert zeros > 0
        assert torch.equal(before, after)
    assert not same(sparse, result)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"losses": ["cross_entropy"]}, "no loss listens to the generation before; add one"),
        ({"losses": [{"kd": {"temperature": 0}}]}, r"kd\.temperature\n\s+should be greater than 0"),
        ({"generations": 0}, "generations"),
    ],
)
def test_bad_fields_are_named(fields, said):
    with pytest.raises(ValidationError, match=said):
        OneOf(STAGES).parse({"born_again": fields})


def test_layers_that_do_not_exist_are_named(env, small_net):
    stage = BornAgain(losses=(CrossEntropy(), Hint(layers=("feature.3",))), training=BRIEF)
    with pytest.raises(ConfigError, match=r"losses\.hint\.layers: .*no layer 'feature\.3'"):
        stage(small_net(1), env)


def test_features_of_the_generation_before_can_be_learnt(env, small_net):
    plain, hints = (BornAgain(losses=(KD(), *more), training=BRIEF) for more in ((), (Hint(layers=(-1,)),)))
    assert not same(plain(small_net(1), env), hints(small_net(1), env))


# In a pipeline

TRAINING = {"epochs": 2, "batch_size": 16, "lr": 0.01}
STAGE = {"born_again": {"generations": 2, "training": TRAINING}}


def test_a_pipeline_needs_no_teacher_for_it():
    (stage,) = tiny_pipeline(teacher=None, stages=[STAGE]).stages
    assert [training.epochs for training in trainings_of(stage)] == [2, 2]
    assert not any(loss.needs_teacher for loss in losses_of(stage))
    with pytest.raises(ConfigError, match="kd needs a teacher"):
        parsed(raw_pipeline(teacher=None, stages=["distill"]), "tiny.yaml")


def test_generations_are_measured_once_and_taken_over(tmp_path):
    pipeline = tiny_pipeline(teacher=None, stages=[STAGE, {"quantize": {"method": "ptq"}}])
    outcome = run(pipeline, tmp_path)
    assert [row.net for row in outcome.report.rows] == ["baseline", "born_again", "quantize"]
    (curve,) = (tmp_path / "stages").glob("0-born_again-*/train.jsonl")
    epochs = [json.loads(line) for line in curve.read_text().splitlines()]
    assert [(each["epoch"], each["epochs"], each["phase"]) for each in epochs] == [
        (1, 4, 1), (2, 4, 1), (3, 4, 2), (4, 4, 2)
    ]  # fmt: skip
    assert any(note.startswith("born_again: validation accuracy") for note in outcome.report.notes)
    before = {file: file.read_bytes() for file in (tmp_path / "models").rglob("*.onnx")}
    run(pipeline, tmp_path)
    last = (tmp_path / "events.jsonl").read_text().split('"started"')[-1]
    assert '"stage finished"' not in last
    assert before == {file: file.read_bytes() for file in (tmp_path / "models").rglob("*.onnx")}


def test_it_can_be_shown_and_rehearsed():
    pipeline = tiny_pipeline(stages=[STAGE])
    steps = {step.net: step.epochs for step in plan(pipeline).steps}
    assert steps == {"teacher": 2, "baseline": 4, "born_again": 4}
    (stage,) = for_smoke(pipeline, []).stages
    assert (stage.generations, stage.training.epochs) == (1, 1)
    assert rehearsed(BornAgain(generations=5)) == BornAgain()
