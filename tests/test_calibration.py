import math

import numpy as np
import pytest
import torch
from torch import nn

from compress.edits.calibration import calibrate, fit_weight_clips
from compress.edits.placement import Quantizers, insert_quantizers
from compress.edits.quantizers import activation_quantizers, quantized_layers
from compress.edits.ranges import BINS, MinMax, MovingAverage, Mse, Percentile, Seen
from compress.errors import DataError, ModelError


@pytest.fixture
def rounding() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1))
    module[2].weight.data.zero_()
    module[2].bias.data.zero_()
    return Quantizers()(module)


def images(count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def least_error(values: np.ndarray) -> tuple[float, float]:
    low, high = min(values.min().item(), 0.0), values.max().item()
    histogram, _ = np.histogram(values[values != 0], BINS, (low, high))
    return Mse()(Seen(histogram, low, high, values.size))


def test_ranges_are_those_of_unrounded_activations(rounding):
    batches = images()
    asked = []

    def again():
        asked.append(1)
        return batches

    calibrate(rounding, again)
    found = dict(activation_quantizers(rounding))
    first = found["quantizer_input_1"]
    low, high = least_error(torch.cat(batches).numpy())
    assert first.scale.item() == pytest.approx((high - low) / 255, rel=1e-5)
    conv = rounding.get_submodule("0")
    with torch.no_grad():
        # The weights are rounded; the activations and, as while training, the biases are not.
        hidden = torch.nn.functional.relu6(torch.cat([conv.train()(x, first.scale) for x in batches]))
    _, high = least_error(hidden.numpy())
    assert found["quantizer__1"].scale.item() == pytest.approx(high / 255, rel=1e-5)
    assert found["quantizer__2"].scale.item() == pytest.approx(1e-12)
    assert len(asked) == 2


def test_the_estimator_chooses(rounding):
    values = torch.cat(images()).numpy()
    first = dict(activation_quantizers(rounding))["quantizer_input_1"]
    calibrate(rounding, images, MinMax())
    assert first.scale.item() == pytest.approx((values.max() - values.min()) / 255, rel=1e-5)
    calibrate(rounding, images, Percentile(percentile=95))
    low, high = np.percentile(values, [5, 95])
    assert first.scale.item() == pytest.approx((high - low) / 255, rel=1e-2)
    calibrate(rounding, images, MovingAverage(momentum=0.5))
    low, high = (0.25 * a + 0.25 * b + 0.5 * c for a, b, c in zip(*((x.min(), x.max()) for x in images()), strict=True))
    assert first.scale.item() == pytest.approx((high - low).item() / 255, rel=1e-5)


def test_values_beyond_what_a_quantizer_may_take_count_as_on_its_bounds(rounding):
    first = dict(activation_quantizers(rounding))["quantizer_input_1"]
    first.low = -0.5
    values = np.maximum(torch.cat(images()).numpy(), -0.5)
    calibrate(rounding, images)
    low, high = least_error(values)
    zero_point = round(-low / ((high - low) / 255))
    assert first.zero_point.item() == zero_point
    assert first.scale.item() == pytest.approx((high - low) / 255, rel=1e-2)
    assert -zero_point * float(first.scale) >= -0.5


def test_calibrating_leaves_no_trace_but_ranges(rounding):
    rounding.train()
    rounding.get_submodule("1").eval()
    modes = [layer.training for layer in rounding.modules()]
    quantizers = dict(activation_quantizers(rounding))
    quantizers["quantizer__2"].enabled = False
    calibrate(rounding, lambda: [torch.randn(4, 3, 6, 6)])
    assert [layer.training for layer in rounding.modules()] == modes
    assert {name: q.enabled for name, q in quantizers.items()} == {n: n != "quantizer__2" for n in quantizers}
    assert not any(q._forward_pre_hooks for q in quantizers.values())


def test_an_error_on_the_way_leaves_no_trace_either(rounding):
    rounding.train()
    with pytest.raises(RuntimeError, match="channels"):
        calibrate(rounding, lambda: [torch.zeros(1, 5, 6, 6)])
    assert rounding.training
    assert all(q.enabled and not q._forward_pre_hooks for _, q in activation_quantizers(rounding))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("estimator", [Mse(), Percentile(percentile=90), MovingAverage()])
@pytest.mark.parametrize("constant", [0.7, -1.3, 4e-4, 0.0])
def test_a_constant_is_written_exactly(activations, estimator, constant):
    module = insert_quantizers(nn.Sequential(nn.Conv2d(3, 4, 1)), Quantizers(activations=activations))
    batch = torch.full((2, 3, 4, 4), constant)
    remarks = calibrate(module, lambda: [batch], estimator)
    first = dict(activation_quantizers(module))["quantizer_input_1"]
    torch.testing.assert_close(first(batch), batch, rtol=1e-6, atol=0)
    assert f"quantizer_input_1 ({constant:g})" in remarks[0]
    assert module.eval()(batch).isfinite().all()


def test_what_is_odd_is_said(rounding):
    assert calibrate(rounding, images) == [
        "activations are the same in every calibration image and place at quantizer__2 (0); "
        "the range is taken from 0 to that value",
        "channels whose weights are all 0, and which therefore give only their bias, are in 2 (4)",
    ]


def test_nothing_odd_is_said_of_a_usual_net():
    torch.manual_seed(0)
    module = Quantizers()(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert calibrate(module, images) == []


def test_without_images_there_are_no_ranges(rounding):
    with pytest.raises(DataError, match="no images to take activation ranges from; calibration needs at least one"):
        calibrate(rounding, list)
    with pytest.raises(DataError, match="no images"):
        calibrate(rounding, lambda: [torch.zeros(0, 3, 6, 6)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite_are_refused(rounding, bad):
    batch = images()[0]
    batch[1, 2, 3, 4] = bad
    with pytest.raises(DataError, match=r"a calibration image holds NaN or infinite values as fed to the net; see"):
        calibrate(rounding, lambda: [batch])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight"])
def test_weights_that_are_not_finite_are_named(rounding, name, bad):
    rounding.get_parameter(name).data[1] = bad
    with pytest.raises(ModelError, match=rf"^{name} holds \d+ NaN or infinite values? of \d+, so it cannot be rounded"):
        calibrate(rounding, images)


def test_activations_that_are_not_finite_are_named(rounding):
    rounding.get_parameter("2.weight").data.fill_(3e38)
    with pytest.raises(ModelError, match=r"the activations that quantizer__2 rounds are not finite \(from"):
        calibrate(rounding, images)
    assert all(q.enabled and not q._forward_pre_hooks for _, q in activation_quantizers(rounding))


def squared_error(weight: np.ndarray, scale: np.ndarray, largest: int) -> np.ndarray:
    flat = weight.reshape(len(weight), -1)
    rounded = np.clip(np.rint(flat / scale[:, None]), -largest, largest) * scale[:, None]
    return ((flat - rounded) ** 2).sum(1)


@pytest.mark.parametrize(("weights", "largest"), [("int4", 7), ("int7", 63)])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_coarse_weights_are_clipped_where_it_rounds_best(weights, largest, granularity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 3))
    net[0].weight.data[2] *= torch.randn(3, 5, 5) ** 2
    module = insert_quantizers(net, Quantizers(weights=weights, granularity=granularity))
    fit_weight_clips(module)
    for _, layer in quantized_layers(module):
        weight = layer.weight.detach().numpy()
        furthest = np.abs(weight.reshape(len(weight), -1)).max(1)
        if granularity == "per_tensor":
            furthest[:] = furthest.max()
        tried = [squared_error(weight, f * furthest / largest, largest) for f in np.linspace(1.0, 0.3, 71)]
        found = squared_error(weight, layer.clip.numpy() * furthest / largest, largest)
        if granularity == "per_tensor":
            assert len(set(layer.clip.tolist())) == 1
            assert found.sum() == pytest.approx(np.sum(tried, 1).min(), rel=1e-4)
        else:
            np.testing.assert_allclose(found, np.min(tried, 0), rtol=1e-4)
    assert any((layer.clip < 1).any() for _, layer in quantized_layers(module))


def test_eight_bits_need_no_clipping(rounding):
    fit_weight_clips(rounding)
    assert all((layer.clip == 1).all() for _, layer in quantized_layers(rounding))


def test_a_channel_without_weights_keeps_its_clip():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].weight.data[1] = 0
    module = insert_quantizers(net, Quantizers(weights="int4"))
    fit_weight_clips(module)
    assert module.get_submodule("0").clip[1] == 1
    assert module.get_submodule("0").clip.isfinite().all()
