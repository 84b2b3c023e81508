"""Mutual learning: the equations of Zhang et al. 2018 in NumPy, who learns from whom, and what becomes of the peers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from tiny import Tiny, tiny_pipeline
from torch import nn

from compress.config import OneOf, as_named
from compress.edits import Channels
from compress.errors import ModelError, TrainingError
from compress.losses import KD, CrossEntropy
from compress.losses.base import UNLABELLED, Batch, Outputs
from compress.models.plain_cnn import PlainCNN
from compress.net import Net, Spec, build
from compress.pruning.channels import prune_channels
from compress.recipe import Training
from compress.running.plan import plan
from compress.running.runner import run
from compress.running.smoke import for_smoke
from compress.stages import STAGES, Env, Mutual, Train, mutual
from compress.stages.mutual import Cohort, drawn

CPU = torch.device("cpu")
BATCH, CLASSES, T = 6, 5, 2.0
SMOOTHING = 0.2


class Says(nn.Module):
    """A peer that gives its parameter for an answer."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits


def all_logits(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [3 * random.standard_normal((BATCH, CLASSES)) for _ in range(count)]


def learning(logits: list[np.ndarray], labels: np.ndarray | None, weight: object = 1.0, epoch: int = 0):
    """The term for a student and its peers, all of known answers, and the student's logits."""
    student = torch.tensor(logits[0], requires_grad=True)
    cohort = Cohort([Says(each) for each in logits[1:]], T, Mutual(weight=weight).weight)
    known = None if labels is None else torch.from_numpy(labels)
    batch = Batch(Outputs(student), (), known, torch.arange(BATCH), epoch, SMOOTHING, torch.zeros(BATCH, 1, 2, 2))
    # Answers in float64, which the term itself takes to float32 as the training loop does.
    return cohort(replace(batch, student=Outputs(student.float()))), student, cohort


def divergence(target: np.ndarray, own: np.ndarray) -> np.ndarray:
    """T² · KL(target ‖ own) of each image."""
    p, q = log_softmax(target / T, axis=1), log_softmax(own / T, axis=1)
    return T**2 * (np.exp(p) * (p - q)).sum(1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    target = np.full(logits.shape, SMOOTHING / CLASSES)
    target[np.arange(len(labels)), labels] += 1 - SMOOTHING
    return -(target * log_softmax(logits, axis=1)).sum(1)


LABELS = np.array([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("nets", [2, 3, 4])
def test_the_term_is_that_of_the_paper(nets):
    logits = all_logits(nets)
    value, _, _ = learning(logits, LABELS, weight=0.7)
    near = sum(divergence(b, a).mean() for a in logits for b in logits if a is not b) / (nets - 1)
    hard = sum(cross_entropy(each, LABELS).mean() for each in logits[1:])
    assert value.item() == pytest.approx(0.7 * near + hard, rel=1e-5)


@pytest.mark.parametrize("nets", [2, 3])
def test_each_net_learns_from_the_others_and_none_from_what_it_says_to_them(nets):
    logits = all_logits(nets)
    value, student, cohort = learning(logits, LABELS, weight=0.7)
    value.backward()
    # d/dz of T² · KL(p ‖ softmax(z/T)) is T · (softmax(z/T) - p); through p there is nothing.
    soft = [softmax(each / T, axis=1) for each in logits]
    pulled = [0.7 * T * sum(own - other for other in soft if other is not own) / (nets - 1) / BATCH for own in soft]
    np.testing.assert_allclose(student.grad, pulled[0], rtol=1e-4, atol=1e-7)
    target = np.full((BATCH, CLASSES), SMOOTHING / CLASSES)
    target[np.arange(BATCH), LABELS] += 1 - SMOOTHING
    for peer, own, pull in zip(cohort.peers, logits[1:], pulled[1:], strict=True):
        expected = pull + (softmax(own, axis=1) - target) / BATCH
        np.testing.assert_allclose(peer.logits.grad, expected, rtol=1e-4, atol=1e-7)


def test_unlabelled_images_teach_by_what_the_others_say_alone():
    logits = all_logits(2)
    labels = LABELS.copy()
    labels[[1, 4, 5]] = UNLABELLED
    known = labels != UNLABELLED
    near = divergence(logits[0], logits[1]).mean() + divergence(logits[1], logits[0]).mean()
    value, _, _ = learning(logits, labels)
    assert value.item() == pytest.approx(near + cross_entropy(logits[1][known], labels[known]).mean(), rel=1e-5)
    for none in (np.full(BATCH, UNLABELLED), None):
        value, _, _ = learning(logits, none)
        assert value.item() == pytest.approx(near, rel=1e-5)


def test_the_weight_may_be_a_schedule_and_leaves_the_peers_labels_alone():
    logits = all_logits(2)
    near = divergence(logits[0], logits[1]).mean() + divergence(logits[1], logits[0]).mean()
    hard = cross_entropy(logits[1], LABELS).mean()
    warm_up = {"warm_up": {"to": 2, "epochs": 4}}
    for epoch, weight in ((0, 0.5), (1, 1.0), (7, 2.0)):
        value, _, _ = learning(logits, LABELS, warm_up, epoch)
        assert value.item() == pytest.approx(weight * near + hard, rel=1e-5)


def test_nets_far_apart_have_finite_gradients():
    apart = [np.eye(BATCH, CLASSES) * 1e4, np.eye(BATCH, CLASSES)[::-1] * 1e4]
    value, student, cohort = learning(apart, LABELS)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert torch.isfinite(cohort.peers[0].logits.grad).all()


# The stage


@pytest.fixture
def besides() -> dict[str, Net]:
    return {}


@pytest.fixture
def env(images, besides) -> Env:
    return Env(images, (), CPU, seed=5, stage="mutual", beside=besides.__setitem__)


BRIEF = Training(epochs=2, batch_size=16, lr=0.01)


def state(net: Net) -> dict[str, torch.Tensor]:
    return net.module.state_dict()


def same(one: Net, other: Net) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_without_mimicry_each_learns_as_if_alone(env, besides, small_net):
    net = small_net(seed=1)
    student = Mutual(weight=0.0, training=BRIEF)(net, env)
    assert same(student, Train(training=BRIEF)(net, env))
    (peer,) = drawn((net.spec.architecture,), net.spec, env.seed)
    assert same(besides["peer-1"], Train(training=BRIEF)(peer, env))
    assert not same(besides["peer-1"], student)


def test_mimicry_moves_student_and_peer(env, besides, small_net):
    net, alone = small_net(seed=1), {}
    student = Mutual(training=BRIEF)(net, env)
    other = Mutual(weight=0.0, training=BRIEF)(net, replace(env, beside=alone.__setitem__))
    assert not same(student, other)
    assert not same(besides["peer-1"], alone["peer-1"])
    assert not any(module.training for net in (student, *besides.values()) for module in net.module.modules())


def test_peers_are_the_models_named_or_one_like_the_student_unpruned(env, besides, small_net):
    net = small_net()
    pruned = prune_channels(net.module, net.example(1), keep_macs=0.6).module
    smaller = Net(net.spec.edited(Channels.of(pruned, net.module)), pruned)
    Mutual(training=Training(epochs=0))(smaller, env)
    assert besides.pop("peer-1").spec == net.spec
    Mutual(peers=(Tiny(width=8), PlainCNN(widths=(8, 8))), training=Training(epochs=1))(smaller, env)
    assert [peer.spec.architecture for peer in besides.values()] == [Tiny(width=8), PlainCNN(widths=(8, 8))]
    assert list(besides) == ["peer-1", "peer-2"]
    assert {(peer.spec.classes, peer.spec.image) for peer in besides.values()} == {(4, (3, 16, 16))}


def test_peers_of_one_architecture_differ(small_net):
    spec = small_net().spec
    first, second = drawn((spec.architecture, spec.architecture), spec, seed=3)
    again, _ = drawn((spec.architecture, spec.architecture), spec, seed=3)
    assert same(first, again)
    assert not same(first, second)


def test_from_scratch_nothing_of_the_net_is_left_but_its_shape(env, small_net):
    stage = Mutual(from_scratch=True, training=BRIEF)
    one, other = (stage(small_net(seed), env) for seed in (1, 2))
    assert same(one, other)
    taken_up = Mutual(training=BRIEF)
    assert not same(taken_up(small_net(1), env), taken_up(small_net(2), env))
    idle = stage.model_copy(update={"training": Training(epochs=0)})
    assert same(idle(small_net(1), env), small_net(1))


def test_a_teacher_can_teach_the_student_as_well(env, small_net):
    taught = replace(env, teachers=(small_net(9),), teacher_keys=("nine",))
    losses = (CrossEntropy(weight=0.1), KD())
    with_teacher = Mutual(losses=losses, training=BRIEF)(small_net(1), taught)
    assert not same(with_teacher, Mutual(training=BRIEF)(small_net(1), env))


def test_it_learns_from_unlabelled_images(env, images, besides, small_net):
    more = replace(env, data=replace(images, unlabelled=images.test.images))
    without = Mutual(training=BRIEF)(small_net(1), env)
    peer = besides.pop("peer-1")
    result = Mutual(training=BRIEF)(small_net(1), more)
    assert not same(result, without)
    assert not same(besides["peer-1"], peer)
    assert all(torch.isfinite(value).all() for net in (result, besides["peer-1"]) for value in state(net).values())


def test_the_accuracies_are_noted(env, images, besides, small_net):
    notes = []
    student = Mutual(training=BRIEF)(small_net(1), replace(env, note=notes.append))
    found = []
    for net in (student, besides["peer-1"]):
        inputs = images.inputs(images.val.images[np.arange(len(images.val))])
        with torch.no_grad():
            found.append(100 * (net.module(inputs).argmax(1).numpy() == images.val.labels).mean())
    assert notes == [f"validation accuracy: {found[0]:.1f} % student, {found[1]:.1f} % peers"]


def test_a_peer_that_is_not_finite_in_the_end_is_said(env, monkeypatch, small_net):
    def teach(net, env, training, losses):
        with torch.no_grad():
            next(losses[-1].peers[0].parameters()).fill_(float("nan"))

    monkeypatch.setattr(mutual, "teach", teach)
    with pytest.raises(TrainingError, match=r"stage mutual: a value of peer 1's features\.0\.0\.weight is not finite"):
        Mutual(training=BRIEF)(small_net(), env)


def test_a_peer_that_cannot_see_these_images_is_said(env, small_net):
    with pytest.raises(ModelError, match=r"peers\.1: plain_cnn cannot be built for images \(3, 16, 16\): its 6 widths"):
        Mutual(peers=(Tiny(), PlainCNN(widths=(8,) * 6)))(small_net(), env)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0}, r"mutual\.temperature\n\s+should be greater than 0, not 0"),
        ({"weight": -1}, "weight"),
        ({"peers": ["resnet81"]}, "Did you mean 'resnet18'"),
        ({"peer": []}, "Did you mean 'peers'"),
    ],
)
def test_bad_fields_are_named(fields, said):
    with pytest.raises(ValidationError, match=said):
        OneOf(STAGES).parse({"mutual": fields})


def test_peers_go_to_yaml_and_back():
    stage = OneOf(STAGES).parse({"mutual": {"peers": ["resnet18", {"plain_cnn": {"widths": [8]}}], "temperature": 3}})
    assert stage.peers[1] == PlainCNN(widths=(8,))
    assert OneOf(STAGES).parse(as_named(stage)) == stage


# Whole runs


def pipeline(**fields):
    training = {"epochs": 1, "batch_size": 16, "lr": 0.01}
    return tiny_pipeline(teacher=None, stages=[{"mutual": {"training": training} | fields}])


def test_peers_are_measured_beside_the_way_and_taken_over(tmp_path):
    two = {"peers": ["tiny", {"tiny": {"width": 8}}]}
    outcome = run(pipeline(**two), tmp_path)
    assert [row.net for row in outcome.report.rows] == ["baseline", "mutual"]
    assert [row.net for row in outcome.report.alternatives] == ["mutual-peer-1", "mutual-peer-2"]
    first, second = outcome.report.alternatives
    student = outcome.report.rows[1]
    assert (
        first.params
        == student.params
        > second.params
        == build(Spec(architecture=Tiny(width=8), classes=4, image=(3, 16, 16))).params
    )
    (curve,) = (tmp_path / "stages").glob("0-mutual-*/train.jsonl")
    assert set(json.loads(curve.read_text().splitlines()[0])["losses"]) == {"cross_entropy", "mutual"}
    before = {file: file.read_bytes() for file in (tmp_path / "models").rglob("*.onnx")}
    assert len(before) == 4
    run(pipeline(**two), tmp_path)
    last = (tmp_path / "events.jsonl").read_text().split('"started"')[-1]
    assert '"stage finished"' not in last
    assert before == {file: file.read_bytes() for file in (tmp_path / "models").rglob("*.onnx")}


def test_it_can_be_shown_and_rehearsed():
    shown = plan(pipeline())
    assert [(step.net, step.epochs) for step in shown.steps] == [("baseline", 1), ("mutual", 1)]
    (mutual,) = for_smoke(pipeline(peers=["tiny", "tiny"]), []).stages
    assert len(mutual.peers) == 2  # both have to be built and exported
