"""Layers that a user's forward() writes out in arithmetic: found, and as much int8 in the runtime as PyTorch's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from exporting import SPEC, drawn, exported, quantized, run, said
from torch import Tensor, nn

from compress.edits.graph import GlobalAveragePool, HardSigmoid, calls, folded
from compress.edits.placement import Quantizers, insert_quantizers, left_float
from compress.edits.quantizers import QuantizedHardSigmoid
from compress.edits.rewrites import rewrite
from compress.measure.coverage import coverage
from compress.net import Net


class Layer(nn.Module):
    """A function of one tensor as a layer of the user's own, with a ReLU6 to call."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.clip, self.in_place = function, nn.ReLU6(), nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


HARD_SIGMOIDS = {
    "relu6 as a function": lambda m, x: F.relu6(x + 3.0) / 6.0,
    "relu6 as a layer": lambda m, x: m.clip(x + 3) / 6,
    "in place": lambda m, x: m.in_place(x + 3) / 6,
    "in place, as a keyword": lambda m, x: F.relu6(x.clone() + 3, inplace=True).div_(6),
    "three first": lambda m, x: F.relu6(3 + x) / 6,
    "times a sixth": lambda m, x: F.relu6(x + 3) * (1 / 6),
    "times a sixth, four digits": lambda m, x: 0.1667 * F.relu6(x + 3),
    "hardtanh": lambda m, x: F.hardtanh(x + 3, 0, 6) / 6,
    "hardtanh, by keywords": lambda m, x: F.hardtanh(x + 3, min_val=0.0, max_val=6.0) / 6,
    "clamp": lambda m, x: (x + 3).clamp(0, 6) / 6,
    "clip": lambda m, x: torch.clip(x.add(3), min=0, max=6).div(6),
    "functions": lambda m, x: torch.div(F.relu6(torch.add(x, 3)), 6),
    "minus minus": lambda m, x: F.relu6(x - -3) / 6,
    "slope and shift": lambda m, x: torch.clamp(x / 6 + 0.5, 0, 1),
    "in several steps": lambda m, x: F.hardtanh((x + 1) * 0.5 + 1, 0, 3) / 6 * 2,
}
HARD_SWISHES = {
    "divided behind the product": lambda m, x: x * F.relu6(x + 3) / 6,
    "divided in the product": lambda m, x: x * (F.relu6(x + 3) / 6),
    "the other way round": lambda m, x: F.relu6(x + 3) * x / 6,
    "x divided": lambda m, x: x / 6 * m.clip(x + 3),
    "times a sixth": lambda m, x: x * m.clip(x + 3) * (1 / 6),
    "methods": lambda m, x: x.mul(x.add(3).clamp(0, 6)).div(6),
    "PyTorch's": lambda m, x: F.hardswish(x),
}
SILUS = {
    "a function": lambda m, x: x * torch.sigmoid(x),
    "a method": lambda m, x: x.sigmoid() * x,
    "times": lambda m, x: torch.mul(x, torch.sigmoid(x)),
}


def rewritten(function) -> tuple[nn.Module, nn.Module]:
    module = nn.Sequential(Layer(function), nn.Identity()).eval()
    result = folded(module)
    rewrite(result, signed=False)
    return module, result


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for _, layer in calls(module, nn.Module)]


VALUES = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-3.0, 0.0, 3.0])])


@pytest.mark.parametrize("spelling", HARD_SIGMOIDS)
def test_a_hard_sigmoid_is_found_in_every_spelling(spelling):
    module, result = rewritten(HARD_SIGMOIDS[spelling])
    assert kinds(result) == ["HardSigmoid"]
    others = [node.name for node in result.graph.nodes if node.op in ("call_function", "call_method")]
    assert others == (["clone"] if spelling == "in place, as a keyword" else [])
    torch.testing.assert_close(result(VALUES), module(VALUES), rtol=0, atol=3e-4)
    expected = ((VALUES.double() + 3).clamp(0, 6) / 6).float()
    torch.testing.assert_close(result(VALUES), expected)


@pytest.mark.parametrize("spelling", HARD_SWISHES)
def test_a_hard_swish_is_found_in_every_spelling(spelling):
    module, result = rewritten(HARD_SWISHES[spelling])
    assert kinds(result) == ["HardSigmoid"]
    assert [node.op for node in result.graph.nodes] == ["placeholder", "call_module", "call_function", "output"]
    torch.testing.assert_close(result(VALUES), module(VALUES), rtol=1e-5, atol=1e-6)


OTHERS = {
    "another slope": lambda m, x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "another shift": lambda m, x: F.relu6(x + 2) / 6,
    "another divisor": lambda m, x: F.relu6(x + 3) / 5,
    "falling": lambda m, x: F.relu6(3 - x) / 6,
    "mirrored": lambda m, x: F.relu6(x * -1 + 3) / 6,
    "no division": lambda m, x: x * F.relu6(x + 3),
    "a sum in between": lambda m, x: (F.relu6(x + 3) + x) / 6,
    "by nothing": lambda m, x: F.relu6(x + 3) / 0,
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_something_else_stays(case):
    module, result = rewritten(OTHERS[case])
    assert not any(calls(result, HardSigmoid))
    torch.testing.assert_close(result(VALUES), module(VALUES), rtol=0, atol=0, equal_nan=True)


def test_a_part_that_is_read_elsewhere_too_stays_right():
    def several(m: Layer, x: Tensor) -> Tensor:
        shifted = x + 3
        gate = F.relu6(shifted)
        return gate / 6 * x + shifted + gate

    def shared(m: Layer, x: Tensor) -> Tensor:
        gate = F.relu6(x + 3) / 6
        return x * gate + gate

    module, result = rewritten(several)
    torch.testing.assert_close(result(VALUES), module(VALUES))
    module, result = rewritten(shared)
    assert kinds(result) == ["HardSigmoid"]
    torch.testing.assert_close(result(VALUES), module(VALUES))


def test_signed_activations_get_a_float_hard_sigmoid_under_one_name():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), Layer(HARD_SWISHES["divided behind the product"])).eval()
    found = insert_quantizers(module, Quantizers(activations="int8"))
    assert list(left_float(found).values()) == ["Hardsigmoid has no int8 kernel"]


class HandMade(nn.Module):
    """As a MobileNetV3 is written by hand: hard-swish, squeeze-excite with a hard-sigmoid, means, a classifier."""

    def __init__(self, swish, gate, squeeze) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), Layer(swish))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16))
        self.reduce, self.widen, self.gate = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), Layer(gate)
        self.project, self.head, self.squeeze = nn.Conv2d(16, 16, 1), nn.Linear(16, 4), squeeze

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        y = y * self.gate(self.widen(F.relu(self.reduce(self.squeeze(y))))).expand_as(y)
        return self.head((x + self.project(y)).mean(3).mean(2))


SQUEEZES = {
    "avg_pool2d over its own size": lambda x: F.avg_pool2d(x, x.size()[2:]),
    "avg_pool2d over its own shape": lambda x: F.avg_pool2d(x, kernel_size=x.shape[-2:]),
    "avg_pool2d over height and width": lambda x: F.avg_pool2d(x, (x.size(2), x.shape[3])),
    "a mean of means": lambda x: x.mean(3, keepdim=True).mean(2, keepdim=True),
}
OUTPUTS = {**{f"hard-swish, {k}": v for k, v in HARD_SWISHES.items()}, **{f"SiLU, {k}": v for k, v in SILUS.items()}}
WHOLE = [
    ("hard-swish, divided behind the product", "relu6 as a layer", "avg_pool2d over its own size"),
    ("SiLU, a function", "hardtanh", "a mean of means"),
]


@pytest.mark.parametrize(("swish", "gate", "squeeze"), WHOLE)
def test_a_net_written_by_hand_has_no_float_island(swish, gate, squeeze):
    torch.manual_seed(0)
    module = HandMade(OUTPUTS[swish], HARD_SIGMOIDS[gate], SQUEEZES[squeeze]).eval()
    net = quantized(Net(SPEC, module))
    assert left_float(net.module) == {}
    assert sum(isinstance(layer, QuantizedHardSigmoid) for layer in net.module.modules()) == 1 + ("SiLU" not in swish)
    file = exported(net)
    found = coverage(file)
    assert (found.float_layers, found.islands) == ((), ())
    assert len(found.layers) == 6
    quantize, dequantize = found.conversions
    assert quantize <= 2
    assert dequantize <= 2
    x = drawn(8, 3, 16, 16, seed=3)
    exact, rounded, output = said(Net(SPEC, module), x), said(net, x), run(file, x)
    assert ((exact - rounded) ** 2).sum() < 0.02 * (exact**2).sum()
    assert ((rounded - output) ** 2).sum() < 2e-3 * (rounded**2).sum()


@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_global_pooling_is_found_where_it_takes_its_own_size(squeeze):
    module = Layer(lambda m, x: SQUEEZES[squeeze](x)).eval()
    result, x = folded(module), drawn(2, 3, 6, 8)
    assert [type(layer) for _, layer in calls(result, nn.Module)] == [GlobalAveragePool]
    torch.testing.assert_close(result(x), module(x))


@pytest.mark.parametrize(
    "other",
    [
        lambda m, x: F.avg_pool2d(x, x.size()[2:], 1, 1),
        lambda m, x: F.avg_pool2d(x, (x.size(3), x.size(2))),
        lambda m, x: F.avg_pool2d(x, x.size(2)),
        lambda m, x: x.mean(3).mean(1),
        lambda m, x: x.mean(2, keepdim=True).mean(2),
        lambda m, x: x.mean(1).mean(2),
    ],
)
def test_other_pooling_is_left_alone(other):
    module = Layer(other).eval()
    result, x = folded(module), drawn(2, 3, 6, 6)
    assert not any(calls(result, GlobalAveragePool))
    torch.testing.assert_close(result(x), module(x))


CLAMPS = {
    "clamp_min": lambda m, x: torch.clamp_min(x, 0),
    "clamp_min, as a method": lambda m, x: x.clamp_min(-1.5),
    "clamp_max": lambda m, x: x.clamp_max(max=2),
    "clip, in place": lambda m, x: x.clone().clip_(0, 4),
    "clamp, in place": lambda m, x: torch.clamp_(x.clone(), -1, 1),
    "relu_": lambda m, x: F.relu_(x.clone()),
    "hardtanh_": lambda m, x: F.hardtanh_(x.clone(), -2, 1),
    "leaky_relu_": lambda m, x: F.leaky_relu_(x.clone(), 0.2),
}


@pytest.mark.parametrize("case", CLAMPS)
def test_clamps_have_a_kernel_in_every_spelling(case):
    module, result = rewritten(CLAMPS[case])
    torch.testing.assert_close(result(VALUES), module(VALUES), rtol=0, atol=0)
    behind = nn.Sequential(nn.Conv2d(3, 4, 1), Layer(lambda m, x: CLAMPS[case](m, x.mul(x))), nn.Conv2d(4, 4, 1))
    kinds_left = set(left_float(insert_quantizers(behind.eval())).values())
    assert kinds_left <= {"clone has no int8 kernel"}


IN_PLACE = {
    "layer": lambda m, y: m.in_place(y),
    "function with a keyword": lambda m, y: F.relu(y, inplace=True),
    "function": lambda m, y: F.hardtanh_(y, -1, 1),
    "method": lambda m, y: y.clamp_max_(2),
    "arithmetic": lambda m, y: y.mul_(0.5),
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_what_works_in_place_changes_what_is_read_later(case):
    def later(m: Layer, x: Tensor) -> Tensor:
        y = x * 2
        IN_PLACE[case](m, y)
        return y + x

    module = Layer(later).eval()
    result = folded(module)
    torch.testing.assert_close(result(VALUES), module(VALUES))
    rewrite(result, signed=False)
    torch.testing.assert_close(result(VALUES), module(VALUES))


def test_an_expansion_stays_where_something_else_reads_it():
    def expanded(m: Layer, x: Tensor) -> Tensor:
        return torch.cat([x.mean(1, keepdim=True).expand_as(x), x])

    module = Layer(expanded).eval()
    result, x = folded(module), drawn(2, 3, 4, 4)
    rewrite(result, signed=False)
    torch.testing.assert_close(result(x), module(x))


def test_rewriting_leaves_the_users_net_as_it_was():
    module = HandMade(HARD_SWISHES["methods"], HARD_SIGMOIDS["clamp"], SQUEEZES["a mean of means"]).eval()
    before = copy.deepcopy(module.state_dict())
    x = drawn(2, 3, 16, 16)
    expected = module(x)
    insert_quantizers(module)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
