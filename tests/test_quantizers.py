import numpy as np
import pytest
import torch
from torch import nn

from compress.edits.quantizers import (
    ActivationQuantizer,
    DynamicLinear,
    QuantizedHardSigmoid,
    QuantizedLayer,
    integer_parameters,
    quantized_layer,
    rounded_parameters,
    weight_scale,
)


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


def a_layer(kind: str, weights: str = "int8", *, per_channel: bool = True) -> QuantizedLayer:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3) if kind == "conv" else nn.Linear(6, 4)
    return quantized_layer(layer, weights, per_channel=per_channel, dynamic=False)


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


@pytest.mark.parametrize(("weights", "largest"), [("int8", 127), ("int7", 63), ("int4", 7)])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_fewer_bits_have_fewer_integers(kind, weights, largest):
    layer = a_layer(kind, weights)
    weight = layer.weight.detach().numpy().reshape(4, -1)
    scale = np.abs(weight).max(1) / np.float32(largest)
    whole, found, *_ = integer_parameters(layer, torch.tensor(0.02))
    np.testing.assert_array_equal(whole.numpy().reshape(4, -1), np.rint(weight / scale[:, None]))
    np.testing.assert_array_equal(found, scale)
    assert whole.abs().max() == largest


def test_a_narrower_clip_writes_small_weights_more_finely():
    layer = a_layer("linear", "int4")
    layer.clip.fill_(0.5)
    weight = layer.weight.detach().numpy()
    scale = np.float32(0.5) * np.abs(weight).max(1) / np.float32(7)
    expected = np.clip(np.rint(weight / scale[:, None]), -7, 7) * scale[:, None]
    np.testing.assert_allclose(rounded_parameters(layer.eval(), torch.tensor(0.02))[0].detach(), expected, rtol=1e-6)


def test_one_scale_for_the_whole_tensor():
    layer = a_layer("conv", per_channel=False)
    whole, scale, *_ = integer_parameters(layer, torch.tensor(0.02))
    weight = layer.weight.detach().numpy()
    assert scale.tolist() == [np.abs(weight).max() / np.float32(127)] * 4
    np.testing.assert_array_equal(whole, np.rint(weight / scale[0].item()))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (-4.0, 0.5), (0.0, 0.0)])
def test_a_symmetric_range_has_its_zero_in_the_middle(low, high):
    taken = ActivationQuantizer(activations="int8")
    taken.set_range(low, high)
    scale = taken.scale.item()
    assert taken.zero_point.item() == 0
    assert scale == pytest.approx(max(-low / 128, high / 127, 1e-12))
    x = torch.linspace(low - 1, high + 1, 101)
    whole = np.clip(np.rint(x.numpy() / np.float32(scale)), -128, 127)
    np.testing.assert_allclose(taken(x), whole * np.float32(scale), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.3, 0.7), (-3.0, 30.0)])
def test_no_end_of_a_range_passes_its_bound(low, high):
    taken = ActivationQuantizer(low, high)
    taken.set_range(-100.0, 100.0)
    scale, zero_point = float(taken.scale), taken.zero_point.item()
    assert -zero_point * scale >= low
    assert (255 - zero_point) * scale <= high
    assert scale == pytest.approx((high - low) / 255, rel=0.02)


def test_a_hard_sigmoid_is_an_addition_that_is_rounded():
    x = torch.linspace(-5, 5, 999)
    whole = np.clip(np.rint((x.numpy() + 3) / np.float32(6 / 255) + 1 / 64), 0, 255)
    found = QuantizedHardSigmoid()(x).numpy()
    np.testing.assert_allclose(found, whole / 255, atol=1e-6)
    assert np.abs(found - np.clip(x.numpy() + 3, 0, 6) / 6).max() <= (0.5 + 1 / 64) / 255 + 1e-6


def test_a_dynamic_layer_rounds_by_the_extremes_of_the_batch():
    plain = nn.Linear(6, 4)
    layer = quantized_layer(plain, "int8", per_channel=True, dynamic=True).eval()
    assert isinstance(layer, DynamicLinear)
    x = torch.randn(5, 6).numpy() + 1
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255))
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    weight = plain.weight.detach().numpy()
    step = np.abs(weight).max(1, keepdims=True) / np.float32(127)
    expected = rounded @ (np.rint(weight / step) * step).T + plain.bias.detach().numpy()
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_zero_passes_a_dynamic_layer():
    layer = quantized_layer(nn.Linear(6, 4), "int8", per_channel=True, dynamic=True)
    torch.testing.assert_close(layer(torch.zeros(2, 6)), layer.bias.expand(2, 4))
