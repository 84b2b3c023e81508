import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from compress.edits.graph import GlobalAveragePool, calls, evaluating, folded
from compress.errors import ModelError


def settled(module: nn.Module) -> nn.Module:
    """Weights and running statistics as after some training, in evaluation mode."""
    random = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                tensor.data.uniform_(0.5, 2, generator=random)
            for tensor in (layer.bias, layer.running_mean):
                tensor.data.normal_(generator=random)
    return module.eval()


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def kinds(traced) -> list[str]:
    return [type(layer).__name__ for _, layer in calls(traced, nn.Module)]


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_as_in_the_paper(bias):
    module = settled(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU6()))
    conv, norm = module[0], module[1]
    gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().double().numpy()
    offset = conv.bias.detach().double().numpy() if bias else 0
    result = folded(module)
    assert kinds(result) == ["Conv2d", "ReLU6"]
    layer = result.get_submodule("0")
    np.testing.assert_allclose(
        layer.weight.detach().numpy(), conv.weight.detach().numpy() * gain[:, None, None, None], rtol=1e-5
    )
    expected = (offset - norm.running_mean.double().numpy()) * gain + norm.bias.detach().double().numpy()
    np.testing.assert_allclose(layer.bias.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result(images()), module(images()), rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    """A convolution that two layers read, one of them a batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_batch_norm_stays_where_its_convolution_is_read_elsewhere_too():
    module = settled(Branching())
    assert kinds(folded(module)) == ["Conv2d", "BatchNorm2d"]
    torch.testing.assert_close(folded(module)(images()), module(images()))


def test_a_batch_norm_stays_without_a_convolution_before_it():
    assert kinds(folded(settled(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))))) == ["ReLU", "BatchNorm2d"]


class Twice(nn.Module):
    """One convolution called twice, with a batch-norm of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


def test_a_layer_called_twice_is_folded_twice():
    module = settled(Twice())
    result = folded(module)
    assert kinds(result) == ["Conv2d", "Conv2d"]
    torch.testing.assert_close(result(images()), module(images()), rtol=1e-4, atol=1e-5)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout2d(0.5))
        self.depth = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(F.dropout(self.depth(self.layers(x)), 0.5, self.training))


def test_what_does_nothing_at_inference_is_removed():
    result = folded(WithDropout().train())
    assert [node.op for node in result.graph.nodes] == ["placeholder", "call_function", "output"]
    assert not any(True for _ in result.children())


class Pooling(nn.Module):
    def __init__(self, how) -> None:
        super().__init__()
        self.how, self.pool = how, nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


SPELLINGS = {
    "layer": lambda m, x: m.pool(x),
    "function": lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)),
    "keyword": lambda m, x: F.adaptive_avg_pool2d(x, output_size=1),
    "mean": lambda m, x: x.mean([2, 3]),
    "negative axes": lambda m, x: x.mean((-1, -2)),
    "kept axes": lambda m, x: torch.mean(x, (2, 3), True),
    "kept by keyword": lambda m, x: x.mean(dim=(2, 3), keepdim=True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_global_pooling_is_found_in_every_spelling(spelling):
    module = Pooling(SPELLINGS[spelling]).eval()
    result = folded(module)
    assert kinds(result) == ["GlobalAveragePool"]
    torch.testing.assert_close(result(images()), module(images()))


@pytest.mark.parametrize("how", [lambda m, x: F.adaptive_avg_pool2d(x, 2), lambda m, x: x.mean(1)])
def test_other_means_are_left_alone(how):
    assert not any(calls(folded(Pooling(how)), GlobalAveragePool))


def test_folding_leaves_the_network_as_it_was():
    module = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()))
    module.train()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    result = folded(module)
    assert [layer.training for layer in module.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not result.training
    result.get_submodule("0").weight.data.zero_()
    assert module[0].weight.any()


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_refused():
    module = Deciding().train()
    said = r"Deciding cannot be traced by torch\.fx \(.+\), at test_graph.py line \d+, .+: its forward\(\) must not"
    with pytest.raises(ModelError, match=said):
        folded(module)
    assert module.training


def test_evaluating_restores_modes_after_an_error_too():
    module = nn.Sequential(nn.ReLU(), nn.ReLU()).train()
    module[0].eval()
    with evaluating(module):
        assert not any(layer.training for layer in module.modules())
    with pytest.raises(IndexError), evaluating(module):
        module[7](torch.zeros(1))
    assert [layer.training for layer in module.modules()] == [True, False, True]
