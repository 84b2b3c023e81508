import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compress.edits.graph as graph
from compress.edits.calibration import calibrate
from compress.edits.equalization import equalize, without_relu6
from compress.edits.placement import Quantizers, insert_quantizers
from compress.edits.quantizers import activation_quantizers


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(net: nn.Module) -> nn.Module:
    """Output channels of very different ranges, as batch-norm folding leaves them."""
    for seed, layer in enumerate(net.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spread = torch.exp(1.5 * numbers(len(layer.weight), seed=seed))
            layer.weight.data.mul_(spread.view(-1, *(1,) * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.data.mul_(spread)
    return net.eval()


class Inverted(nn.Module):
    """An inverted residual block between two convolutions (after Sandler et al. 2018, arXiv:1801.04381, fig. 3)."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), activation())
        self.block = nn.Sequential(
            nn.Conv2d(6, 12, 1), activation(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12), activation(),
            nn.Conv2d(12, 6, 1, bias=False),
        )  # fmt: skip
        self.grouped, self.last = nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 4, 1)
        self.head = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.grouped(x + self.block(x))
        x = self.last(F.max_pool2d(F.relu(x), 2))
        return self.head(x.mean((2, 3)))


def ranges(first: nn.Module, second: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The largest weight of each channel between two layers, on both sides, one by one."""
    before = np.array([np.abs(w).max() for w in first.weight.detach().numpy()])
    weight, groups = second.weight.detach().numpy(), getattr(second, "groups", 1)
    per_group, outputs = weight.shape[1], len(weight) // groups
    after = [
        np.abs(weight[group * outputs : (group + 1) * outputs, i]).max()
        for group in range(groups)
        for i in range(per_group)
    ]
    return before, np.array(after)


PAIRS = [("block.0", "block.2"), ("block.2", "block.4"), ("grouped", "last"), ("head.0", "head.2")]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_ranges_become_equal_and_the_function_stays(layout):
    net = uneven(Inverted(nn.ReLU)).to(memory_format=layout)
    traced = graph.folded(net)
    uneven_before = [ranges(traced.get_submodule(a), traced.get_submodule(b)) for a, b in PAIRS]
    assert equalize(traced) == len(PAIRS)
    for (a, b), before in zip(PAIRS, uneven_before, strict=True):
        first, second = ranges(traced.get_submodule(a), traced.get_submodule(b))
        np.testing.assert_allclose(first, second, rtol=1e-3)
        assert np.abs(np.log(before[0] / before[1])).max() > 1
    x = numbers(8, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x), rtol=1e-4, atol=1e-4)


def test_one_pair_is_scaled_as_in_the_paper():
    torch.manual_seed(0)
    net = uneven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)))
    (first, second), bias = ranges(net[0], net[2]), net[0].bias.detach().clone()
    traced = graph.folded(net)
    assert equalize(traced) == 1
    scale = np.sqrt(first * second) / second
    np.testing.assert_allclose(
        ranges(traced.get_submodule("0"), traced.get_submodule("2"))[0], np.sqrt(first * second), rtol=1e-4
    )
    np.testing.assert_allclose(traced.get_submodule("0").bias.detach(), bias.numpy() / scale, rtol=1e-4)


def test_the_given_network_stays_as_it_was():
    net = uneven(Inverted(nn.ReLU))
    before = copy.deepcopy(net.state_dict())
    equalize(graph.folded(net))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def kinds(traced: nn.Module) -> dict[str, str]:
    return {name: type(layer).__name__ for name, layer in traced.named_modules() if "ReLU" in type(layer).__name__}


def test_relu6_becomes_relu_between_the_layers_of_a_pair_only():
    traced = graph.folded(Inverted(nn.ReLU6))
    without_relu6(traced)
    # Behind the stem comes an addition: there is no second layer to make up for a scaled channel.
    assert kinds(traced) == {"stem.1": "ReLU6", "block.1": "ReLU", "block.3": "ReLU", "head.1": "ReLU"}


def test_without_large_values_cutting_relu6_changes_nothing():
    net = uneven(Inverted(nn.ReLU6))
    for layer in (net.stem[0], net.block[0], net.block[2]):
        layer.weight.data.mul_(1e-2)
        layer.bias.data.mul_(1e-2)
    traced, x = graph.folded(net), numbers(8, 3, 12, 12)
    assert equalize(traced) == len(PAIRS)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x), rtol=1e-4, atol=1e-6)


class Shared(nn.Module):
    """One ReLU6 for two places, a pair and a sum, and a third as a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.act(self.a(x)))
        return self.d(F.relu6(self.c(self.act(y) + x)))


def test_a_relu6_that_also_stands_elsewhere_stays_there():
    net, x = Shared(), 20 * numbers(2, 3, 4, 4)
    traced = graph.folded(net)
    without_relu6(traced)
    expected = net.d(F.relu(net.c(F.relu6(net.b(F.relu(net.a(x)))) + x)))
    torch.testing.assert_close(traced(x), expected)
    again = traced.code
    without_relu6(traced)
    assert traced.code == again


@pytest.mark.parametrize("net", [Inverted(nn.ReLU6), Shared()])
def test_a_rebuilt_network_takes_the_equalized_weights(net):
    uneven(net)
    edit = Quantizers(equalized=True)
    traced = graph.folded(net)
    equalize(traced)
    built = insert_quantizers(net, edit)
    built.load_state_dict(traced.state_dict(), strict=False)
    assert {name for name, _ in traced.named_parameters()} == {name for name, _ in built.named_parameters()}
    x = numbers(8, 3, 12, 12)
    calibrate(built, lambda: [x])
    with torch.no_grad():
        exact, rounded = traced(x), built.eval()(x)
    assert (exact - rounded).square().mean() < 0.02 * exact.square().mean()
    rebuilt = insert_quantizers(type(net)(nn.ReLU6) if isinstance(net, Inverted) else Shared(), edit)
    rebuilt.load_state_dict(built.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), rounded)
    bounds = {name: quantizer.high for name, quantizer in activation_quantizers(built)}
    unbounded = "quantizer_block_1" if isinstance(net, Inverted) else "quantizer_act"
    assert bounds[unbounded] == float("inf")


def test_it_helps_where_a_layer_has_one_scale():
    torch.manual_seed(0)
    net = Inverted(nn.ReLU).eval()
    for a, b in (("block.2", "block.4"), ("grouped", "last")):
        first, second = net.get_submodule(a), net.get_submodule(b)
        spread = torch.exp(1.5 * numbers(len(first.weight)))
        first.weight.data.mul_(spread.view(-1, 1, 1, 1))
        first.bias.data.mul_(spread)
        second.weight.data.div_(spread.view(1, -1, 1, 1))
    x, noise = numbers(16, 3, 12, 12), []
    for prepare in (lambda traced: 0, equalize):
        source = graph.folded(net)
        prepare(source)
        built = insert_quantizers(source, Quantizers(granularity="per_tensor"))
        calibrate(built, lambda: [x])
        with torch.no_grad():
            noise.append(float((built.eval()(x) - net(x)).square().mean()))
    assert noise[1] < 0.5 * noise[0]


def test_channels_without_weights_stay_as_they_are():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()
    net[0].weight.data[1] = 0
    net[0].weight.data[2] = 1e-9
    net[2].weight.data[:, 3] = 0
    bias = net[0].bias.detach().clone()
    traced, x = graph.folded(net), numbers(2, 3, 6, 6)
    equalize(traced)
    found = traced.get_submodule("0").bias.detach()
    assert torch.equal(found[1:], bias[1:])
    assert found[0] != bias[0]
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x))


def test_a_network_without_pairs_is_left_alone():
    assert equalize(graph.folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 5, 1)))) == 0
