"""What may go wrong between a pipeline file and its teachers, refused or done right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from test_objective import CPU, tiny
from test_sources import Seeing, numbered, pipeline
from tiny import raw_pipeline, tiny_pipeline

from compress.data.base import InMemory
from compress.errors import ConfigError, ResourceError
from compress.losses import KD, CrossEntropy
from compress.pipeline import parsed
from compress.recipe import Training
from compress.running.runner import run
from compress.running.smoke import for_smoke
from compress.stages import Distill
from compress.training.objective import Tutor
from compress.training.train import Progress, fit


def test_images_without_labels_do_not_thin_out_a_training_on_labels_alone(images):
    data = replace(images, unlabelled=InMemory(images.val.images[np.arange(64)]))
    students = []
    for each in (images, data):
        student = tiny().train()
        told = []
        fit(
            student,
            each,
            Training(epochs=2, batch_size=16, lr=0.01),
            (CrossEntropy(),),
            device=CPU,
            seed=0,
            progress=Progress("x", told.append),
        )
        students.append(student.state_dict())
        assert [e["steps"] for e in told if e["event"] == "epoch"] == [4, 4]
    assert all(torch.equal(v, students[1][k]) for k, v in students[0].items())


def test_a_teacher_may_see_the_students_own_images_unaugmented():
    data = numbered(16)
    student, teacher = Seeing(data), Seeing(data)
    fit(
        student,
        data,
        Training(epochs=1, batch_size=8, lr=1e-9, augment="shift"),
        (KD(),),
        tutors=[Tutor(teacher, augmented=False)],
        device=CPU,
        seed=0,
        progress=Progress("x"),
    )
    (taught,) = [x for _, x in teacher.seen if x.any()]
    order = ((taught.amax((1, 2, 3)) * 255 - 20) / 30).round().long()
    assert torch.equal(taught, data.inputs(data.train.images[order.numpy()]))


def test_a_resolved_phase_comes_back():
    raw = {
        "distill": {
            "training": {"epochs": 2, "bn_l1": 0.1, "compile": "off"},
            "phases": [{"training": {"bn_l1": 0, "compile": "auto"}}, {}],
        }
    }
    p = tiny_pipeline(stages=[raw])
    q = parsed(yaml.safe_load(p.as_yaml()), "x")
    assert p == q
    assert [t.training.bn_l1 for t in q.stages[0].phases] == [0, 0.1]


def test_phases_share_what_the_stage_gives():
    assert Distill(training=Training(epochs=3), phases=[{}]).phases[0].training.epochs == 3


def test_a_phase_without_losses_is_refused():
    with pytest.raises(ConfigError, match=r"stages\.0\.distill\.phases\.0\.losses: should have at least 1 item"):
        tiny_pipeline(stages=[{"distill": {"phases": [{"losses": []}]}}])


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"std": [0]}, r"teacher\.view\.std\.0: should be greater than 0"),
        ({"mean": [2]}, r"teacher\.view\.mean\.0: should be less than or equal to 1"),
    ],
)
def test_a_view_is_checked_as_data_are(view, said):
    with pytest.raises(ConfigError, match=said):
        pipeline(view)


def test_one_number_stands_for_all_channels():
    assert pipeline({"std": 0.5}).teacher[0].view.std == (0.5,)


def test_a_view_takes_over_what_published_weights_want():
    p = pipeline(
        teacher={"model": {"resnet18": {"weights": "IMAGENET1K_V1"}}, "view": {"size": 64, "resize": "squash"}}
    )
    view = p.teacher[0].view
    assert view.mean == (0.485, 0.456, 0.406)
    assert view.resize == "squash"
    assert p.data.mean is None
    assert parsed(yaml.safe_load(p.as_yaml()), "x") == p
    grey = (
        pipeline(teacher={"model": {"resnet18": {"weights": "IMAGENET1K_V1"}}, "view": {"channels": 1}}).teacher[0].view
    )
    assert grey.mean == pytest.approx((np.mean([0.485, 0.456, 0.406]),))


def test_a_disk_too_small_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.stages.soft_labels.free_bytes", lambda folder: 3000)
    teacher = raw_pipeline()["teacher"]
    p = pipeline(
        teacher=[teacher, teacher | {"view": {"size": 24}}, teacher | {"view": {"augmented": False}}],
        stages=[{"distill": {"targets": "cached", "training": {"epochs": 1}}}],
    )
    said = r"2 teachers' logits on 25 views of each of 64 images need 25,600 bytes, and 3,000 are free in .*at most 1"
    with pytest.raises(ResourceError, match=said):
        run(p, tmp_path / "r")
    assert not (tmp_path / "r" / "stages").exists()


def test_a_smoke_run_keeps_few_views():
    def views(**keys):
        return for_smoke(pipeline(stages=[{"distill": keys}]), []).stages[0].views

    found = [views(targets="cached"), views(views=8), views(views=1), views(), views(targets="online")]
    assert found == [
        2,
        2,
        1,
        None,
        None,
    ]
