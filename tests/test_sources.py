"""All images of a run: the student's, those without labels beside them, and each teacher's own view of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import yaml
from PIL import Image
from tiny import raw_pipeline, tiny_pipeline

from compress.augment import Change, draw
from compress.data.base import Data, InMemory, Preprocessing, Split
from compress.data.files import Files
from compress.data.unlabelled import Unlabelled
from compress.errors import DataError
from compress.losses import KD
from compress.pipeline import Pipeline, parsed
from compress.recipe import Training
from compress.running.making import Maker
from compress.running.runner import run
from compress.running.sources import Sources, load
from compress.training.objective import Tutor
from compress.training.train import Progress, fit

CPU = torch.device("cpu")
BRIEF = {"epochs": 1, "batch_size": 32, "lr": 0.01}
DATA = {"size": 16, "classes": 4, "samples": 64}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pipeline(view: dict[str, Any] | None = None, **changes: Any) -> Pipeline:
    teacher = {"model": {"tiny": {"width": 12}}, "training": BRIEF}
    if view is not None:
        teacher["view"] = view
    stages = [{"distill": {"training": BRIEF}}]
    return tiny_pipeline(**{"data": {"synthetic": DATA}, "teacher": teacher, "stages": stages} | changes)


def everything(split: Split) -> np.ndarray:
    return split.images[np.arange(len(split))].numpy()


def folder_of(path: Path, images: np.ndarray) -> Path:
    """A folder of pictures in two folders."""
    for i, pixels in enumerate(images):
        (path / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / str(i % 2) / f"{i:02}.png")
    return path


def archive(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# A teacher's own view


def test_without_a_view_the_teacher_sees_what_the_student_sees() -> None:
    found = load(pipeline())
    assert found.views == (None,)
    assert found.of_teacher(0) is found.data


def test_a_view_shows_the_same_examples_at_another_size() -> None:
    found = load(pipeline({"size": 32}))
    (view,) = found.views
    assert (view.image, found.data.image) == ((3, 32, 32), (3, 16, 16))
    assert view.classes == found.data.classes
    for mine, theirs in ((found.data.train, view.train), (found.data.val, view.val), (found.data.test, view.test)):
        assert mine.labels.tolist() == theirs.labels.tolist()
    # The same patterns: each large image is nearest to the small one of its own class, averaged over the noise.
    small = np.stack([everything(found.data.train)[found.data.train.labels == c].mean(0) for c in range(4)])
    large = np.stack([everything(view.train)[view.train.labels == c].mean(0) for c in range(4)])
    halved = large.reshape(4, 3, 16, 2, 16, 2).mean((3, 5))
    distance = ((small[:, None] - halved[None]) ** 2).mean((2, 3, 4))
    assert distance.argmin(1).tolist() == [0, 1, 2, 3]


def test_a_grey_view_has_a_mean_of_its_own() -> None:
    found = load(pipeline({"channels": 1}, data={"synthetic": DATA | {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}}))
    (view,) = found.views
    assert view.image == (1, 16, 16)
    colour, grey = everything(found.data.train).astype(float), everything(view.train).astype(float)
    luma = (np.array([0.299, 0.587, 0.114])[:, None, None] * colour).sum(1, keepdims=True)
    assert np.abs(luma - grey).max() <= 1
    assert view.mean == pytest.approx((grey.mean() / 255,))
    assert view.std == pytest.approx((grey.std() / 255,))
    assert found.data.mean == (0.4, 0.5, 0.6)


def test_a_view_may_have_mean_and_std_of_its_own() -> None:
    found = load(pipeline({"mean": [0.1], "std": [0.5, 0.4, 0.3]}))
    (view,) = found.views
    assert (view.mean, view.std) == ((0.1, 0.1, 0.1), (0.5, 0.4, 0.3))
    assert np.array_equal(everything(view.test), everything(found.data.test))
    expected = (everything(view.test)[:2] / 255 - 0.1) / np.array([0.5, 0.4, 0.3])[:, None, None]
    assert np.abs(view.inputs(view.test.images[np.arange(2)]).numpy() - expected).max() < 1e-5
    assert view.fingerprint != found.data.fingerprint


def test_a_smaller_source_has_the_same_examples_in_every_view() -> None:
    few = load(pipeline({"size": 8})).smaller(10)
    (view,) = few.views
    assert (len(few.data.train), len(view.train)) == (10, 10)
    assert few.data.train.labels.tolist() == view.train.labels.tolist()


def test_a_view_of_other_examples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.data.synthetic import Synthetic

    plain = Synthetic.__call__
    monkeypatch.setattr(Synthetic, "__call__", lambda self, seed: plain(self, seed + self.size))
    with pytest.raises(DataError) as caught:
        load(pipeline({"size": 8}))
    assert str(caught.value) == (
        "teacher tiny: its view shows other examples than the student's; a data set must give the same examples in the "
        "same order whatever their size"
    )


class Seeing(torch.nn.Module):
    """A net of a linear layer that remembers what it is fed, and whether that was in training."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(int(np.prod(data.image)), data.classes)
        self.seen: list[tuple[bool, torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, x.clone()))
        return self.layer(x.flatten(1))  # type: ignore[no-any-return]


def numbered(size: int) -> Data:
    """Eight images, each of one brightness of its own in all but the frame, which is black."""
    pixels = torch.zeros(8, 1, size, size, dtype=torch.uint8)
    inner = slice(size // 4, size - size // 4)
    pixels[:, :, inner, inner] = (torch.arange(8, dtype=torch.uint8) * 30 + 20)[:, None, None, None]
    split = Split(InMemory(pixels), np.arange(8) % 2)
    return Data(split, split, split, (1, size, size), ("a", "b"), (0.0,), (1.0,), f"numbered {size}", mirror=False)


@pytest.mark.parametrize("moved", [True, False])
def test_a_teacher_sees_the_same_image_moved_alike_or_as_it_is(moved: bool) -> None:
    data, view = numbered(16), numbered(32)
    student, teacher = Seeing(data), Seeing(view)
    training = Training(epochs=3, batch_size=8, lr=1e-9, augment="shift")
    tutor = Tutor(teacher, data=view, augmented=moved)
    fit(student, data, training, (KD(),), tutors=[tutor], device=CPU, seed=0, progress=Progress("x"))
    steps = [x for training, x in student.seen if training]
    taught = [x for _, x in teacher.seen if x.any()]  # but for the black images that shapes are found by
    assert len(steps) == len(taught) == 3
    for mine, theirs in zip(steps, taught, strict=True):
        assert torch.equal(mine.amax((1, 2, 3)), theirs.amax((1, 2, 3)))  # the same examples in the same order
        if moved:
            assert torch.equal(mine.repeat_interleave(2, 2).repeat_interleave(2, 3), theirs)
        else:
            order = ((mine.amax((1, 2, 3)) * 255 - 20) / 30).round().long()
            assert torch.equal(theirs, view.inputs(view.train.images[order.numpy()]))
    still = data.inputs(data.train.images[np.arange(8)]).sum(0)
    assert not torch.equal(torch.stack(steps).sum((0, 1)) / 3, still)  # the student's moved


def test_a_change_of_no_whole_pixels_is_rounded() -> None:
    change = Change("shift", 16, 3, offsets=torch.tensor([[0, 2, 4], [1, 2, 3]]))
    images = torch.arange(12 * 12, dtype=torch.uint8).reshape(1, 1, 12, 12).expand(3, 1, 12, 12)
    found = change.applied(images).numpy()
    for i, (row, column) in enumerate([(-2, -1), (0, 0), (2, 1)]):
        down, right = round(row * 12 / 16), round(column * 12 / 16)
        frame = np.pad(images[i, 0].numpy(), 2)
        assert np.array_equal(found[i, 0], frame[2 + down : 14 + down, 2 + right : 14 + right])
    free = draw("affine", False, 16, 3, torch.Generator().manual_seed(0))
    assert free.applied(images).shape == images.shape


@pytest.fixture(scope="module")
def seen_otherwise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pipeline]:
    """A whole run with a teacher that sees grey images twice as large."""
    longer = BRIEF | {"epochs": 6, "batch_size": 8}
    teacher = {"model": {"tiny": {"width": 12}}, "training": longer, "view": {"size": 32, "channels": 1}}
    found = pipeline(teacher=teacher, stages=[{"distill": {"training": longer}}], benchmark={"rounds": 1})
    out = tmp_path_factory.mktemp("views") / "run"
    run(found, out)
    return out, found


def test_the_teachers_file_takes_its_own_view(seen_otherwise: tuple[Path, Pipeline]) -> None:
    out, _ = seen_otherwise
    shapes = {}
    for name in ("teacher", "baseline", "distill"):
        (given,) = onnx.load(out / "models" / f"{name}.onnx").graph.input
        shapes[name] = [dim.dim_value for dim in given.type.tensor_type.shape.dim[1:]]
    assert shapes == {"teacher": [1, 32, 32], "baseline": [3, 16, 16], "distill": [3, 16, 16]}


def test_the_teachers_row_is_measured_on_its_own_view(seen_otherwise: tuple[Path, Pipeline]) -> None:
    out, given = seen_otherwise
    rows = {row["net"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    (view,) = load(given).views
    images = ((everything(view.test).astype(np.float32) / 255 - view.mean[0]) / view.std[0]).astype(np.float32)
    session = ort.InferenceSession(out / "models" / "teacher.onnx", providers=["CPUExecutionProvider"])
    predicted = session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1)
    right = 100 * (predicted == view.test.labels).mean()
    assert rows["teacher"]["top1_onnx"] == pytest.approx(right)
    assert rows["teacher"]["agreement"] == 100
    assert right > 50  # of four classes: it has learnt on what it is measured on
    metadata = {entry.key: entry.value for entry in onnx.load(out / "models" / "teacher.onnx").metadata_props}
    assert json.loads(metadata["mean"]) == pytest.approx(list(view.mean))


def test_test_images_are_those_of_the_student(seen_otherwise: tuple[Path, Pipeline]) -> None:
    with np.load(seen_otherwise[0] / "test.npz") as found:
        assert found["inputs"].shape == (64, 3, 16, 16)


# Images without labels


def test_a_folder_and_an_archive_give_the_same_images(tmp_path: Path) -> None:
    pixels = noise(6, 16, 16, 3)
    prep = Preprocessing(size=16)
    folder = Unlabelled(path=folder_of(tmp_path / "pictures", pixels))(prep)
    packed = Unlabelled(path=archive(tmp_path / "a.npz", images=pixels, other=np.zeros(3)))(prep)
    expected = pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(folder[np.arange(6)].numpy(), expected[[0, 2, 4, 1, 3, 5]])
    assert np.array_equal(packed[np.arange(6)].numpy(), expected)


def test_they_are_brought_to_the_datas_size_and_colours(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=noise(3, 20, 30))
    assert Unlabelled(path=path)(Preprocessing(size=16))[np.arange(3)].shape == (3, 3, 16, 16)
    grey = Unlabelled(path=folder_of(tmp_path / "b", noise(3, 20, 30, 3)))(Preprocessing(size=8, channels=1))
    assert grey[np.arange(3)].shape == (3, 1, 8, 8)


def test_large_folders_stay_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.data.unlabelled.IN_MEMORY_BYTES", 100)
    unlabelled = Unlabelled(path=folder_of(tmp_path / "a", noise(4, 16, 16, 3)))
    found = load(pipeline(unlabelled=unlabelled.model_dump(mode="json"))).data
    assert isinstance(found.unlabelled, Files)
    assert np.array_equal(found.unlabelled[np.array([1])].numpy()[0], noise(4, 16, 16, 3)[2].transpose(2, 0, 1))
    folder_of(tmp_path / "a", noise(6, 16, 16, 3))
    assert load(pipeline(unlabelled=unlabelled.model_dump(mode="json"))).data.fingerprint != found.fingerprint


def test_they_stand_beside_the_data_in_every_view(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=noise(5, 24, 24, 3))
    found = load(pipeline({"size": 24, "channels": 1}, unlabelled={"path": str(path)}))
    (view,) = found.views
    assert found.data.unlabelled[np.arange(5)].shape == (5, 3, 16, 16)
    assert view.unlabelled[np.arange(5)].shape == (5, 1, 24, 24)
    assert (found.data.samples, view.samples) == (69, 69)
    assert found.data.mean == load(pipeline()).data.mean  # of what is labelled alone


def test_other_images_are_another_fingerprint(tmp_path: Path) -> None:
    def key(**arrays: Any) -> str:
        return load(pipeline(unlabelled={"path": str(archive(tmp_path / "a.npz", **arrays))})).data.fingerprint

    pixels = noise(5, 16, 16, 3)
    first = key(images=pixels)
    assert first == key(images=pixels, more=np.zeros(2))
    changed = pixels.copy()
    changed[4, 3, 2, 1] ^= 1
    assert len({first, key(images=changed), key(images=pixels[:4]), load(pipeline()).data.fingerprint}) == 4


def test_test_images_among_them_are_said(tmp_path: Path) -> None:
    test = everything(load(pipeline()).data.test).transpose(0, 2, 3, 1)
    path = archive(tmp_path / "a.npz", images=np.concatenate([noise(5, 16, 16, 3), test[:3]]))
    (said,) = load(pipeline(unlabelled={"path": str(path)})).data.warnings
    assert said == ("3 of 64 test images stand among the unlabelled ones, pixel for pixel; the accuracy is flattered.")
    clean = archive(tmp_path / "b.npz", images=noise(5, 16, 16, 3))
    assert load(pipeline(unlabelled={"path": str(clean)})).data.warnings == ()


@pytest.mark.parametrize(
    ("images", "seen"),
    [
        (noise(3, 8, 8).astype(np.float32), r"float32 \(3, 8, 8\)"),
        (noise(3, 8), r"uint8 \(3, 8\)"),
        (noise(3, 8, 8, 2), r"uint8 \(3, 8, 8, 2\)"),
        (noise(0, 8, 8), r"uint8 \(0, 8, 8\)"),
        (noise(3, 0, 8), r"uint8 \(3, 0, 8\)"),
    ],
)
def test_arrays_of_other_forms_are_refused(images: np.ndarray, seen: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match=rf"unlabelled: .*a\.npz holds `images` of {seen}; they must be uint8"):
        Unlabelled(path=path)(Preprocessing(size=8))


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", train_images=noise(3, 8, 8))
    with pytest.raises(DataError, match=r"a\.npz holds no array `images`; it must be uint8"):
        Unlabelled(path=path)(Preprocessing(size=8))


@pytest.mark.parametrize("damage", ["text", "cut", "middle", "pickled", "npy"])
def test_an_archive_that_cannot_be_read_is_told(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    if damage == "text":
        path.write_text("no archive")
    elif damage == "npy":
        np.save(tmp_path / "a.npy", noise(3, 8, 8))
        (tmp_path / "a.npy").rename(path)
    elif damage == "pickled":
        np.savez(path, images=np.array([{}, 1], dtype=object))
    else:
        np.savez_compressed(path, images=noise(3, 64, 64))
        good = path.read_bytes()
        bad = good[: len(good) // 2] if damage == "cut" else good[:400] + bytes(200) + good[600:]
        path.write_bytes(bad)
    with pytest.raises(DataError, match=r"unlabelled: .*a\.npz (cannot be read as|is not) an \.npz archive"):
        Unlabelled(path=path)(Preprocessing(size=8))


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unlabelled: there is no .*gone; give `path` a folder of images or an .npz"):
        load(pipeline(unlabelled={"path": str(tmp_path / "gone")}))


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(DataError, match=r"unlabelled: .* holds no images; give `path` a folder with some"):
        load(pipeline(unlabelled={"path": str(tmp_path)}))


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder_of(tmp_path, noise(2, 8, 8, 3))
    (tmp_path / "0" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 image file cannot be read; repair or remove:\n  .*bad\.png"):
        load(pipeline(unlabelled={"path": str(tmp_path)}))


# Keys


def keys(given: Pipeline, out: Path) -> dict[str, str]:
    """The keys of all nets of a run."""
    maker = Maker(given, load(given), out, CPU, lambda event: None, [None] * len(given.stages))
    stages = {f"{i}-{stage.name}": key for i, (stage, key) in enumerate(zip(given.stages, maker.keys(), strict=True))}
    teachers = dict(zip(given.teacher_names, maker.teacher_keys, strict=True))
    return {**teachers, "baseline": maker.baseline_key, **stages}


def changed(first: dict[str, str], second: dict[str, str]) -> set[str]:
    return {name for name in first if first[name] != second.get(name)}


TWO_STAGES = [{"distill": {"training": BRIEF}}, {"prune": {"keep_macs": 0.6, "training": BRIEF}}]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"view": {"size": 32}}, {"teacher", "0-distill", "1-prune"}),
        ({"view": {"mean": [0.5], "augmented": False}}, {"teacher", "0-distill", "1-prune"}),
        ({"distill": {"blend": "confidence"}}, {"0-distill", "1-prune"}),
        ({"distill": {"targets": "cached"}}, {"0-distill", "1-prune"}),
        ({"distill": {"views": 4}}, {"0-distill", "1-prune"}),
        ({"distill": {"phases": [{}]}}, {"0-distill", "1-prune"}),
        ({"distill": {"blend": "mean", "targets": "auto", "views": None, "phases": []}}, set()),
        ({"view": None}, set()),
        ({}, set()),
    ],
)
def test_keys_change_with_what_they_depend_on(change: dict[str, Any], expected: set[str], tmp_path: Path) -> None:
    first = keys(pipeline(stages=TWO_STAGES), tmp_path)
    stages = [{"distill": {"training": BRIEF} | change.get("distill", {})}, TWO_STAGES[1]]
    second = pipeline(change.get("view"), stages=stages)
    assert changed(first, keys(second, tmp_path)) == expected


def test_a_view_that_is_not_augmented_is_another_lesson(tmp_path: Path) -> None:
    """The teacher is the same net, and says other things."""
    first, second = (keys(pipeline({"size": 32, "augmented": each}), tmp_path) for each in (True, False))
    assert changed(first, second) == {"0-distill"}


def test_images_without_labels_change_all_keys(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=noise(5, 16, 16, 3))
    first, second = keys(pipeline(), tmp_path), keys(pipeline(unlabelled={"path": str(path)}), tmp_path)
    assert changed(first, second) == set(first)


def test_two_teachers_alike_have_keys_of_their_own_and_the_first_keeps_its(tmp_path: Path) -> None:
    one = raw_pipeline()["teacher"]
    first = keys(pipeline(teacher=one), tmp_path)
    both = keys(pipeline(teacher=[one, one]), tmp_path)
    assert len({both["teacher"], both["teacher-2"], first["teacher"]}) == 2
    assert both["teacher"] == first["teacher"]
    assert changed(first, both) == {"0-distill"}
    assert keys(pipeline(teacher=[one]), tmp_path) == first


def test_the_new_keys_come_back_from_the_file_that_is_written(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=noise(5, 16, 16, 3))
    teachers = [{"model": "tiny", "view": {"size": 32, "augmented": False}}, {"model": "tiny"}]
    given = pipeline(teacher=teachers, unlabelled={"path": str(path)})
    written = given.as_yaml()
    again = parsed(yaml.safe_load(written), "again")
    assert again == given
    assert keys(again, tmp_path) == keys(given, tmp_path)
    assert isinstance(load(given), Sources)
