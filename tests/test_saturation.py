"""Sums of two products in 16 bits, against loops over integers."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from tiny import Tiny
from torch import nn

from compress.edits import Quantizers
from compress.edits.calibration import calibrate
from compress.edits.quantizers import integer_parameters, quantized_layer
from compress.export.onnx import Export, Exporter
from compress.export.reading import Reading
from compress.measure import saturation
from compress.measure.saturation import lost, packed, risky_pairs, saturated_logits, saturation_risk
from compress.net import Net, Spec, build


def clipped(value: int) -> int:
    return max(-32768, min(32767, value))


def test_a_pair_is_at_risk_where_some_inputs_leave_16_bits():
    numbers = [-127, -100, -65, -64, -63, -1, 0, 1, 63, 64, 65, 100, 127]
    pairs = [*itertools.product(numbers, numbers)]
    expected = [
        any(clipped(x * a + y * b) != x * a + y * b for x in (0, 128, 255) for y in (0, 128, 255)) for a, b in pairs
    ]
    assert risky_pairs(np.array(pairs))[:, 0].tolist() == expected
    assert any(expected)
    assert not all(expected)


def test_an_odd_number_of_weights_leaves_one_without_a_partner():
    assert risky_pairs(np.array([[127, 127, 127]], np.int8)).tolist() == [[True, False]]


def quantized_conv(groups: int, kernel: int, inputs: int = 6, **options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(groups + kernel)
    conv = nn.Conv2d(inputs, 4, kernel, groups=groups, **options)
    # Most weights near the largest, so that many sums are cut.
    conv.weight.data = conv.weight.data.sign() * (0.6 + 0.4 * torch.rand_like(conv.weight))
    return quantized_layer(conv, "int8", per_channel=True, dynamic=False).eval(), torch.tensor(0.02)


def loops(whole, weight, point, groups, stride, pad, dilation):
    """A convolution of integers as a CPU without VNNI computes it, and without its saturation, by loops."""
    n, channels, height, width = whole.shape
    outs, per_group, kh, kw = weight.shape
    padded = np.full((n, channels, height + 2 * pad, width + 2 * pad), point, np.int64)
    padded[:, :, pad : pad + height, pad : pad + width] = whole
    rows = (height + 2 * pad - dilation * (kh - 1) - 1) // stride + 1
    columns = (width + 2 * pad - dilation * (kw - 1) - 1) // stride + 1
    found, cut = np.zeros((2, n, outs, rows, columns), np.int64), 0
    for i, o, y, x in itertools.product(range(n), range(outs), range(rows), range(columns)):
        first = o // (outs // groups) * per_group
        products = [
            int(padded[i, first + c, y * stride + dilation * a, x * stride + dilation * b]) * int(weight[o, c, a, b])
            for a in range(kh)
            for b in range(kw)
            for c in range(per_group)
        ]
        products += [0] * (len(products) % 2)
        sums = [p + q for p, q in zip(products[::2], products[1::2], strict=True)]
        found[0, i, o, y, x] = sum(sums)
        found[1, i, o, y, x] = sum(map(clipped, sums))
        cut += sum(clipped(each) != each for each in sums)
    return *found, cut


@pytest.mark.parametrize(
    ("groups", "kernel", "options"),
    [
        (1, 1, {}),
        (1, 3, {"padding": 1}),
        (2, 3, {"padding": 1, "stride": 2}),
        (1, 2, {"dilation": 2, "padding": 2}),
        (1, 1, {"inputs": 5}),
    ],
)
def test_what_is_lost_is_what_loops_lose(groups, kernel, options):
    layer, scale = quantized_conv(groups, kernel, **options)
    random, point = np.random.default_rng(0), 17
    whole = random.integers(128, 256, (2, options.get("inputs", 6), 5, 6))
    weight, weight_scale, _, _ = integer_parameters(layer, scale)
    exact, cut, count = loops(
        whole, weight.numpy(), point, groups, options.get("stride", 1), options.get("padding", 0),
        options.get("dilation", 1),
    )  # fmt: skip
    with torch.no_grad():
        found, sums, looked_at = lost(layer, torch.from_numpy(whole).float(), scale, torch.tensor(point))
    expected = (cut - exact) * float(scale) * weight_scale.detach().numpy()[:, None, None]
    np.testing.assert_allclose(found.view(*cut.shape).numpy(), expected, rtol=1e-5)
    assert sums == count > 0
    assert looked_at >= count


def test_a_linear_layer_loses_pairs_of_features():
    torch.manual_seed(0)
    linear = nn.Linear(7, 3)
    linear.weight.data = linear.weight.data.sign() * (0.7 + 0.3 * torch.rand_like(linear.weight))
    layer = quantized_layer(linear, "int8", per_channel=True, dynamic=False).eval()
    whole = np.random.default_rng(0).integers(200, 256, (4, 7))
    weight, weight_scale, _, _ = integer_parameters(layer, torch.tensor(0.02))
    exact, cut, count = loops(whole[:, :, None, None], weight.numpy()[:, :, None, None], 0, 1, 1, 0, 1)
    with torch.no_grad():
        found, sums, _ = lost(layer, torch.from_numpy(whole).float(), torch.tensor(0.02), torch.tensor(0))
    expected = (cut - exact)[:, :, 0] * 0.02 * weight_scale.detach().numpy()[:, None]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert sums == count > 0


def net_and_file(**edit):
    net = build(Spec(architecture=Tiny(), classes=4, image=(3, 16, 16)), seed=0)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32))
    with torch.no_grad():
        net.module.train()(x)
    change = Quantizers(**edit)
    module = change(net.module.eval()).eval()
    calibrate(module, lambda: [x])
    target = {"int7": "onnxruntime-avx2"}.get(change.weights, "onnxruntime")
    target = "tensorrt" if change.activations == "int8" else target
    exporter = Exporter(Export(target=target), (0.5,) * 3, (0.5,) * 3)
    return module, exporter(Net(net.spec.edited(change), module), {}), x


def test_the_risk_is_counted_on_the_file():
    _, model, _ = net_and_file()
    found = saturation_risk(model)
    expected, total = {}, 0
    for layer in Reading(model).layers():
        whole = onnx.numpy_helper.to_array(layer.weight).astype(int)
        rows = (whole.transpose(0, 2, 3, 1) if whole.ndim == 4 else whole).reshape(len(whole), -1)
        pairs = [(a, b) for row in rows for a, b in itertools.zip_longest(row[::2], row[1::2], fillvalue=0)]
        total += len(pairs)
        risky = sum(a * b >= 0 and abs(int(a) + int(b)) * 255 > (32767 if a + b > 0 else 32768) for a, b in pairs)
        expected[layer.name] = risky
    assert {risk.layer: risk.pairs for risk in found.risks} == {name: n for name, n in expected.items() if n}
    assert found.pairs == total
    assert found.share == pytest.approx(100 * sum(expected.values()) / total)
    assert [risk.share for risk in found.risks] == sorted((risk.share for risk in found.risks), reverse=True)


def test_weights_of_seven_bits_lose_nothing():
    module, model, x = net_and_file(weights="int7")
    found = saturation_risk(model)
    assert found.risks == ()
    assert found.pairs > 0
    logits, cut = saturated_logits(module, x)
    with torch.no_grad():
        np.testing.assert_array_equal(logits, module(x).numpy())
    assert cut == {}


def test_signed_activations_are_not_judged():
    _, model, _ = net_and_file(activations="int8")
    assert saturation_risk(model).pairs == 0


def test_depthwise_kernels_add_in_32_bits():
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="depthwise", group=8)
    weight = onnx.numpy_helper.from_array(np.full((8, 1, 3, 3), 127, np.int8), "w")
    graph = onnx.helper.make_graph([node], "net", [], [], [weight])
    (layer,) = Reading(onnx.helper.make_model(graph)).layers()
    assert packed(layer) is None


def test_later_layers_see_what_earlier_ones_lost():
    module, _, x = net_and_file()
    logits, cut = saturated_logits(module, x)
    with torch.no_grad():
        exact = module(x).numpy()
    assert set(cut) <= {"stem.0", "middle.0", "back.0", "head"}
    assert sum(cut.values()) > 0
    assert not np.array_equal(logits, exact)
    assert np.isfinite(logits).all()


def test_a_simulation_that_takes_minutes_is_not_made(monkeypatch):
    module, _, x = net_and_file()
    monkeypatch.setattr(saturation, "WORTH", 10)
    assert saturated_logits(module, x) is None
