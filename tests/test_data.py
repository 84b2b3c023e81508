import hashlib
import os
import pickle
import random
import socket
import tarfile
import urllib.error
import urllib.request
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import datasets

from compress.config import OneOf, as_named, described
from compress.data import DATASETS, InMemory, MissingData, Preprocessing, image_folder
from compress.data.cifar import Cifar10, Cifar100
from compress.data.digits import Digits
from compress.data.files import Files
from compress.data.image_folder import ImageFolder
from compress.data.npz import Npz
from compress.data.pictures import in_memory, plain, read
from compress.data.split import complete, stratified
from compress.data.synthetic import Synthetic
from compress.errors import DataError, ResourceError


def everything(split):
    return split.images[np.arange(len(split))].numpy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def shown(picture, tmp_path, name="picture.png", **options):
    """What `read` makes of a picture saved as a file, at 8 × 8."""
    path = tmp_path / name
    picture.save(path, **options)
    return read(str(path), Preprocessing(size=8))


# The parts that all kinds share


def test_table_names_every_kind():
    assert list(DATASETS) == ["digits", "npz", "image_folder", "cifar10", "cifar100", "synthetic"]
    assert all(kind.name == name for name, kind in DATASETS.items())


def test_a_dataset_round_trips_through_its_named_form():
    dataset = Npz(path=Path("x.npz"), size=64, mean=0.5, channels=1, class_names=("a", "b"))
    assert OneOf(DATASETS).parse(as_named(dataset)) == dataset


def test_one_number_for_mean_is_as_good_as_a_list():
    assert Preprocessing(mean=0.5, std=0.25).mean == (0.5,)


@pytest.mark.parametrize("size", [7, 1025])
def test_size_has_limits(size):
    with pytest.raises(ValidationError, match="size"):
        Digits(size=size)


def test_stratified_takes_each_class_in_its_proportion():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    train, val, test = stratified(labels, 0, val=0.1, test=0.3)
    assert np.bincount(labels[test]).tolist() == [30, 15, 3]
    assert np.bincount(labels[val]).tolist() == [10, 5, 1]
    assert sorted([*train, *val, *test]) == list(range(160))


def test_stratified_rounds_to_the_share_of_the_whole():
    labels = np.arange(100) // 5  # 20 classes of 5: a tenth of each is half an image, of all it is ten
    _, val, test = stratified(labels, 0, val=0.0, test=0.3)
    assert (len(val), len(test)) == (0, 30)


def test_stratified_leaves_small_classes_something_to_train_on():
    labels = np.repeat([0, 1, 2], [1, 2, 3])
    train, val, test = stratified(labels, 0, val=0.1, test=0.2)
    assert labels[train].tolist() == [0, 1, 2]
    assert labels[test].tolist() == [1, 2]
    assert labels[val].tolist() == [2]


def test_stratified_follows_the_seed():
    labels = np.arange(200) % 4
    first, again, other = (stratified(labels, seed, val=0.1, test=0.2) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


def test_complete_leaves_given_splits_alone():
    train = np.arange(100), np.arange(100) % 2
    test = np.arange(7), np.zeros(7)
    parts = complete({"train": train, "test": test}, 0)
    assert [len(labels) for _, labels in parts] == [90, 10, 7]
    assert parts[2][0] is test[0]


def test_bilinear_enlarging_agrees_with_linear_interpolation():
    ramp = np.array([0, 80, 160, 240], dtype=np.uint8)
    image = np.tile(ramp, (4, 1))[None]
    expected = np.interp((np.arange(8) + 0.5) / 2 - 0.5, np.arange(4), ramp)
    ours = in_memory(image, Preprocessing(size=8, channels=1)).pixels[0, 0].numpy()
    np.testing.assert_allclose(ours, np.tile(expected, (8, 1)), atol=0.5)


def test_nearest_repeats_pixels():
    image = noise(1, 4, 4)
    ours = in_memory(image, Preprocessing(size=8, channels=1, interpolation="nearest")).pixels[0, 0].numpy()
    np.testing.assert_array_equal(ours, image[0].repeat(2, axis=0).repeat(2, axis=1))


def test_bicubic_differs_from_bilinear():
    image = noise(1, 8, 8)
    linear, cubic = (
        in_memory(image, Preprocessing(size=16, interpolation=name)).pixels
        for name in ("bilinear", "bicubic")
    )
    assert not torch.equal(linear, cubic)


def test_squash_crop_and_letterbox():
    wide = np.full((1, 8, 16), 200, dtype=np.uint8)
    wide[:, :, :4] = wide[:, :, -4:] = 100
    grey = {"size": 8, "channels": 1, "interpolation": "nearest"}
    squash, crop, letterbox = (
        in_memory(wide, Preprocessing(resize=resize, **grey)).pixels[0, 0].numpy()
        for resize in ("squash", "crop", "letterbox")
    )
    row = np.array([100, 100, 200, 200, 200, 200, 100, 100])
    np.testing.assert_array_equal(squash, np.tile(row, (8, 1)))
    np.testing.assert_array_equal(crop, np.full((8, 8), 200))
    np.testing.assert_array_equal(letterbox[2:6], np.tile(row, (4, 1)))
    assert not letterbox[[0, 1, 6, 7]].any()


def test_letterbox_of_a_hairline():
    line = np.full((1, 1, 300), 255, dtype=np.uint8)
    ours = in_memory(line, Preprocessing(size=8, channels=1, resize="letterbox")).pixels[0, 0].numpy()
    assert (ours == 255).sum() == 8


def test_colour_becomes_grey_by_luma():
    colour = noise(1, 8, 8, 3)
    ours = in_memory(colour, Preprocessing(size=8, channels=1)).pixels[0, 0].numpy()
    np.testing.assert_allclose(ours, colour[0] @ [0.299, 0.587, 0.114], atol=0.51)


def test_grey_becomes_colour_by_repetition():
    grey = noise(2, 8, 8)
    ours = in_memory(grey[..., None], Preprocessing(size=8)).pixels.numpy()
    np.testing.assert_array_equal(ours, grey[:, None].repeat(3, axis=1))


# Picture files


def test_rgb_file(tmp_path):
    pixels = noise(8, 8, 3)
    np.testing.assert_array_equal(shown(Image.fromarray(pixels), tmp_path), pixels.transpose(2, 0, 1))


def test_bilevel_file(tmp_path):
    bits = noise(8, 8) > 127
    ours = shown(Image.fromarray(bits), tmp_path)
    np.testing.assert_array_equal(ours, np.broadcast_to(bits * 255, (3, 8, 8)))


def test_sixteen_bit_file(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        ours = shown(Image.fromarray(deep), tmp_path, name)
        np.testing.assert_allclose(ours[0], deep / 257, atol=0.51)


def test_palette_file(tmp_path):
    picture = Image.fromarray(noise(8, 8) % 3)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = np.eye(3, dtype=np.uint8)[np.asarray(picture)] * 255
    np.testing.assert_array_equal(shown(picture, tmp_path), expected.transpose(2, 0, 1))


def test_transparent_palette_entry_shows_white(tmp_path):
    picture = Image.fromarray(noise(8, 8) % 3)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]])
    expected = palette[np.asarray(picture)].transpose(2, 0, 1)
    np.testing.assert_array_equal(shown(picture, tmp_path, transparency=1), expected)
    np.testing.assert_array_equal(shown(picture, tmp_path, transparency=b"\xff\x00\xff"), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_half_transparent_pixels_are_laid_over_white(tmp_path, mode):
    colour = (100, 128) if mode == "LA" else (100, 100, 100, 128)
    ours = shown(Image.new(mode, (8, 8), colour), tmp_path)
    np.testing.assert_allclose(ours, 100 * 128 / 255 + 255 * 127 / 255, atol=1)


def test_cmyk_jpeg(tmp_path):
    ours = shown(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path, "cyan.jpg", quality=95)
    np.testing.assert_allclose(ours.reshape(3, -1).mean(axis=1), [0, 255, 255], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # What a viewer shows, by the standard's words for where row 0 and column 0 of the stored picture stand.
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, -1)[:, ::-1][::-1, ::-1],
        8: lambda a: np.rot90(a),
    }[orientation]
    stored = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("photo.png", "photo.tif"):
        ours = shown(Image.fromarray(stored), tmp_path, name, exif=exif)
        np.testing.assert_array_equal(ours, turn(stored).transpose(2, 0, 1))


def test_damaged_exif_does_not_hide_the_picture(tmp_path):
    ours = shown(
        Image.new("RGB", (8, 8), "white"), tmp_path, "photo.jpg", exif=b"Exif\0\0garbage, not a TIFF"
    )
    assert ours.min() == 255


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point numbers, whose range is not known"):
        plain(Image.new("F", (8, 8)))


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="reach from 70000 to 70000, beyond 16 bits"):
        plain(Image.new("I", (8, 8), 70_000))


# digits


def test_digits_split_sizes_and_labels():
    data = Digits()(0)
    assert (len(data.train), len(data.val), len(data.test)) == (1078, 180, 539)
    assert data.image == (3, 32, 32)
    assert data.class_names == tuple("0123456789")
    assert data.embedded
    assert not data.mirror
    assert data.warnings == ()
    assert data.train.labels.dtype == np.int64


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    raw = load_digits()
    data = Digits(size=8, channels=1)(3)
    ours = np.concatenate([everything(split)[:, 0] for split in (data.train, data.val, data.test)])
    labels = np.concatenate([split.labels for split in (data.train, data.val, data.test)])
    expected = np.rint(raw.images * 255 / 16).astype(np.uint8)

    def sortable(images, labels):
        return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    assert sortable(ours, labels) == sortable(expected, raw.target)


def test_mean_and_std_are_of_the_training_images_alone():
    data = Digits(size=8)(0)
    pixels = everything(data.train).astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_inputs_are_standardised():
    data = Digits(size=8)(0)
    fed = data.inputs(data.train.images[np.arange(len(data.train))])
    assert fed.dtype == torch.float32
    assert abs(float(fed.mean())) < 1e-4
    assert abs(float(fed.std()) - 1) < 1e-3


def test_fingerprint_changes_with_what_matters():
    prints = [
        Digits(size=8)(0).fingerprint,
        Digits(size=8)(1).fingerprint,
        Digits(size=9)(0).fingerprint,
        Digits(size=8, channels=1)(0).fingerprint,
        Digits(size=8, mean=0.5)(0).fingerprint,
        Digits(size=8, std=0.5)(0).fingerprint,
        Digits(size=8, class_names=tuple("abcdefghij"))(0).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert Digits(size=8)(0).fingerprint == prints[0]


def test_given_mean_and_std_are_used_and_broadcast():
    data = Digits(size=8, mean=0.5, std=(0.1, 0.2, 0.3))(0)
    assert data.mean == (0.5, 0.5, 0.5)
    assert data.std == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_wrong_number_of_means(key):
    with pytest.raises(
        DataError, match=f"digits: {key} has 2 numbers for 3 channels; give one, or one a channel"
    ):
        Digits(size=8, **{key: (0.5, 0.5)})(0)


def test_wrong_number_of_class_names():
    with pytest.raises(DataError, match="digits: class_names has 2 names; the data have 10 classes"):
        Digits(size=8, class_names=("even", "odd"))(0)


def test_class_names_must_differ():
    with pytest.raises(DataError, match="digits: two classes are called 'a'; give each a name of its own"):
        Digits(size=8, class_names=tuple("abcdefghia"))(0)


def test_no_global_random_state_is_touched():
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state()[1],
        random.getstate(),
    )
    Digits(size=8)(0)
    Synthetic(size=8, samples=20)(0)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert python_state == random.getstate()


def test_smaller_keeps_every_class():
    data = Digits(size=8)(0).smaller(20)
    assert [np.bincount(s.labels).tolist() for s in (data.train, data.val, data.test)] == [[2] * 10] * 3


# synthetic


def test_synthetic_sizes_and_classes():
    data = Synthetic(size=16, classes=7, samples=9)(0)
    for split in (data.train, data.val, data.test):
        assert everything(split).shape == (9, 3, 16, 16)
        assert set(split.labels) == set(range(7))
    assert data.embedded
    assert data.warnings == ()


def test_synthetic_follows_the_seed():
    first, again, other = (Synthetic(size=8, samples=20)(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(everything(first.train), everything(again.train))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_synthetic_is_learnt_within_two_epochs():
    data = Synthetic(size=16, classes=10, samples=400)(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * 49, 10),
        )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(2):
        for batch in np.arange(400).reshape(-1, 20):
            loss = torch.nn.functional.cross_entropy(
                net(data.inputs(data.train.images[batch])), torch.from_numpy(data.train.labels[batch])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = net(data.inputs(data.test.images[np.arange(400)])).argmax(1).numpy() == data.test.labels
    assert right.mean() > 0.9


def test_synthetic_needs_a_sample_of_each_class():
    with pytest.raises(ValidationError) as caught:
        Synthetic(classes=10, samples=9)
    assert described(caught.value) == [
        "the file: samples (9) should be at least classes (10): each split has all"
    ]


# npz


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
    changes |= {
        f"{s}_labels": arrays()[f"{s}_labels"][:, 0].astype(np.int64) for s in ("train", "val", "test")
    }
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


def test_images_in_train_and_test_are_counted(tmp_path):
    test = arrays()["test_images"]
    test[:5] = arrays()["train_images"][40:45]
    assert saved(tmp_path, test_images=test)(0).warnings == (
        "5 of 18 test images stand in the training set too, pixel for pixel; the accuracy is flattered.",
    )


def test_npz_missing_file(tmp_path):
    with pytest.raises(MissingData, match=r"there is no file .*gone\.npz; give `path` an \.npz archive"):
        Npz(path=tmp_path / "gone.npz")(0)


def test_npz_that_is_a_folder(tmp_path):
    with pytest.raises(DataError, match="cannot be read: is a directory"):
        Npz(path=tmp_path)(0)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", pickle.dumps({"a": 1}), b"\x93NUMPY\x01\x00"]
)
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
        archive.writestr(
            "train_images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        )
    with pytest.raises(ResourceError, match="train_images does not fit into memory"):
        Npz(path=path)(0)


def test_npz_with_pickled_objects_runs_nothing(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    dataset = saved(tmp_path, class_names=np.array([Canary()], dtype=object))
    with pytest.raises(DataError, match="class_names holds pickled Python objects, which are never read"):
        dataset(0)
    assert not (tmp_path / "canary").exists()


def test_npz_missing_keys(tmp_path):
    with pytest.raises(
        DataError, match=r"has no train_labels; it has test_images, .*The layout is train_images"
    ):
        saved(tmp_path, train_labels=None)(0)
    with pytest.raises(DataError, match="has no val_images; it has"):
        saved(tmp_path, val_images=None)(0)
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(
        DataError, match="no train_images and no train_labels; it has none of the layout's arrays"
    ):
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
    with pytest.raises(
        DataError, match=f"test_labels is {labels.dtype} .*it must be integers .*one class an image"
    ):
        saved(tmp_path, test_labels=labels)(0)


def test_npz_more_images_than_labels(tmp_path):
    with pytest.raises(DataError, match="120 train_images, but 119 train_labels"):
        saved(tmp_path, train_labels=arrays()["train_labels"][1:])(0)


def test_npz_without_training_images(tmp_path):
    with pytest.raises(DataError, match="train_images is empty"):
        saved(tmp_path, train_images=np.zeros((0, 8, 8), np.uint8), train_labels=np.zeros(0, np.uint8))(0)


def test_npz_with_an_empty_split(tmp_path):
    with pytest.raises(
        DataError, match="there are no test images; give some, or three or more training images"
    ):
        saved(tmp_path, test_images=np.zeros((0, 8, 8), np.uint8), test_labels=np.zeros(0, np.uint8))(0)


def test_npz_label_gap(tmp_path):
    labels = np.array([0, 1, 2, 3, 4, 7] * 20)
    with pytest.raises(DataError, match=r"no training image has label 5, 6; each of 0 to 7 must occur"):
        saved(tmp_path, train_labels=labels)(0)


def test_npz_stray_label(tmp_path):
    labels = arrays()["train_labels"].astype(np.int64)
    labels[3] = 10**12
    with pytest.raises(
        DataError, match=r"the training labels hold 1000000000000, but the classes .* are 0 to 119"
    ):
        saved(tmp_path, train_labels=labels)(0)


def test_npz_test_label_that_training_does_not_have(tmp_path):
    with pytest.raises(
        DataError, match="the test labels hold 6, but the classes of the training images are 0 to 5"
    ):
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


# image_folder


def folder(root, counts, size=(10, 12), seed=0):
    """PNG files of noise: `counts` maps a folder such as train/cat to a number of images."""
    rng = np.random.default_rng(seed)
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                root / place / f"{n:03}.png"
            )
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
    with pytest.raises(
        MissingData, match=r"there is no folder .*gone; give `path` a folder with train/<class>/"
    ):
        ImageFolder(path=tmp_path / "gone")(0)


def test_image_folder_that_is_a_file(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"x.zip is a file; give `path` a folder"):
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
    with pytest.raises(
        DataError, match="has test/ but no train/; put the training images into train/<class>/"
    ):
        folder(tmp_path, {"test/a": 1, "test/b": 1})(0)


def test_image_folder_with_two_vals(tmp_path):
    with pytest.raises(DataError, match="has both val/ and validation/; keep one of them"):
        folder(tmp_path, {"train/a": 1, "val/a": 1, "validation/a": 1})(0)


def test_image_folder_with_an_empty_class(tmp_path):
    dataset = folder(tmp_path, FULL | {"train/eel": 0, "val/eel": 1, "test/eel": 1})
    with pytest.raises(DataError, match=r"1 class folder has no images; add some.*\n  .*train/eel$"):
        dataset(0)


def test_image_folder_with_different_classes(tmp_path):
    with pytest.raises(
        DataError, match=r"train/eel has no counterpart in .*val; every split must have the same"
    ):
        folder(tmp_path, FULL | {"train/eel": 3})(0)


def test_image_folder_with_a_class_only_in_test(tmp_path):
    with pytest.raises(DataError, match=r"test/eel has no counterpart in .*train; every split"):
        folder(tmp_path, FULL | {"test/eel": 3})(0)


def test_image_folder_with_too_few_images_to_split(tmp_path):
    with pytest.raises(
        DataError, match="there are no validation images; give some, or three or more training"
    ):
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
    assert lines[1] == f"  {tmp_path}/val/cat/empty.png: not an image in a known format"
    assert lines[2] == f"  {tmp_path}/val/dog/gone.png: no such file or directory"
    assert lines[3].startswith(f"  {tmp_path}/test/dog/000.png: ")


def test_many_unreadable_files_are_counted(tmp_path):
    dataset = folder(tmp_path, FULL)
    for n in range(13):
        (tmp_path / f"train/cat/x{n:02}.jpg").write_text("x")
    with pytest.raises(DataError) as caught:
        dataset(0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 3 more"


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
    with pytest.raises(
        DataError, match=r"1 image file cannot be read; repair or remove:\n.*test/dog/001.png: not an"
    ):
        data.test.images[np.array([0, 4])]


@pytest.mark.usefixtures("on_demand")
def test_on_demand_statistics_come_from_an_even_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.data.assemble.SAMPLE", 3)
    data = folder(tmp_path, FULL)(0)
    pixels = data.train.images[np.array([0, 5, 10])].numpy() / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


# cifar10, cifar100


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server on this machine: the folder that it serves, and its address."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield served, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cifar(web, monkeypatch):
    """Small archives in the original layout, with their own MD5 sums."""
    served, address = web
    for kind, classes, train_files in ((datasets.CIFAR10, 10, 5), (datasets.CIFAR100, 100, 1)):
        key = "labels" if classes == 10 else "fine_labels"
        count = 2 * classes
        base = served / kind.base_folder

        def batch(seed, key=key, count=count, classes=classes):
            pixels = noise(count, 3072, seed=seed)
            return {"data": pixels, key: [n % classes for n in range(count)]}

        names = [name for name, _ in kind.train_list]
        assert len(names) == train_files
        if train_files == 1:
            count = 10 * classes
        train = [[name, dump(base / name, batch(n, count=count))] for n, name in enumerate(names)]
        test_name = kind.test_list[0][0]
        test = [[test_name, dump(base / test_name, batch(99))]]
        meta = kind.meta["filename"]
        md5 = dump(base / meta, {kind.meta["key"]: [f"class {n}" for n in range(classes)]})
        with tarfile.open(served / kind.filename, "w:gz") as archive:
            archive.add(base, kind.base_folder)
        archive_md5 = hashlib.md5((served / kind.filename).read_bytes()).hexdigest()
        monkeypatch.setattr(kind, "train_list", train)
        monkeypatch.setattr(kind, "test_list", test)
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5})
        monkeypatch.setattr(kind, "tgz_md5", archive_md5)
        monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
    return served


@pytest.mark.parametrize(("kind", "train", "val", "test"), [(Cifar10, 90, 10, 20), (Cifar100, 900, 100, 200)])
def test_cifar_is_fetched_and_split(cifar, tmp_path, kind, train, val, test):
    data = kind(path=tmp_path / "data")(0)
    assert (len(data.train), len(data.val), len(data.test)) == (train, val, test)
    assert data.image == (3, 32, 32)
    assert data.class_names[3] == "class 3"
    assert data.mirror
    np.testing.assert_array_equal(everything(data.test), noise(test, 3072, seed=99).reshape(-1, 3, 32, 32))


def test_cifar_needs_no_network_once_it_is_there(cifar, tmp_path, monkeypatch):
    first = Cifar10(path=tmp_path / "data")(0)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert Cifar10(path=tmp_path / "data")(0).fingerprint == first.fingerprint
    assert Cifar10(path=tmp_path / "data", size=16)(0).image == (3, 16, 16)


def test_cifar_from_an_archive_put_by_hand(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    (tmp_path / "data").mkdir()
    (cifar / "cifar-10-python.tar.gz").rename(tmp_path / "data/cifar-10-python.tar.gz")
    assert len(Cifar10(path=tmp_path / "data")(0).test) == 20


@pytest.fixture
def offline(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("kind", "archive"), [(Cifar10, "cifar-10-python"), (Cifar100, "cifar-100-python")])
def test_cifar_offline_says_where_to_put_what(tmp_path, kind, archive):
    with pytest.raises(MissingData) as caught:
        kind(path=tmp_path)(0)
    assert str(caught.value) == (
        f"{kind.__name__.upper()} is not in {tmp_path} and cannot be downloaded "
        f"([Errno -2] Name or service not known). Fetch https://www.cs.toronto.edu/~kriz/{archive}.tar.gz "
        f"on a machine with internet access, put it at {tmp_path}/{archive}.tar.gz and run again."
    )
    assert caught.value.exit_code == 3
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("offline")
def test_cifar_offline_with_a_damaged_archive(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_text("<html>")
    with pytest.raises(
        MissingData, match=r"cifar-10-python\.tar\.gz is there, but damaged or not the original\. Fetch"
    ):
        Cifar10(path=tmp_path)(0)


def test_cifar_download_that_is_something_else(web, tmp_path, monkeypatch):
    served, address = web
    (served / "page.html").write_text("<html>log in to the hotel's network</html>")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/page.html")
    with pytest.raises(MissingData, match="is there, but damaged or not the original"):
        Cifar10(path=tmp_path / "data")(0)


def test_cifar_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(
        ResourceError, match=r"CIFAR10 cannot be written to .*data: File exists. Give `path` a folder"
    ):
        Cifar10(path=tmp_path / "data")(0)


def test_cifar_connection_that_is_cut(tmp_path, monkeypatch):
    def cut(*args, **kwargs):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", cut)
    with pytest.raises(MissingData, match=r"cannot be downloaded \(\[Errno 104\] Connection reset by peer\)"):
        Cifar10(path=tmp_path)(0)


@pytest.mark.parametrize("kind", [Digits, Synthetic, Cifar10, Cifar100])
def test_defaults_are_thirty_two_pixels_in_colour(kind):
    assert (kind().size, kind().channels) == (32, 3)


def test_errors_in_a_file_name_the_key():
    with pytest.raises(ValidationError) as caught:
        OneOf(DATASETS).parse({"synthetic": {"sise": 32}})
    assert described(caught.value) == ["synthetic.sise: no such key. Did you mean 'size'?"]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    ours = shown(frames[0], tmp_path, "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(ours[:, 0, 0], [255, 0, 0])
