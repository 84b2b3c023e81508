import os
import pickle
import zipfile

import numpy as np
import pytest

from compress.data import MissingData
from compress.data.npz import Npz
from compress.errors import DataError, ResourceError


def everything(split):
    return split.images[np.arange(len(split))].numpy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def arrays(**changes):
    """A complete archive's arrays, 6 classes; a change of None leaves one out."""
    full = {}
    for number, (split, count) in enumerate((("train", 120), ("val", 12), ("test", 18))):
        full[f"{split}_images"] = noise(count, 28, 28, 3, seed=number)
        full[f"{split}_labels"] = (np.arange(count) % 6).astype(np.uint8)[:, None]
    return {key: value for key, value in (full | changes).items() if value is not None}


def saved(tmp_path, **changes):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **arrays(**changes))
    return Npz(path=path, size=28)


def test_npz_gives_its_own_pixels(tmp_path):
    data = saved(tmp_path)(0)
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        np.testing.assert_array_equal(everything(split), arrays()[f"{name}_images"].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(split.labels, arrays()[f"{name}_labels"][:, 0])
    assert data.class_names == tuple("012345")
    assert data.mirror
    assert not data.embedded


def test_npz_of_grey_images_with_flat_labels(tmp_path):
    changes = {f"{s}_images": arrays()[f"{s}_images"][..., 0] for s in ("train", "val", "test")}
    changes |= {f"{s}_labels": arrays()[f"{s}_labels"][:, 0].astype(np.int64) for s in ("train", "val", "test")}
    data = saved(tmp_path, **changes)(0)
    np.testing.assert_array_equal(everything(data.test)[:, 2], changes["test_images"])


def test_npz_without_val_and_test_is_split(tmp_path):
    lone = {"val_images": None, "val_labels": None, "test_images": None, "test_labels": None}
    data = saved(tmp_path, **lone)(0)
    assert [np.bincount(s.labels).tolist() for s in (data.train, data.val, data.test)] == [
        [14] * 6,
        [2] * 6,
        [4] * 6,
    ]
    parts = [everything(split) for split in (data.train, data.val, data.test)]
    assert len({image.tobytes() for part in parts for image in part}) == 120


def test_npz_without_val_keeps_its_test_images(tmp_path):
    data = saved(tmp_path, val_images=None, val_labels=None)(0)
    assert (len(data.train), len(data.val), len(data.test)) == (108, 12, 18)
    np.testing.assert_array_equal(everything(data.test), arrays()["test_images"].transpose(0, 3, 1, 2))


def test_npz_brings_class_names(tmp_path):
    data = saved(tmp_path, class_names=np.array(["a", "b", "c", "d", "e", "f"]))(0)
    assert data.class_names == ("a", "b", "c", "d", "e", "f")


def test_a_constant_image_has_a_std_of_one(tmp_path):
    changes = {f"{s}_images": np.full_like(arrays()[f"{s}_images"], 51) for s in ("train", "val", "test")}
    data = saved(tmp_path, **changes)(0)
    assert data.mean == (0.2, 0.2, 0.2)
    assert data.std == (1.0, 1.0, 1.0)


def test_npz_missing_file(tmp_path):
    with pytest.raises(MissingData, match=r"there is no file .*gone\.npz; give `path` an \.npz archive"):
        Npz(path=tmp_path / "gone.npz")(0)


def test_npz_that_is_a_folder(tmp_path):
    with pytest.raises(DataError, match="cannot be read: is a directory"):
        Npz(path=tmp_path)(0)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", pickle.dumps({"a": 1}), b"\x93NUMPY\x01\x00"])
def test_npz_that_is_no_archive(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not an \.npz archive \(a zip of arrays\)") as caught:
        Npz(path=path)(0)
    assert not isinstance(caught.value, MissingData)


def test_npz_cut_short(tmp_path):
    dataset = saved(tmp_path)
    dataset.path.write_bytes(dataset.path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"is a damaged archive \(File is not a zip file\)"):
        dataset(0)


def test_npz_with_flipped_bits(tmp_path):
    dataset = saved(tmp_path)
    content = bytearray(dataset.path.read_bytes())
    content[1000:1100] = bytes(100)
    dataset.path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        dataset(0)


def test_npz_with_a_damaged_array(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1'")
    with pytest.raises(DataError, match=r"train_images is damaged \(.*\); fetch or write the archive again"):
        Npz(path=path)(0)


def test_npz_with_bytes_for_an_array(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"hello there, no array here")
    with pytest.raises(DataError, match="train_images is"):
        Npz(path=path)(0)


def test_npz_too_large_for_memory(tmp_path):
    path = tmp_path / "data.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 28, 28), }" % 10**15
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"up to train_images its arrays take 730,156,898 GiB; more than 8 GiB are not"):
        Npz(path=path)(0)


def test_npz_that_claims_more_than_it_holds(tmp_path):
    path = tmp_path / "data.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000, 28, 28), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"train_images is damaged \(its header claims 784,128 bytes and there are 128"):
        Npz(path=path)(0)


def test_npz_too_large_for_this_machine(tmp_path, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError("Unable to allocate")

    dataset = saved(tmp_path)
    monkeypatch.setattr("numpy.lib.npyio.NpzFile.__getitem__", too_large)
    with pytest.raises(ResourceError, match=r"train_images does not fit into memory \(Unable to allocate\)"):
        dataset(0)


def test_npz_with_pickled_objects_runs_nothing(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    dataset = saved(tmp_path, class_names=np.array([Canary()], dtype=object))
    with pytest.raises(DataError, match="class_names holds pickled Python objects, which are never read"):
        dataset(0)
    assert not (tmp_path / "canary").exists()


def test_npz_missing_keys(tmp_path):
    with pytest.raises(DataError, match=r"has no train_labels; it has test_images, .*The layout is train_images"):
        saved(tmp_path, train_labels=None)(0)
    with pytest.raises(DataError, match="has no val_images; it has"):
        saved(tmp_path, val_images=None)(0)
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="no train_images and no train_labels; it has none of the layout's arrays"):
        Npz(path=tmp_path / "data.npz")(0)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((120, 28, 28), dtype=np.float32),
        np.zeros((120, 28), dtype=np.uint8),
        np.zeros((120, 28, 28, 28), dtype=np.uint8),
        np.zeros((120, 0, 28), dtype=np.uint8),
    ],
)
def test_npz_wrong_images(tmp_path, images):
    message = f"train_images is {images.dtype} \\({', '.join(map(str, images.shape))}\\); it must be uint8"
    with pytest.raises(DataError, match=message):
        saved(tmp_path, train_images=images)(0)


@pytest.mark.parametrize("labels", [np.zeros(18), np.zeros((18, 14), dtype=np.int64)])
def test_npz_wrong_labels(tmp_path, labels):
    with pytest.raises(DataError, match=f"test_labels is {labels.dtype} .*it must be integers .*one class an image"):
        saved(tmp_path, test_labels=labels)(0)


def test_npz_more_images_than_labels(tmp_path):
    with pytest.raises(DataError, match="120 train_images, but 119 train_labels"):
        saved(tmp_path, train_labels=arrays()["train_labels"][1:])(0)


def test_npz_without_training_images(tmp_path):
    with pytest.raises(DataError, match="train_images is empty"):
        saved(tmp_path, train_images=np.zeros((0, 8, 8), np.uint8), train_labels=np.zeros(0, np.uint8))(0)


def test_npz_with_an_empty_split(tmp_path):
    with pytest.raises(DataError, match="there are no test images; give some, or three or more training images"):
        saved(tmp_path, test_images=np.zeros((0, 8, 8), np.uint8), test_labels=np.zeros(0, np.uint8))(0)


def test_npz_label_gap(tmp_path):
    labels = np.array([0, 1, 2, 3, 4, 7] * 20)
    with pytest.raises(DataError, match=r"no training image has label 5, 6; each of 0 to 7 must occur"):
        saved(tmp_path, train_labels=labels)(0)


def test_npz_stray_label(tmp_path):
    labels = arrays()["train_labels"].astype(np.int64)
    labels[3] = 10**12
    with pytest.raises(DataError, match=r"the training labels hold 1000000000000, but the classes .* are 0 to 119"):
        saved(tmp_path, train_labels=labels)(0)


def test_npz_test_label_that_training_does_not_have(tmp_path):
    with pytest.raises(DataError, match="the test labels hold 6, but the classes of the training images are 0 to 5"):
        saved(tmp_path, test_labels=np.full(18, 6))(0)


def test_npz_negative_label(tmp_path):
    with pytest.raises(DataError, match="the training labels hold -1; number the classes from 0"):
        saved(tmp_path, train_labels=np.full(120, -1))(0)


def test_npz_class_names_of_the_wrong_kind(tmp_path):
    with pytest.raises(DataError, match=r"class_names is int64 \(6,\); it must be strings"):
        saved(tmp_path, class_names=np.arange(6))(0)


def test_one_class_is_no_classification(tmp_path):
    changes = {f"{s}_labels": np.zeros_like(arrays()[f"{s}_labels"]) for s in ("train", "val", "test")}
    with pytest.raises(DataError, match="there is only one class, '0'; a classifier needs two or more"):
        saved(tmp_path, **changes)(0)
