"""Soft labels of teachers that run beside the student, or that are kept on disk: which, and that both teach alike."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny

from compress.data.base import Data, InMemory
from compress.errors import ConfigError, ResourceError
from compress.losses import KD, CrossEntropy
from compress.losses.attention import Attention
from compress.losses.self_distillation import SelfDistillation
from compress.net import Net, Spec, build
from compress.recipe import Training
from compress.stages import Distill
from compress.stages.base import Env, teach
from compress.stages.soft_labels import MOST_BYTES, SoftLabels, content
from compress.training.predicting import predict

CPU = torch.device("cpu")
SOFT = (CrossEntropy(weight=0.1), KD())
VIEWS = 25  # of images of 16 pixels that are shifted by up to two


def net(width: int = 8, seed: int = 0) -> Net:
    return build(Spec(architecture=Tiny(width=width), classes=4, image=(3, 16, 16)), seed)


def sharp(width: int = 12, seed: int = 5) -> Net:
    """A teacher that has something to say."""
    teacher = net(width, seed)
    teacher.module.head.weight.data *= 20
    return Net(teacher.spec, teacher.module.eval())


def env(data: Data, *teachers: Net, out: Path | None = None, **more: Any) -> Env:
    keys = tuple(f"t{i}" for i in range(len(teachers)))
    return Env(data=data, teachers=teachers, device=CPU, seed=3, stage="distill", teacher_keys=keys, out=out, **more)


def training(**keys: Any) -> Training:
    return Training(**{"epochs": 2, "batch_size": 16, "lr": 0.01} | keys)


def logits(student: Net, data: Data) -> np.ndarray:
    return predict(student.module, data, data.test, CPU).numpy()


class Asked:
    """Counts the images that a net is given."""

    def __init__(self, teacher: Net) -> None:
        self.images = 0
        teacher.module.register_forward_pre_hook(self.count)

    def count(self, _: Any, taken: tuple[torch.Tensor, ...]) -> None:
        self.images += len(taken[0])


# What `auto`, `online` and `cached` come to


@pytest.mark.parametrize(
    ("soft", "losses", "keys", "kept"),
    [
        # Each view is looked at once to be kept, and each image once an epoch beside the student.
        (SoftLabels(), SOFT, {"epochs": VIEWS}, False),
        (SoftLabels(), SOFT, {"epochs": VIEWS + 1}, True),
        (SoftLabels(), SOFT, {"epochs": 2, "augment": "none"}, True),
        (SoftLabels(), SOFT, {"epochs": 1, "augment": "none"}, False),
        (SoftLabels(epochs=26), SOFT, {"epochs": 2}, True),  # of all phases together
        (SoftLabels(epochs=2), SOFT, {"epochs": 26}, False),
        (SoftLabels(), SOFT, {"epochs": 26, "augment": "affine"}, False),
        (SoftLabels(), SOFT, {"epochs": 26, "augment": "crop_flip"}, False),
        (SoftLabels(), (*SOFT, Attention(layers=-1)), {"epochs": 26}, False),
        (SoftLabels(), (*SOFT, SelfDistillation()), {"epochs": 26}, True),  # whose layers are the student's
        (SoftLabels(), (CrossEntropy(),), {"epochs": 26}, False),
        (SoftLabels("online"), SOFT, {"epochs": 26}, False),
        (SoftLabels("cached"), SOFT, {"epochs": 1}, True),
        (SoftLabels("cached"), SOFT, {"epochs": 0}, False),
        (SoftLabels("cached"), (CrossEntropy(),), {"epochs": 1}, False),
        (SoftLabels(views=2), SOFT, {"epochs": 1}, True),
        # Stages behind a distill stage do as it does where they can.
        (SoftLabels("cached", asked=False), SOFT, {"epochs": 1}, True),
        (SoftLabels("cached", asked=False), (Attention(layers=-1),), {"epochs": 1}, False),
        (SoftLabels("cached", asked=False), SOFT, {"epochs": 1, "augment": "affine"}, False),
        (SoftLabels("online", asked=False), SOFT, {"epochs": 26}, False),
    ],
)
def test_what_is_kept(images: Data, soft: SoftLabels, losses: Any, keys: Any, kept: bool) -> None:
    assert soft.kept(losses, training(**keys), images) is kept


def test_auto_keeps_no_more_than_a_disk_bears(images: Data) -> None:
    class Many(InMemory):
        def __len__(self) -> int:
            return MOST_BYTES // (VIEWS * 4 * 2) + 1 - 64

    many = replace(images, unlabelled=Many(images.val.images[np.arange(2)]))
    assert not SoftLabels().kept(SOFT, training(epochs=26), many)
    assert SoftLabels("cached").kept(SOFT, training(epochs=26), many)


def test_features_cannot_be_kept(images: Data) -> None:
    losses = (*SOFT, Attention(layers=-1))
    for soft in (SoftLabels("cached"), SoftLabels(views=2)):
        with pytest.raises(ConfigError) as caught:
            soft.kept(losses, training(), images)
        assert str(caught.value) == (
            "targets: attention looks at the teacher's layers, of which nothing is kept; use targets: online"
        )


@pytest.mark.parametrize("augment", ["affine", "crop_flip"])
def test_views_without_end_cannot_be_kept(images: Data, augment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SoftLabels("cached").kept(SOFT, training(augment=augment), images)
    assert str(caught.value) == (
        f"targets: augment '{augment}' has no end of views to keep the teacher's outputs on; use augment: shift or "
        "shift_flip, or targets: online"
    )


@pytest.mark.parametrize(
    ("soft", "losses", "epochs", "asked"),
    [
        (SoftLabels(), SOFT, 4, 4),
        (SoftLabels(epochs=9), SOFT, 4, 9),
        (SoftLabels(epochs=9, asked=False), SOFT, 4, 4),
        (SoftLabels(), SOFT, 26, VIEWS),
        (SoftLabels(views=3), SOFT, 4, 3),
        (SoftLabels(views=300), SOFT, 4, VIEWS),
        (SoftLabels(views=3, asked=False), SOFT, 4, 0),
        (SoftLabels("cached"), (CrossEntropy(),), 4, 0),
    ],
)
def test_how_often_a_teacher_runs_for_an_image(images, soft, losses, epochs, asked) -> None:
    assert soft.asked_per_image(losses, training(epochs=epochs), images) == asked


def test_what_happens_is_noted_with_the_files_size(images: Data, tmp_path: Path) -> None:
    notes: list[str] = []
    for targets, views in (("online", None), ("cached", None), ("auto", 3)):
        stage = Distill(targets=targets, views=views, training=training(epochs=1))
        stage(net(), env(images, sharp(), out=tmp_path / str(views), note=notes.append))
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).rglob("*.targets")) for name in ("None", "3")]
    assert sizes == [64 * VIEWS * 4 * 2, 64 * 3 * (4 + 4 + 8)]  # half precision; an index, four bytes, their scale
    assert notes == [
        "soft labels: the teacher runs beside the student",
        f"soft labels: {VIEWS} views of each image kept on disk (0.0 MB)",
        "soft labels: 3 views of each image kept on disk (0.0 MB)",
    ]


# Both teach the same


@pytest.mark.parametrize("augment", ["shift", "none"])
def test_a_student_of_kept_outputs_is_the_one_of_the_teacher_itself(images: Data, tmp_path: Path, augment: str) -> None:
    students = []
    for targets in ("online", "cached"):
        stage = Distill(targets=targets, training=training(augment=augment))
        students.append(logits(stage(net(), env(images, sharp(), out=tmp_path)), images))
    untaught = Distill(losses=(CrossEntropy(),), training=training(augment=augment))(net(), env(images))
    apart = np.abs(students[0] - students[1]).max()
    assert 0 < apart < 0.01
    assert np.abs(students[0] - logits(untaught, images)).max() > 20 * apart


def test_several_teachers_and_images_without_labels_are_kept_too(images: Data, tmp_path: Path) -> None:
    data = replace(images, unlabelled=InMemory(images.val.images[np.arange(20)]), fingerprint="more")
    teachers, students = [sharp(), sharp(6, seed=6)], []
    for targets in ("online", "cached"):
        stage = Distill(targets=targets, blend="confidence", training=training())
        students.append(logits(stage(net(), env(data, *teachers, out=tmp_path)), data))
    assert 0 < np.abs(students[0] - students[1]).max() < 0.01
    assert [path.stat().st_size for path in tmp_path.rglob("*.targets")] == [84 * VIEWS * 4 * 2] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_of_few_views_the_student_sees_no_others(images: Data, tmp_path: Path, count: int) -> None:
    seen: set[bytes] = set()
    student = net()
    handle = student.module.register_forward_pre_hook(
        lambda module, taken: seen.update(each.numpy().tobytes() for each in taken[0]) if module.training else None
    )
    teach(student, env(images, sharp(), sharp(6, seed=6), out=tmp_path), training(epochs=12), SOFT,
          soft_labels=SoftLabels(views=count))  # fmt: skip
    handle.remove()
    # Two of an image's 25 views are seldom the same pixels, and twelve epochs seldom miss one of two.
    assert 64 * count - 6 <= len(seen) <= 64 * count


def test_few_views_are_the_same_for_several_teachers_and_seeds(images: Data, tmp_path: Path) -> None:
    soft = SoftLabels(views=4)
    for seed in (3, 4):
        teach(net(), replace(env(images, sharp(), sharp(6, seed=6), out=tmp_path), seed=seed), training(), SOFT,
              soft_labels=soft)  # fmt: skip
    heads = {path.read_bytes()[: 64 * 4 * 4] for path in tmp_path.rglob("*.targets")}
    assert len([*tmp_path.rglob("*.targets")]) == 2
    assert len(heads) == 1


def test_a_teacher_that_sees_images_as_they_are_runs_beside(images: Data, tmp_path: Path) -> None:
    teacher = sharp()
    asked = Asked(teacher)
    seen = env(images, teacher, out=tmp_path, views=(images,), augmented=(False,))
    teach(net(), seen, training(), SOFT, soft_labels=SoftLabels("cached"))
    assert asked.images >= 2 * 64
    assert not [*tmp_path.rglob("*.targets")]


# The files


def taught(data: Data, teacher: Net, out: Path, warnings: list[str] | None = None, **keys: Any) -> int:
    """How many images the teacher is asked for."""
    asked = Asked(teacher)
    soft = SoftLabels("cached", keys.pop("views", None))
    warn = [].append if warnings is None else warnings.append
    teach(net(), env(data, teacher, out=out, warn=warn), training(epochs=1, **keys), SOFT, soft_labels=soft)
    return asked.images


SHAPES = 2 * 2  # images by which an objective finds the shapes of a teacher's outputs


def test_what_is_there_is_not_asked_for_again(images: Data, tmp_path: Path) -> None:
    assert taught(images, sharp(), tmp_path) == 64 * VIEWS + SHAPES
    assert taught(images, sharp(), tmp_path) == SHAPES
    assert taught(images, sharp(), tmp_path, lr=0.1, label_smoothing=0.1) == SHAPES


def test_what_changes_a_teachers_answers_is_asked_for_again(images: Data, tmp_path: Path) -> None:
    taught(images, sharp(), tmp_path)
    assert taught(images, sharp(), tmp_path, views=3) == 64 * 3 + SHAPES
    assert taught(images, sharp(), tmp_path, augment="none") == 64 + SHAPES
    assert taught(replace(images, fingerprint="other"), sharp(), tmp_path) == 64 * VIEWS + SHAPES
    again = sharp()
    again.module.head.bias.data[0] += 1  # the same recipe gives other weights on a GPU
    assert taught(images, again, tmp_path) == 64 * VIEWS + SHAPES


def test_a_hash_of_weights_changes_with_any_of_them() -> None:
    assert content(sharp().module) == content(sharp().module)
    others = [sharp() for _ in range(3)]
    others[0].module.stem[0].weight.data[0, 0, 0, 0] += 1e-6
    others[1].module.back[1].running_var[3] += 1e-6
    others[2].module.back[1].num_batches_tracked += 1
    assert len({content(each.module) for each in (sharp(), *others)}) == 4
    assert content(sharp().module.to(memory_format=torch.channels_last)) == content(sharp().module)


@pytest.mark.parametrize("damage", ["cut", "flip", "swap"])
def test_a_file_that_is_not_what_it_was_is_made_again_and_that_is_said(images, tmp_path, damage) -> None:
    taught(images, sharp(), tmp_path)
    (file,) = tmp_path.rglob("*.targets")
    good = file.read_bytes()
    if damage == "cut":
        os.truncate(file, 1000)
    elif damage == "flip":
        file.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    else:
        taught(images, sharp(6, seed=9), tmp_path)
        (other,) = set(tmp_path.rglob("*.targets")) - {file}
        for ending in ("", ".json"):
            Path(f"{other}{ending}").replace(f"{file}{ending}")
    warnings: list[str] = []
    assert taught(images, sharp(), tmp_path, warnings) == 64 * VIEWS + SHAPES
    (said,) = warnings
    assert said.startswith(str(file))
    assert said.endswith("; the teacher's outputs are computed again")
    assert file.read_bytes() == good


def test_a_disk_too_small_is_said_before_the_teacher_is_asked(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("compress.training.target_files.free_bytes", lambda folder: 5000)
    teacher = sharp()
    asked = Asked(teacher)
    student = net()
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    with pytest.raises(ResourceError, match=rf"need {64 * VIEWS * 8:,} bytes, and 5,000 are free.*`views` to at most"):
        Distill(targets="cached", training=training())(student, env(images, teacher, out=tmp_path))
    assert asked.images == 0
    assert ResourceError.exit_code == 6
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_where_there_is_no_folder_the_teacher_runs_beside(images: Data) -> None:
    teacher = sharp()
    asked = Asked(teacher)
    teach(net(), env(images, teacher), training(epochs=1), SOFT, soft_labels=SoftLabels("cached"))
    assert asked.images == 64 + SHAPES
