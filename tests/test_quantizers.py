import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.edits.calibration import calibrate
from compress.edits.quantizers import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLinear,
    Quantizers,
    activation_quantizers,
    integer_parameters,
    rounded_parameters,
    weight_scale,
)
from compress.errors import ModelError


def quantizer(scale: float, zero_point: int) -> ActivationQuantizer:
    result = ActivationQuantizer()
    result.scale.fill_(scale)
    result.zero_point.fill_(zero_point)
    return result


@pytest.mark.parametrize(("scale", "zero_point"), [(0.037, 0), (0.037, 101), (0.0125, 255)])
def test_activations_are_rounded_to_bytes(scale, zero_point):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3
    s = np.float32(scale)
    whole = np.clip(np.rint(x.numpy() / s) + zero_point, 0, 255)
    np.testing.assert_allclose(quantizer(scale, zero_point)(x).numpy(), (whole - zero_point) * s, atol=1e-6)


def test_ties_go_to_the_even_number():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantizer(1.0, 100)(x).tolist() == [0, 2, 2, 0, -2]


def test_the_gradient_passes_inside_the_range_only():
    x = torch.tensor([-1.0, 0.3, 200.0, 300.0], requires_grad=True)
    quantizer(1.0, 0)(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_switched_off_it_passes_its_input_on():
    off, x = quantizer(1.0, 0), torch.tensor([0.3])
    off.enabled = False
    assert off(x) is x


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (-2.5, 0.0), (0.5, 2.0), (-4.0, -1.0), (-1e-3, 1e4), (-7.0, 1e-9)]
)
def test_a_range_holds_its_ends_and_zero(low, high):
    taken = ActivationQuantizer()
    taken.set_range(low, high)
    scale, zero_point = taken.scale.item(), taken.zero_point.item()
    low, high = min(low, 0), max(high, 0)
    assert 0 <= zero_point <= 255
    assert scale == pytest.approx((high - low) / 255)
    assert (0 - zero_point) * scale == pytest.approx(low, abs=scale / 2 * 1.001)
    assert (255 - zero_point) * scale == pytest.approx(high, abs=scale / 2 * 1.001)
    assert taken(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("maximum", [6.0, 6.1, 100.0, 5.999999])
def test_behind_a_relu6_the_range_never_passes_six(maximum):
    taken = ActivationQuantizer(0.0, 6.0)
    taken.set_range(-3.0, maximum)
    assert np.float32(255) * taken.scale.numpy() <= np.float32(6)
    assert 255 * float(taken.scale) <= 6.0
    assert taken.zero_point.item() == 0
    assert taken.scale.item() == pytest.approx(6 / 255)


def test_a_constant_zero_stays_zero():
    taken = ActivationQuantizer()
    taken.set_range(0.0, 0.0)
    assert taken.scale.item() > 0
    assert taken(torch.zeros(3)).tolist() == [0, 0, 0]


def a_layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return QuantizedConv2d(3, 4, 3) if kind == "conv" else QuantizedLinear(6, 4)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_weights_and_biases_become_integers_as_in_numpy(kind):
    layer, input_scale = a_layer(kind), torch.tensor(0.02)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    flat = weight.reshape(4, -1)
    scale = np.abs(flat).max(1) / np.float32(127)
    whole = np.rint(flat / scale[:, None]).astype(np.int8)
    unit = np.float64(np.float32(0.02)) * scale.astype(np.float64)
    offset = np.rint(bias.astype(np.float64) / unit).astype(np.int32)
    found = [tensor.numpy() for tensor in integer_parameters(layer, input_scale)]
    np.testing.assert_array_equal(found[0].reshape(4, -1), whole)
    np.testing.assert_array_equal(found[1], scale)
    np.testing.assert_array_equal(found[2], offset)
    np.testing.assert_allclose(found[3], unit, rtol=1e-7)
    assert [array.dtype for array in found] == [np.int8, np.float32, np.int32, np.float32]
    assert np.abs(found[0].reshape(4, -1)).max(1).tolist() == [127] * 4


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_what_is_simulated_is_what_the_file_holds(kind):
    layer, input_scale = a_layer(kind).eval(), torch.tensor(0.02)
    whole, scale, offset, _ = integer_parameters(layer, input_scale)
    weight, bias = rounded_parameters(layer, input_scale)
    shape = (-1, *(1,) * (weight.dim() - 1))
    torch.testing.assert_close(weight, whole.float() * scale.view(shape), rtol=0, atol=1e-8)
    unit = input_scale.double() * scale.double()
    torch.testing.assert_close(bias, (offset.double() * unit).float(), rtol=0, atol=0)
    assert rounded_parameters(layer.train(), input_scale)[1] is layer.bias


def test_a_dead_channel_with_a_large_bias_does_not_overflow():
    layer, input_scale = a_layer("conv").eval(), torch.tensor(1e-4)
    layer.weight.data[1] = 1e-13
    layer.weight.data[2] = 0
    layer.bias.data[:3] = torch.tensor([0.5, 40.0, -40.0])
    _, scale, offset, _ = integer_parameters(layer, input_scale)
    values = offset.double() * scale.double() * input_scale.double()
    torch.testing.assert_close(values.float(), layer.bias.detach(), rtol=1e-6, atol=1e-6)
    assert offset.abs().max().item() < 2**31 - 1
    np.testing.assert_allclose(rounded_parameters(layer, input_scale)[1].detach(), layer.bias.detach(), atol=1e-5)


def test_a_layer_of_zeros_behind_a_constant_zero_keeps_its_bias():
    layer, nothing = a_layer("linear").eval(), ActivationQuantizer()
    nothing.set_range(0.0, 0.0)
    layer.weight.data.zero_()
    layer.bias.data[:] = torch.tensor([1.0, -1.0, 0.0, 1e-3])
    output = layer(torch.zeros(1, 6), nothing.scale)
    torch.testing.assert_close(output[0], layer.bias.detach(), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(weight_scale(layer, nothing.scale)).all()


def test_the_gradient_of_the_weights_passes_the_rounding():
    layer, x = a_layer("linear").train(), torch.randn(5, 6)
    layer(x, torch.tensor(0.02)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 6))


class Residual(nn.Module):
    """What the networks of the pipelines are made of: clipped and plain convolutions, a sum, pools, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = F.relu(self.second(y) + y)
        return self.head(F.adaptive_avg_pool2d(self.pool(y), 1).flatten(1))


def test_quantizers_stand_behind_all_that_computes():
    torch.manual_seed(0)
    quantized = Quantizers()(Residual().eval())
    found = []
    for node in quantized.graph.nodes:
        called = quantized.get_submodule(node.target) if node.op == "call_module" else None
        found.append(type(called).__name__ if called is not None else node.name)
    q = "ActivationQuantizer"
    assert [name for name in found if name not in ("output",) and not name.startswith(("quantizer", "scale"))] == [
        "x", q, "QuantizedConv2d", "ReLU6", q, "QuantizedConv2d", q, "add", "relu", q,
        "MaxPool2d", q, "GlobalAveragePool", q, "flatten", "QuantizedLinear",
    ]  # fmt: skip
    bounds = {name: (layer.low, layer.high) for name, layer in activation_quantizers(quantized)}
    assert bounds["quantizer_first_2"] == (0, 6)
    assert bounds["quantizer_relu"] == (0, math.inf)
    assert bounds["quantizer_x"] == (-math.inf, math.inf)


def test_rounding_changes_a_network_a_little():
    torch.manual_seed(0)
    module, x = Residual().eval(), torch.randn(16, 3, 8, 8)
    quantized = Quantizers()(module)
    calibrate(quantized, lambda: [x])
    with torch.no_grad():
        exact, rounded = module(x), quantized.eval()(x)
    noise = ((exact - rounded) ** 2).mean() / (exact**2).mean()
    assert 0 < noise < 0.01


def test_quantizing_leaves_the_network_as_it_was():
    module = Residual().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quantized = Quantizers()(module)
    quantized.get_submodule("head").weight.data.zero_()
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_network_without_layers_to_quantize_is_refused():
    with pytest.raises(ModelError, match="Sequential has no Conv2d and no Linear layer, so there is nothing"):
        Quantizers()(nn.Sequential(nn.ReLU()))


def test_a_layer_of_an_unknown_kind_is_refused():
    other = nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4)
    with pytest.raises(ModelError, match="layer 0 is a NonDynamicallyQuantizableLinear: only plain Conv2d and Linear"):
        Quantizers()(nn.Sequential(other))
