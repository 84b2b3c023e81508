from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data import InMemory, MissingData, Preprocessing, image_folder
from compress.data.files import Files
from compress.data.image_folder import ImageFolder
from compress.data.pictures import read
from compress.errors import DataError


def everything(split):
    return split.images[np.arange(len(split))].numpy()


def folder(root, counts, size=(10, 12), seed=0):
    """PNG files of noise: `counts` maps a folder such as train/cat to a number of images."""
    rng = np.random.default_rng(seed)
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / place / f"{n:03}.png")
    return ImageFolder(path=root, size=16)


FULL = {"train/cat": 6, "train/dog": 5, "val/cat": 2, "val/dog": 2, "test/cat": 3, "test/dog": 3}


def test_image_folder_with_three_splits(tmp_path):
    data = folder(tmp_path, FULL)(0)
    assert data.class_names == ("cat", "dog")
    assert [s.labels.tolist() for s in (data.train, data.val, data.test)] == [
        [0] * 6 + [1] * 5,
        [0, 0, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]
    expected = read(str(tmp_path / "test" / "dog" / "001.png"), Preprocessing(size=16))
    np.testing.assert_array_equal(everything(data.test)[4], expected)
    assert data.warnings == ()
    assert not data.embedded


def test_image_folder_default_size():
    assert ImageFolder(path=Path("x")).size == 224


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Train", "validation", "TEST")])
def test_image_folder_other_names_of_splits(tmp_path, names):
    data = folder(tmp_path, {f"{name}/{label}": 3 for name in names for label in ("a", "b")})(0)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)


@pytest.mark.parametrize("prefix", ["train/", ""])
def test_image_folder_without_val_and_test_is_split(tmp_path, prefix):
    data = folder(tmp_path, {f"{prefix}{label}": 20 for label in ("a", "b", "c")})(0)
    counts = [np.bincount(s.labels).tolist() for s in (data.train, data.val, data.test)]
    assert counts == [[14] * 3, [2] * 3, [4] * 3]
    images = {image.tobytes() for s in (data.train, data.val, data.test) for image in everything(s)}
    assert len(images) == 60


def test_image_folder_without_val_leaves_test_alone(tmp_path):
    data = folder(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3})(0)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)


def test_image_folder_follows_links_and_looks_into_folders_below(tmp_path):
    folder(tmp_path / "far", {"cats/old": 2, "cats/new": 3})
    folder(tmp_path / "near", {"train/cat": 4, "train/dog": 4, "test/cat": 1, "test/dog": 1})
    (tmp_path / "near/train/cat/more").symlink_to(tmp_path / "far/cats", target_is_directory=True)
    (tmp_path / "far/cats/loop").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "near/train/dog/link.png").symlink_to(tmp_path / "near/train/dog/000.png")
    data = ImageFolder(path=tmp_path / "near", size=8)(0)
    assert np.bincount(np.concatenate([data.train.labels, data.val.labels])).tolist() == [9, 5]


def test_image_folder_mixes_every_kind_of_file(tmp_path):
    folder(tmp_path, FULL)
    cat = tmp_path / "train" / "cat"
    Image.new("L", (9, 9), 7).save(cat / "grey.bmp")
    Image.new("CMYK", (9, 9)).save(cat / "print.jpeg")
    Image.new("P", (9, 9)).save(cat / "palette.GIF")
    Image.new("RGBA", (9, 9)).save(cat / "clear.webp")
    assert len(ImageFolder(path=tmp_path, size=8)(0).train) == 15


def test_image_folder_says_what_it_left_out(tmp_path):
    dataset = folder(tmp_path, FULL)
    (tmp_path / "train/cat/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/notes.txt").write_text("x")
    (tmp_path / "test/dog/labels.csv").write_text("x")
    (warning,) = dataset(0).warnings
    assert warning == "Left out, being no images by their suffix: notes.txt and 1 more."


def test_image_folder_missing(tmp_path):
    with pytest.raises(MissingData, match=r"there is no folder .*gone; give `path` a folder with train/<class>/"):
        ImageFolder(path=tmp_path / "gone")(0)


def test_image_folder_that_is_a_file(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"x.zip is an archive; unpack it, and give a folder with"):
        ImageFolder(path=tmp_path / "x.zip")(0)


def test_image_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(DataError, match=f"{tmp_path} cannot be read: permission denied"):
        ImageFolder(path=tmp_path)(0)


def test_image_folder_without_classes(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "lone.png")
    with pytest.raises(DataError, match="has no class folders; put each class's images into its own"):
        ImageFolder(path=tmp_path)(0)


def test_image_folder_without_train(tmp_path):
    with pytest.raises(DataError, match="has test/ but no train/; put the training images into train/<class>/"):
        folder(tmp_path, {"test/a": 1, "test/b": 1})(0)


def test_image_folder_with_two_vals(tmp_path):
    with pytest.raises(DataError, match="has both val/ and validation/; keep one of them"):
        folder(tmp_path, {"train/a": 1, "val/a": 1, "validation/a": 1})(0)


def test_image_folder_with_an_empty_class(tmp_path):
    dataset = folder(tmp_path, FULL | {"train/eel": 0, "val/eel": 1, "test/eel": 1})
    with pytest.raises(DataError, match=r"1 class folder has no images; add some.*\n  .*train/eel$"):
        dataset(0)


def test_image_folder_with_different_classes(tmp_path):
    with pytest.raises(DataError, match=r"train/eel has no counterpart in .*val; every split must have the same"):
        folder(tmp_path, FULL | {"train/eel": 3})(0)


def test_image_folder_with_a_class_only_in_test(tmp_path):
    with pytest.raises(DataError, match=r"test/eel has no counterpart in .*train; every split"):
        folder(tmp_path, FULL | {"test/eel": 3})(0)


def test_image_folder_with_too_few_images_to_split(tmp_path):
    with pytest.raises(DataError, match="there are no validation images; give some, or three or more training"):
        folder(tmp_path, {"a": 2, "b": 2})(0)


def test_unreadable_files_are_listed(tmp_path):
    dataset = folder(tmp_path, FULL)
    whole = (tmp_path / "test/dog/000.png").read_bytes()
    (tmp_path / "test/dog/000.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/cat/page.jpg").write_text("<html>")
    (tmp_path / "val/cat/empty.png").write_bytes(b"")
    (tmp_path / "val/dog/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError) as caught:
        dataset(0)
    first, *lines = str(caught.value).splitlines()
    assert first == "4 image files cannot be read; repair or remove:"
    assert lines[0] == f"  {tmp_path}/train/cat/page.jpg: not an image in a known format"
    assert lines[1] == f"  {tmp_path}/val/cat/empty.png: the file is empty"
    assert lines[2] == f"  {tmp_path}/val/dog/gone.png: no such file or directory"
    assert lines[3].startswith(f"  {tmp_path}/test/dog/000.png: ")


def test_many_unreadable_files_are_counted(tmp_path):
    dataset = folder(tmp_path, FULL)
    for n in range(13):
        (tmp_path / f"train/cat/x{n:02}.jpg").write_text("x")
    with pytest.raises(DataError) as caught:
        dataset(0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 13
    assert lines[-2:] == [
        "  and 3 more",
        "or leave out with `damaged: skip` and `max_damaged: 0.39` beside `path`",  # 13 of 34
    ]


def test_other_decoders_are_not_tried(tmp_path):
    dataset = folder(tmp_path, FULL)
    (tmp_path / "train/cat/script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match=r"script.png: not an image in a known format"):
        dataset(0)


def test_a_bomb_is_unreadable(tmp_path, monkeypatch):
    dataset = folder(tmp_path, FULL)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # the files have 120
    with pytest.raises(DataError, match="decompression bomb"):
        dataset(0)


@pytest.fixture
def on_demand(monkeypatch):
    monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)


def test_decoding_on_demand_gives_the_same_images(tmp_path, monkeypatch):
    dataset = folder(tmp_path, FULL)
    kept = dataset(0)
    monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)
    lazy = dataset(0)
    assert isinstance(kept.train.images, InMemory)
    assert isinstance(lazy.train.images, Files)
    order = np.array([4, 0, 9, 4])
    np.testing.assert_array_equal(lazy.train.images[order], kept.train.images[order])
    assert (lazy.mean, lazy.std) == (kept.mean, kept.std)
    assert len(lazy.smaller(2).train) == 2


@pytest.mark.usefixtures("on_demand")
def test_on_demand_fingerprint(tmp_path):
    dataset = folder(tmp_path / "here", FULL)
    before = dataset(0).fingerprint
    assert folder(tmp_path / "there", FULL)(0).fingerprint == before  # a copy elsewhere, at another time
    assert ImageFolder(path=tmp_path / "here", size=16, resize="crop")(0).fingerprint != before
    (tmp_path / "here/test/dog/000.png").rename(tmp_path / "here/test/dog/999.png")
    assert dataset(0).fingerprint != before


@pytest.mark.usefixtures("on_demand")
def test_on_demand_gone_and_empty_files_are_found_at_once(tmp_path):
    dataset = folder(tmp_path, FULL)
    (tmp_path / "train/cat/000.png").write_bytes(b"")
    (tmp_path / "train/dog/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        DataError, match=r"2 image files cannot be read.*\n.*cat/000.png: the file is empty\n.*gone.png: no"
    ):
        dataset(0)


@pytest.mark.usefixtures("on_demand")
def test_on_demand_damage_is_found_when_decoded(tmp_path):
    dataset = folder(tmp_path, FULL)
    (tmp_path / "test/dog/001.png").write_text("damaged")
    data = dataset(0)
    data.test.images[np.array([0, 1])]
    with pytest.raises(DataError, match=r"1 image file cannot be read; repair or remove:\n.*test/dog/001.png: not an"):
        data.test.images[np.array([0, 4])]


@pytest.mark.usefixtures("on_demand")
def test_on_demand_statistics_come_from_an_even_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.data.assemble.SAMPLE", 3)
    data = folder(tmp_path, FULL)(0)
    pixels = data.train.images[np.array([0, 5, 10])].numpy() / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
