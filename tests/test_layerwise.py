"""Signal-to-noise behind every quantizer: against NumPy, against ONNX Runtime's own floats, and where a file breaks."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny import Tiny

from compress.edits import Quantizers
from compress.edits.calibration import calibrate
from compress.edits.graph import folded
from compress.edits.quantizers import activation_quantizers
from compress.export.onnx import Export, Exporter
from compress.export.reading import Reading
from compress.measure.coverage import coverage
from compress.measure.file import outputs, session
from compress.measure.layerwise import (
    LARGEST_DB,
    LayerNoise,
    Power,
    Recorder,
    decibels,
    first_divergence,
    layer_noise,
)
from compress.measure.layerwise import Exposed as ExposedFile
from compress.net import Net, Spec, build

QUANTIZERS = ["quantizer_x", "quantizer_stem_2", "quantizer_middle_2", "quantizer_back_0", "quantizer_add"]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def pair(x):
    """A float net, the same with quantizers, and that one's file."""
    net = build(Spec(architecture=Tiny(), classes=4, image=(3, 16, 16)), seed=0)
    with torch.no_grad():
        net.module.train()(torch.from_numpy(x))
    edit = Quantizers()
    module = edit(net.module.eval()).eval()
    calibrate(module, lambda: [torch.from_numpy(x)])
    rounding = Net(net.spec.edited(edit), module)
    return net, rounding, Exporter(Export(), (0.5,) * 3, (0.5,) * 3)(rounding, {})


def test_decibels_are_ten_logarithms_of_the_powers_ratio():
    random = np.random.default_rng(1)
    reference, other = random.normal(size=(2, 50))
    power = Power()
    power.add(reference[:20], other[:20])
    power.add(reference[20:], other[20:])
    expected = 10 * math.log10((reference**2).sum() / ((reference - other) ** 2).sum())
    assert power.db == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("signal", "noise", "db"), [(100.0, 1.0, 20.0), (3.0, 0.0, 160.0), (0.0, 0.0, 160.0), (0.0, 1.0, -160.0)]
)
def test_a_ratio_is_a_number_for_equal_and_for_empty_signals_too(signal, noise, db):
    assert decibels(signal, noise) == db


@pytest.mark.parametrize(
    ("rounding", "optimized", "plain", "diverges"),
    [
        (30.0, 25.0, 40.0, False),
        (30.0, 19.9, 40.0, True),
        (30.0, 40.0, 19.9, True),
        (12.0, 15.0, 15.0, False),  # rounding itself left less
        (12.0, 11.0, 15.0, True),
        (None, 19.0, None, True),
        (None, None, None, False),
    ],
)
def test_a_file_diverges_where_it_loses_more_than_rounding_and_a_hundredth(rounding, optimized, plain, diverges):
    noise = LayerNoise("q", rounding, optimized, plain)
    assert noise.diverges is diverges
    assert first_divergence([LayerNoise("p", 30.0, 30.0, 30.0), noise]) == (noise if diverges else None)


def test_without_rounding_the_net_is_the_float_one(pair, x):
    net, rounding, _ = pair
    found = Recorder.values(rounding.module, torch.from_numpy(x), rounding=False)
    with torch.no_grad():
        expected = folded(net.module)(torch.from_numpy(x))
    np.testing.assert_allclose(found["logits"], expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found["quantizer_x"], x)


def test_with_rounding_it_is_the_net_itself(pair, x):
    _, rounding, _ = pair
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, result, name=name: seen.update({name: result.numpy()}))
        for name, layer in activation_quantizers(rounding.module)
    ]
    with torch.no_grad():
        logits = rounding.module(torch.from_numpy(x)).numpy()
    for hook in hooks:
        hook.remove()
    found = Recorder.values(rounding.module, torch.from_numpy(x), rounding=True)
    np.testing.assert_array_equal(found.pop("logits"), logits)
    assert found.keys() == seen.keys()
    for name, values in seen.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("level", ["all", "none"])
def test_exposed_values_are_what_the_runtime_reads_back(pair, x, level):
    """Dequantized in NumPy they are the outputs of the file's own DequantizeLinear, run without optimisations."""
    _, _, model = pair
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    names = {node.name.removesuffix("/dequantize"): node.output[0] for node in model.graph.node}
    exposed = ExposedFile(model, level)
    for name in exposed.grids:
        whole.graph.output.append(onnx.helper.make_tensor_value_info(names[name], onnx.TensorProto.FLOAT, None))
    logits, *expected = outputs(session(whole.SerializeToString(), level="none"), x)
    found = exposed.values(x)
    assert [*found][:5] == QUANTIZERS
    scales = {name: scale for name, (scale, _) in exposed.grids.items()}
    for (name, values), wanted in zip(found.items(), expected, strict=False):
        steps = np.abs(values - wanted) / scales[name]
        assert steps.max() <= (0.01 if level == "none" else 1.01)  # a tie may fall the other way in an integer kernel
        assert (steps > 0.01).mean() < 0.01
    np.testing.assert_allclose(found["logits"], logits, atol=0.02)


def test_exposing_values_leaves_the_integer_kernels(pair):
    _, _, model = pair
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            exposed.graph.output.append(
                onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None)
            )
    kinds = ("QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Conv", "DequantizeLinear")
    before, after = coverage(model), coverage(exposed)
    assert [before.count(kind) for kind in kinds] == [after.count(kind) for kind in kinds] == [3, 1, 1, 1, 0, 0]


def test_every_quantizer_is_compared_in_the_order_of_the_data(pair, x):
    _, rounding, model = pair
    noise = layer_noise(rounding.module, model, x)
    assert [each.quantizer for each in noise] == [*QUANTIZERS, "quantizer_pool_global", "logits"]
    by_name = {each.quantizer: each for each in noise}
    scale, point = rounding.module.quantizer_x.scale.item(), rounding.module.quantizer_x.zero_point.item()
    rounded = (np.clip(np.round(x / scale) + point, 0, 255) - point) * scale
    expected = 10 * math.log10((x.astype(float) ** 2).sum() / ((x - rounded) ** 2).sum())
    assert by_name["quantizer_x"].rounding_db == pytest.approx(expected, abs=0.05)
    assert by_name["quantizer_x"].file_db == by_name["quantizer_x"].plain_db == LARGEST_DB
    assert all(20 < each.rounding_db < 60 for each in noise)
    assert all(min(each.file_db, each.plain_db) > 30 for each in noise)
    assert first_divergence(noise) is None


def test_the_first_layer_that_is_broken_in_the_file_is_named(pair, x):
    _, rounding, model = pair
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    layer = next(each for each in Reading(broken).layers() if each.name == "middle.0")
    layer.weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(layer.weight), layer.weight.name))
    noise = layer_noise(rounding.module, broken, x)
    assert first_divergence(noise).quantizer == "quantizer_middle_2"
    assert [each.diverges for each in noise][:2] == [False, False]


def test_without_a_net_the_two_forms_of_the_file_are_compared(pair, x):
    _, _, model = pair
    noise = layer_noise(None, model, x)
    assert [each.quantizer for each in noise] == [*QUANTIZERS, "quantizer_pool_global", "logits"]
    assert all(each.rounding_db is None and each.plain_db is None and each.file_db > 30 for each in noise)
