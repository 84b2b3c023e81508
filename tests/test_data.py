import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress.config import OneOf, as_named, described
from compress.data import DATASETS, Preprocessing
from compress.data.cifar import Cifar10, Cifar100
from compress.data.digits import Digits
from compress.data.npz import Npz
from compress.data.split import complete, stratified
from compress.data.synthetic import Synthetic
from compress.errors import DataError


def everything(split):
    return split.images[np.arange(len(split))].numpy()


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


@pytest.mark.parametrize("kind", [Digits, Synthetic, Cifar10, Cifar100])
def test_defaults_are_thirty_two_pixels_in_colour(kind):
    assert (kind().size, kind().channels) == (32, 3)


def test_errors_in_a_file_name_the_key():
    with pytest.raises(ValidationError) as caught:
        OneOf(DATASETS).parse({"synthetic": {"sise": 32}})
    assert described(caught.value) == ["synthetic.sise: no such key. Did you mean 'size'?"]


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
    with pytest.raises(DataError, match=f"digits: {key} has 2 numbers for 3 channels; give one, or one a channel"):
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
    assert described(caught.value) == ["the file: samples (9) should be at least classes (10): each split has all"]
