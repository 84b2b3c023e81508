"""Masked networks against really pruned ones, and what judges them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from compress.data.base import Data, InMemory, Split
from compress.errors import DataError, ModelError
from compress.pruning.channels import Prunable
from compress.pruning.judging import Judge, for_judging, judged, prepared, reestimated
from compress.pruning.masking import Masked, normalized

CPU = torch.device("cpu")


class Flattened(nn.Module):
    """A VGG in small: a linear layer behind a flattened 4x4 map reads sixteen inputs a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, 2, 1)
        self.norm = nn.BatchNorm2d(12)
        self.hidden = nn.Linear(12 * 16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(torch.relu(self.norm(self.conv(x))), 4)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Normed(nn.Module):
    """Group-norm and layer-norm mix channels: what is removed must not count in their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.group_norm = nn.GroupNorm(4, 16)
        self.point = nn.Conv2d(16, 24, 1)
        self.hidden = nn.Linear(24, 32)
        self.layer_norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.point(torch.relu(self.group_norm(self.conv(x))))).mean((2, 3))
        return self.head(torch.relu(self.layer_norm(self.hidden(x))))


FAMILIES = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.5),
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "resnet18": torchvision.models.resnet18,
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=7),
    "regnet_y_400mf": torchvision.models.regnet_y_400mf,
    "flattened": Flattened,
    "normed": Normed,
}


def lively(module: nn.Module) -> nn.Module:
    """The module with statistics as if it had been trained, so that no path is dead."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    return module.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_network_gives_what_the_pruned_one_gives(family):
    torch.manual_seed(0)
    net, x = lively(FAMILIES[family]()), torch.randn(2, 3, 48, 48)
    prunable = Prunable(net, x)
    masked = Masked(prunable.module, prunable.groups, prunable.scored)
    random = np.random.default_rng(0)
    parts = [(scored.width // scored.bundle, scored.bundle) for scored in prunable.scored]
    widths = [int(random.integers(max(1, count // 4), count + 1)) * bundle for count, bundle in parts]
    with torch.no_grad():
        dense = net(x)
        masked.narrow(widths)
        found = masked.module(x)
        pruned = prunable.cut(widths)(x)
        masked.narrow(masked.widths)
        again = masked.module(x)
    size = pruned.abs().max()
    assert (dense - pruned).abs().max() > 0.01 * size
    torch.testing.assert_close(found / size, pruned / size, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, dense)


def test_normalising_over_the_channels_that_are_left():
    random = np.random.default_rng(0)
    x, mask = random.normal(size=(2, 6, 3, 3)), np.array([1, 0, 1, 1, 1, 0])
    layer = nn.GroupNorm(2, 6)
    found = normalized(layer, torch.tensor(x, dtype=torch.float32), torch.tensor(mask, dtype=torch.float32))
    for part in ([0, 2], [3, 4]):
        kept = x[:, part]
        mean, variance = kept.mean((1, 2, 3), keepdims=True), kept.var((1, 2, 3), keepdims=True)
        expected = (kept - mean) / np.sqrt(variance + layer.eps)
        np.testing.assert_allclose(found[:, part].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


# Judging


class Counted:
    """Images that count how often each is loaded."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.loads = pixels, np.zeros(len(pixels), int)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        np.add.at(self.loads, indices, 1)
        return self.pixels[torch.from_numpy(indices)]


def made_up(train: int = 120, val: int = 110, test: int = 40, classes: int = 4) -> Data:
    def split(count: int, seed: int) -> Split:
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=random, dtype=torch.uint8)
        return Split(Counted(pixels), np.arange(count) % classes)

    names = tuple(map(str, range(classes)))
    return Data(split(train, 0), split(val, 1), split(test, 2), (3, 16, 16), names, (0.5,) * 3, (0.25,) * 3, "made up")


def small() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)]
    return lively(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)))


def judge_of(module: nn.Module, data: Data, **sizes: int) -> Judge:
    prunable = Prunable(module, torch.zeros(1, *data.image))
    return Judge(Masked(prunable.module, prunable.groups, prunable.scored), data, CPU, **sizes)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean())


def test_a_judgement_is_that_of_the_pruned_network_with_statistics_of_the_training_images():
    module, data = small(), made_up()
    judge = judge_of(module, data, images=80, statistics=64)
    found = judge([5, 12])
    prunable = Prunable(module, torch.zeros(1, *data.image))
    pruned = prunable.cut([5, 12])
    # Sixty-four training images are one batch here: its own statistics are those to be used.
    chosen = data.train.take(np.arange(64))
    inputs = data.inputs(chosen.images[np.arange(64)])
    for index in (1, 4):
        with torch.no_grad():
            seen = pruned[:index](inputs).double().numpy()
        norm = pruned[index]
        norm.running_mean.copy_(torch.from_numpy(seen.mean((0, 2, 3))))
        norm.running_var.copy_(torch.from_numpy(seen.var((0, 2, 3), ddof=1)))
    shown = data.val.take(np.arange(80))
    with torch.no_grad():
        logits = pruned(data.inputs(shown.images[np.arange(80)])).double().numpy()
    assert found.loss == pytest.approx(cross_entropy(logits, shown.labels), rel=1e-4)
    assert found.accuracy == 100 * (logits.argmax(1) == shown.labels).mean()


def test_statistics_are_the_mean_over_batches_and_are_put_back():
    module = small()
    random = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 16, 16, generator=random) for _ in range(3)]
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        means = [module[0](batch).mean((0, 2, 3)).numpy() for batch in batches]
    with reestimated(module, batches):
        np.testing.assert_allclose(module[1].running_mean.numpy(), np.mean(means, 0), rtol=1e-4, atol=1e-6)
        assert not module[1].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module[1].momentum == 0.1


def test_images_are_loaded_once_and_widths_judged_once():
    data = made_up()
    judge = judge_of(small(), data, images=100, statistics=50)
    first = judge([5, 10])
    assert judge([8, 6]) != first
    assert judge([5, 10]) is first
    assert data.train.images.loads.sum() == 50
    assert data.val.images.loads.sum() == 100
    assert data.train.images.loads.max() == data.val.images.loads.max() == 1
    assert not data.test.images.loads.any()
    assert sorted(judge.known) == [(5, 10), (8, 6)]


@pytest.mark.parametrize(("size", "images"), [(16, 512), (64, 512), (96, 227), (224, 128)])
def test_fewer_large_images_judge(size, images):
    data = replace(made_up(), image=(3, size, size))
    judge = judge_of(small(), data)
    assert (judge.images, judge.statistics) == (images, images // 2)


def test_without_enough_validation_images_training_images_judge():
    data = made_up(val=30)
    assert len(for_judging(data, 100)) == 100
    judge_of(small(), data, images=100, statistics=50)([8, 12])
    assert not data.val.images.loads.any()
    assert not data.test.images.loads.any()
    with pytest.raises(DataError, match="no validation and no training images to judge networks by"):
        for_judging(made_up(train=0, val=0), 100)


def test_a_network_without_batch_norm_is_judged_as_it_is():
    data = made_up()
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    shown = prepared(data, data.val, CPU)
    assert judge_of(module, data, images=110)([8]) == judged(module, shown)


def test_a_network_whose_outputs_are_no_numbers_is_named():
    judge = judge_of(small(), made_up(), images=20, statistics=20)
    judge.masked.module[7].weight.data[0] = 1e38
    assert judge([8, 6]).loss == float("inf")
    with pytest.raises(ModelError, match="outputs are not finite on its own images"):
        _ = judge.dense


def test_in_memory_images_do_as_well():
    pixels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    split = Split(InMemory(pixels), np.arange(4))
    batches = prepared(made_up(), split, CPU)
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(4, 3, 16, 16)]
    assert all(torch.equal(inputs, torch.full_like(inputs, -2.0)) for inputs, _ in batches)
