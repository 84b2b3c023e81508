"""Data that would flatter or mislead: counted in a warning that is true, and quickly."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

import compress.data.image_folder as image_folder
import compress.data.overlap as overlap
from compress.data import Data
from compress.data.base import InMemory, Split
from compress.data.image_folder import ImageFolder
from compress.data.overlap import remarks
from compress.data.synthetic import Synthetic
from compress.running.sources import load


@pytest.fixture
def clean() -> Data:
    return Synthetic(size=8, classes=4, samples=40)(0)


def pixels(split: Split) -> torch.Tensor:
    return split.images[np.arange(len(split))].clone()


def with_copies(data: Data, into: str, count: int, *, label: int | None = None) -> Data:
    """The data with the first training images also in another split, under their own label or a given one."""
    split: Split = getattr(data, into)
    images, labels = pixels(split), split.labels.copy()
    images[:count] = pixels(data.train)[:count]
    labels[:count] = data.train.labels[:count] if label is None else label
    return replace(data, **{into: Split(InMemory(images), labels)})


def test_nothing_is_said_of_good_data(clean: Data) -> None:
    assert [*remarks(clean)] == []


@pytest.mark.parametrize("count", [1, 7])
def test_test_images_in_the_training_set_are_counted(count: int, clean: Data) -> None:
    data = with_copies(clean, "test", count)
    expected = f"{count} of 40 test images stand in the training set too, pixel for pixel; the accuracy is flattered."
    assert [*remarks(data)] == [expected]
    # The same for a part of the images, as a smoke run has them.
    part = replace(data, test=data.test.take(np.arange(20)))
    assert [*remarks(part)] == [expected.replace("of 40", "of 20")]


def test_one_pixel_makes_another_image(clean: Data) -> None:
    data = with_copies(clean, "test", 3)
    pixels_of_test = pixels(data.test)
    pixels_of_test[:3, 0, 0, 0] ^= 1
    assert [*remarks(replace(data, test=Split(InMemory(pixels_of_test), data.test.labels)))] == []


def test_validation_images_in_the_training_set_are_counted(clean: Data) -> None:
    assert [*remarks(with_copies(clean, "val", 2))] == [
        "2 of 40 validation images stand in the training set too, pixel for pixel; the best epoch is chosen by them."
    ]


def test_an_image_under_two_labels_is_counted(clean: Data) -> None:
    copied = with_copies(clean, "test", 4, label=3)
    others = int((clean.train.labels[:4] != 3).sum())
    said = [*remarks(copied)]
    assert len(said) == 2
    assert said[1].startswith(f"{others} images stand in the data under different labels, such as ")
    images = pixels(clean.train)
    images[1] = images[0]
    labels = clean.train.labels.copy()
    labels[:2] = 0, 2
    assert [*remarks(replace(clean, train=Split(InMemory(images), labels)))] == [
        "1 image stands in the data under different labels, such as 0 and 2: one of them is wrong."
    ]


def test_classes_that_a_split_lacks_are_named(clean: Data) -> None:
    kept = np.flatnonzero(np.isin(clean.test.labels, (0, 2)))
    assert [*remarks(replace(clean, test=clean.test.take(kept)))] == [
        "2 of 4 classes have no test image (1, 3): accuracy leaves them out."
    ]
    alone = np.flatnonzero(clean.val.labels == 1)
    many = replace(clean, val=clean.val.take(alone), class_names=("a", "b", "c", "d"))
    assert [*remarks(many)] == ["3 of 4 classes have no validation image (a, c, d): accuracy leaves them out."]


@pytest.mark.parametrize(("rare", "warned"), [(1, True), (2, False)])
def test_counts_that_are_far_apart_are_told(rare: int, warned: bool) -> None:
    data = Synthetic(size=8, classes=4, samples=40)(0)
    kept = np.concatenate([np.flatnonzero(data.train.labels != 2), np.flatnonzero(data.train.labels == 2)[:rare]])
    said = [*remarks(replace(data, train=data.train.take(np.sort(kept))))]
    assert (
        said == ["The classes are uneven: 0 has 10 training images, 2 1; rare classes will hardly be learnt."] * warned
    )


# Images in files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of eight images a split, in files that stay on disk."""
    monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                # Uncompressed, so that all have the same size.
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                image.save(tmp_path / split / name / f"{i}.bmp")
    return tmp_path


def said_of(folder: Path, budget_s: float = 60) -> list[str]:
    return [*remarks(ImageFolder(path=folder, size=16)(0), budget_s)]


def copy(folder: Path, source: str, target: str) -> None:
    (folder / target).write_bytes((folder / source).read_bytes())


def test_files_that_are_the_same_are_counted(folder: Path) -> None:
    assert said_of(folder) == []
    copy(folder, "train/cat/0.bmp", "test/cat/3.bmp")
    copy(folder, "train/cat/1.bmp", "test/cat/another name.bmp")
    copy(folder, "train/dog/1.bmp", "val/dog/1.bmp")
    assert said_of(folder) == [
        "2 of 17 test images stand in the training set too, byte for byte; the accuracy is flattered.",
        "at least 1 of 16 validation images stand in the training set too, byte for byte; the best epoch is chosen by "
        "them.",
    ]


def test_files_under_two_labels_are_counted(folder: Path) -> None:
    copy(folder, "train/cat/0.bmp", "test/dog/3.bmp")
    said = said_of(folder)
    assert said[1:] == [
        "at least 1 image stands in the data under different labels, such as cat and dog: one of them is wrong."
    ]


def test_files_that_differ_at_their_start_alone_are_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "TAIL_BYTES", 64)
    copy(folder, "train/cat/0.bmp", "test/cat/3.bmp")
    with (folder / "test/cat/3.bmp").open("r+b") as file:
        file.seek(60)
        was = file.read(1)
        file.seek(60)
        file.write(bytes([was[0] ^ 1]))
    assert said_of(folder) == []


def test_files_are_compared_within_a_budget_of_time(folder: Path) -> None:
    copy(folder, "train/cat/0.bmp", "test/cat/3.bmp")
    began = time.monotonic()
    assert said_of(folder, budget_s=-1) == []
    assert time.monotonic() - began < 1


def test_a_sample_stands_for_very_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "SAMPLE", 4)
    for i in range(8):
        copy(folder, f"train/cat/{i}.bmp", f"test/cat/{i}.bmp")
    (said,) = said_of(folder)
    assert said.startswith("2 of 4 test images stand in the training set too")


# In a run


def test_the_warnings_reach_the_pipelines_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(40) % 4}
    arrays |= {"test_images": images[:6], "test_labels": np.arange(6) % 4}
    np.savez(tmp_path / "d.npz", **arrays)
    data = {"npz": {"path": str(tmp_path / "d.npz"), "size": 16}}
    pipeline = tiny_pipeline(data=data, teacher=None, stages=["prune"])
    trained_on = load(pipeline).data
    shared = sum(
        any(np.array_equal(image, each) for each in pixels(trained_on.train).numpy())
        for image in images[:6].transpose(0, 3, 1, 2)
    )
    assert shared > 0
    assert trained_on.warnings == (
        f"{shared} of 6 test images stand in the training set too, pixel for pixel; the accuracy is flattered.",
    )


def test_names_of_classes_are_shown_as_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.array(["\x1b[31mred", "a\nb", "x\u202ey", "plain"])
    images = rng.integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=np.arange(80) % 4, class_names=names)
    data = {"npz": {"path": str(tmp_path / "d.npz"), "size": 16}}
    pipeline = tiny_pipeline(data=data, teacher=None, stages=["prune"])
    assert load(pipeline).data.class_names == ("�[31mred", "a b", "x�y", "plain")


def test_the_digits_have_no_image_twice() -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images
    assert len({image.tobytes() for image in images}) == len(images)
    pipeline = tiny_pipeline(data={"digits": {"size": 16}}, teacher=None, stages=["prune"])
    assert load(pipeline).data.warnings == ()


def test_looking_costs_little() -> None:
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = torch.from_numpy(rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
        return Split(InMemory(images), np.arange(count) % 4)

    few = Synthetic(size=8, classes=4, samples=40)(0)
    data = replace(few, train=split(4500), val=split(500), test=split(1000))  # a tenth of CIFAR
    began = time.process_time()
    assert [*remarks(data)] == []
    assert time.process_time() - began < 0.5
