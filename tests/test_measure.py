import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ExportError, ModelError
from compress.files.onnx_file import read_onnx
from compress.measure.accuracy import judge, top_k, wilson
from compress.measure.comparison import compare_files, render
from compress.measure.coverage import Coverage, Kernel, coverage, require_int8
from compress.measure.file import count_macs, fixed_batch, outputs, read_file, session
from compress.measure.latency import input_for, measure_latency, percentiles
from compress.measure.slowness import causes, slowness


def test_top_k_counts_labels_among_the_best():
    logits = np.array([[3, 1, 2], [3, 1, 2], [1, 2, 3], [1, 3, 2]], dtype=np.float32)
    labels = np.array([0, 2, 0, 0])
    assert [top_k(logits, labels, k) for k in (1, 2, 3, 5)] == [25.0, 50.0, 100.0, 100.0]


def test_of_equal_logits_the_lower_index_counts():
    logits, labels = np.zeros((4, 4), np.float32), np.arange(4)
    assert [top_k(logits, labels, k) for k in (1, 2, 3, 4)] == [25.0, 50.0, 75.0, 100.0]
    assert top_k(np.array([[0.0, 1.0, 1.0]]), np.array([1]), 1) == 100.0
    assert top_k(np.array([[0.0, 1.0, 1.0]]), np.array([2]), 1) == 0.0


def test_top_k_agrees_with_a_loop():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 10)), random.integers(0, 10, 200)
    for k in (1, 5):
        hits = sum(
            label in sorted(range(10), key=lambda c: -row[c])[:k] for row, label in zip(logits, labels, strict=True)
        )
        assert top_k(logits, labels, k) == pytest.approx(hits / 2)


def test_no_images_no_accuracy():
    assert top_k(np.zeros((0, 3)), np.zeros(0, int), 1) == 0.0
    assert wilson(0.0, 0) == (0.0, 100.0)
    nothing = judge(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, int))
    assert (nothing.samples, nothing.agreement) == (0, 0.0)


@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (the score interval)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_that_of_the_literature(hits, samples, low, high):
    found = wilson(100 * hits / samples, samples)
    assert found == pytest.approx((100 * low, 100 * high), abs=0.006)


@pytest.mark.parametrize(("top1", "samples"), [(50.0, 10), (98.7, 540), (100.0, 12), (0.0, 7)])
def test_the_ends_of_the_interval_solve_wilsons_equation(top1, samples):
    p, z = top1 / 100, 1.959963984540054
    for end in wilson(top1, samples):
        # (p - q)² = z² q (1 - q) / n
        q = end / 100
        assert (p - q) ** 2 == pytest.approx(z**2 * q * (1 - q) / samples, abs=1e-12)


def test_judging_compares_with_the_labels_and_with_each_other():
    ours = np.eye(6)[[0, 1, 2, 3]]
    theirs = np.eye(6)[[0, 1, 2, 4]]
    found = judge(ours, theirs, np.array([0, 1, 5, 4]))
    assert (found.top1, found.top1_onnx, found.agreement, found.samples) == (50.0, 75.0, 75.0, 4)
    assert (found.top1_low, found.top1_high) == wilson(50.0, 4)
    assert found.top5 == 75.0  # of the zeros those of lower index count; 5 comes last


def test_percentiles_lie_between_the_measured():
    found = percentiles([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found.p50 == 3.0
    assert found.p90 == pytest.approx(4.6)  # position 0.9·4 = 3.6 of the sorted ones
    assert found.p99 == pytest.approx(4.96)


def model_of(nodes, weights, shape=("batch", 3, 8, 8), kind=TensorProto.FLOAT, outputs=("batch", None, None, None)):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def a_convolution(**attributes) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["input", "w"], ["logits"], **attributes)
    shape = (4, 3 // attributes.get("group", 1), 3, 3)
    if attributes.get("group") == 3:
        shape = (6, 1, 3, 3)
    return model_of([node], {"w": np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"pads": [1, 1, 1, 1]}, 8 * 8 * 4 * 3 * 9),
        ({"strides": [2, 2]}, 3 * 3 * 4 * 3 * 9),
        ({"pads": [1, 1, 1, 1], "group": 3}, 8 * 8 * 6 * 9),
    ],
)
def test_macs_of_a_convolution_are_positions_times_weights(attributes, expected):
    assert count_macs(a_convolution(**attributes)) == expected


def test_macs_of_a_linear_layer_are_its_weights():
    node = helper.make_node("Gemm", ["input", "w"], ["logits"], transB=1)
    model = model_of([node], {"w": np.ones((7, 5), np.float32)}, shape=("batch", 5), outputs=("batch", 7))
    assert count_macs(model) == 35


def test_sizes_that_cannot_be_inferred_are_an_error():
    node = helper.make_node("Conv", ["input", "w"], ["logits"], name="first")
    model = model_of([node], {"w": np.ones((4, 3, 3, 3), np.float32)}, shape=("batch", 3, "height", "width"))
    with pytest.raises(ExportError, match="the output size of node first cannot be inferred, so MACs"):
        count_macs(model)


def test_coverage_counts_what_the_runtime_really_runs():
    found = coverage(a_convolution())
    assert (found.float_convs, found.int8_convs, found.conversions) == (1, 0, (0, 0))
    assert Coverage({"QLinearConv": 3, "Conv": 1}).count("QLinearConv", "Conv", "Clip") == 4


def island(operator: str, reason: str = "there is no int8 kernel for it") -> Kernel:
    return Kernel(f"{operator}_1", operator, operator, False, reason)


INT8 = Kernel("stem", "Conv", "QLinearConv", True, is_layer=True)
FLOAT = Kernel("head", "Gemm", "Gemm", False, "its weights are float", is_layer=True)
LOST = Kernel("head", "Gemm", "Gemm", False, "its output is not rounded", is_layer=True)


def test_a_clip_between_integers_is_an_error():
    found = Coverage({"QLinearConv": 1, "Clip": 1}, (INT8, island("Clip", "its range is wider")))
    with pytest.raises(
        ExportError, match=r"1 Clip operators are left between int8 layers: Clip_1 \(its range is wider\); a range is"
    ):
        require_int8(found, {})


def test_a_layer_that_stays_float_without_a_reason_is_an_error():
    found = Coverage({"QLinearConv": 1, "Gemm": 1}, (INT8, LOST))
    with pytest.raises(
        ExportError, match=r"1 of 2 layers stay float in ONNX Runtime .+: head \(its output is not round"
    ):
        require_int8(found, {"stem": "asked for"})


def test_a_layer_whose_weights_nobody_rounded_is_named():
    found = Coverage({"QLinearConv": 1, "Gemm": 1, "DequantizeLinear": 1}, (INT8, FLOAT))
    assert require_int8(found, {}) == ("left in float: head (its weights are float)",)


def test_layers_that_are_left_in_float_are_named_with_their_reasons():
    found = Coverage({"QLinearConv": 1, "Gemm": 1, "DequantizeLinear": 1}, (INT8, FLOAT))
    (warning,) = require_int8(found, {"head": "kept in float, as asked for"})
    assert warning == "left in float: head (kept in float, as asked for)"


def test_detours_through_float_are_warned_of():
    kernels = (INT8, island("HardSwish"), island("HardSwish"))
    (warning,) = require_int8(Coverage({"QLinearConv": 2, "DequantizeLinear": 3}, kernels), {})
    assert "goes back to float 3 times on the way (2 HardSwish without an int8 kernel: HardSwish_1 (there" in warning
    assert require_int8(Coverage({"QLinearConv": 2, "DequantizeLinear": 2}, kernels), {}) == ()


def test_dynamic_ranges_are_int8_and_warned_of():
    found = Coverage(
        {"ConvInteger": 2}, (Kernel("stem", "ConvInteger", "ConvInteger", True, is_layer=True), island("Add"))
    )
    (warning,) = require_int8(found, {})
    assert warning.startswith("2 layers take the range of their input from the input (dynamic ranges)")
    assert found.islands == ()


def rounding(value: str, name: str, scale: str, kind: str = "zero") -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear, giving `<name>`."""
    return [
        helper.make_node("QuantizeLinear", [value, scale, kind], [f"{name}_q"], name=f"{name}/q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, kind], [name], name=f"{name}/dq"),
    ]


def qdq(after: list[onnx.NodeProto], last: str, kind=np.uint8, weight=np.int8, **more) -> onnx.ModelProto:
    """Input, rounded, a Conv of integers called `conv`, and what follows its output `y`."""
    weights = {"w": np.full((16, 16, 1, 1), 3, weight), "s": np.array(0.02, np.float32), "zero": np.array(0, kind)}
    nodes = [
        *rounding("input", "x", "s"),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], name="conv/weight"),
        helper.make_node("Conv", ["x", "wf"], ["y"], name="conv"),
        *after,
        helper.make_node("Identity", [last], ["logits"]),
    ]
    return model_of(nodes, weights | more, shape=("batch", 16, 8, 8))


@pytest.mark.parametrize(
    ("after", "last", "reason"),
    [
        (rounding("y", "z", "s"), "z", ""),
        ([helper.make_node("Relu", ["y"], ["r"], name="relu"), *rounding("r", "z", "s")], "z", ""),
        ([helper.make_node("Elu", ["y"], ["z"], name="elu")], "z", "its output is not rounded: it goes to Elu elu"),
        (
            [helper.make_node("Clip", ["y", "", "one"], ["c"], name="clip"), *rounding("c", "z", "s")],
            "z",
            "the range behind Clip clip is wider than that clip",
        ),
        (
            [helper.make_node("Add", ["y", "y"], ["a"], name="add"), *rounding("y", "z", "s")],
            "a",
            "its output is not rounded: it goes to Add add",
        ),
    ],
)
def test_a_float_convolution_gets_its_reason(after, last, reason):
    found = coverage(qdq(after, last, one=np.array(1.0, np.float32)))
    (kernel,) = (kernel for kernel in found.layers if kernel.name == "conv")
    assert (kernel.int8, kernel.reason) == (not reason, reason)
    assert (found.int8_convs, found.float_convs) == (int(not reason), int(bool(reason)))


def test_a_float_layer_is_float_by_its_weights():
    (kernel,) = coverage(a_convolution()).layers
    assert (kernel.operator, kernel.int8, kernel.reason) == ("Conv", False, "its weights are float")


def test_a_layer_behind_an_unrounded_value():
    nodes = [
        helper.make_node("Elu", ["input"], ["x"], name="elu"),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]),
        helper.make_node("Conv", ["x", "wf"], ["logits"], name="conv"),
    ]
    weights = {"w": np.full((16, 16, 1, 1), 3, np.int8), "s": np.array(0.02, np.float32)}
    (kernel,) = coverage(model_of(nodes, weights, shape=("batch", 16, 8, 8))).layers
    assert kernel.reason == "its input is not rounded: it comes from Elu elu"


def test_islands_are_named_with_their_reasons():
    middle = [
        *rounding("y", "z", "s"),
        helper.make_node("HardSwish", ["z"], ["h"], name="swish"),
        *rounding("h", "g", "s"),
    ]
    found = coverage(qdq(middle, "g"))
    assert [(each.name, each.reason) for each in found.islands] == [("swish", "there is no int8 kernel for HardSwish")]
    assert found.layers[0].int8


def test_a_graph_that_the_runtime_refuses_is_an_error(tmp_path):
    model = a_convolution()
    model.ir_version = 9999
    with pytest.raises(ExportError, match=r"ONNX Runtime .+ refuses the exported graph: "):
        session(model.SerializeToString())
    path = tmp_path / "new.onnx"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=re.escape(f"refuses {path}: ")):
        session(path)


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT, np.float32), (TensorProto.UINT8, np.uint8)])
def test_an_input_fits_the_file(kind, dtype):
    node = helper.make_node("Cast", ["input"], ["logits"], to=TensorProto.FLOAT)
    model = model_of([node], {}, shape=("batch", 3, "height", 10), kind=kind)
    first, again = (input_for(session(model.SerializeToString()), 2)["input"] for _ in range(2))
    assert (first.shape, first.dtype) == ((2, 3, 224, 10), dtype)
    np.testing.assert_array_equal(first, again)


def fixed(batch: int) -> onnx.ModelProto:
    """Doubles images, so many at a time."""
    node = helper.make_node("Add", ["input", "input"], ["logits"])
    return model_of([node], {}, shape=(batch, 3), outputs=(batch, 3))


@pytest.mark.parametrize(("batch", "images"), [(1, 5), (2, 4), (2, 5), (4, 3)])
def test_a_file_of_fixed_batch_size_is_fed_that_many_at_a_time(batch, images):
    net = session(fixed(batch).SerializeToString())
    x = np.random.default_rng(0).normal(size=(images, 3)).astype(np.float32)
    assert fixed_batch(net) == batch
    np.testing.assert_array_equal(outputs(net, x)[0], 2 * x)


def test_a_file_of_any_batch_size_is_fed_all_at_once():
    net = session(a_convolution().SerializeToString())
    assert fixed_batch(net) is None
    assert outputs(net, np.ones((5, 3, 8, 8), np.float32))[0].shape == (5, 4, 6, 6)


def test_a_file_of_fixed_batch_size_is_timed_for_as_many_images(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.measure.latency.WARM_UP_S", 0)
    onnx.save(fixed(1), tmp_path / "one.onnx")
    runs = []

    def turn(net, feed, count, seconds):
        runs.append((feed["input"].shape, count))
        return [1.0]

    monkeypatch.setattr("compress.measure.latency._turn", turn)
    measure_latency({"one": tmp_path / "one.onnx"}, threads=1, batch=8, rounds=1)
    assert set(runs) == {((1, 3), 8)}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.measure.latency.WARM_UP_S", 0)
    monkeypatch.setattr("compress.measure.latency.TURN_S", 0)
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    onnx.save(a_convolution(), paths[0])
    onnx.save(a_convolution(strides=[2, 2]), paths[1])
    return paths


def test_files_take_turns(files, monkeypatch):
    order = []

    def turn(net, feed, runs, seconds):
        order.append(net)
        return [1.0, 2.0, 3.0]

    monkeypatch.setattr("compress.measure.latency._turn", turn)
    found = measure_latency({"a": files[0], "b": files[1]}, threads=1, batch=2, rounds=3)
    a, b = order[:2]
    assert order[2:] == [a, b, b, a, a, b]
    assert found["a"][0].p50 == 2.0
    assert found["b"][1].tolist() == [1.0, 2.0, 3.0] * 3


def test_a_turn_has_three_runs_at_least(files):
    latency, times = measure_latency({"a": files[0]}, threads=1, batch=1, rounds=2)["a"]
    assert len(times) >= 6
    assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= times.max()


def test_files_are_compared_side_by_side(files):
    first, second = compare_files(files, threads=1, batch=2, rounds=2)
    assert (first.macs, second.macs) == (6 * 6 * 108, 3 * 3 * 108)
    assert first.bytes == files[0].stat().st_size
    assert (first.float_convs, first.int8_convs, first.speedup) == (1, 0, 1.0)
    assert second.speedup == pytest.approx(first.latency_ms.p50 / second.latency_ms.p50)
    assert second.throughput == pytest.approx(2000 / second.latency_ms.p50)
    table = render([first, second], as_json=False).splitlines()
    assert [line.split()[0] for line in table] == ["file", str(files[0]), str(files[1])]
    assert "1.00×" in table[1]
    assert json.loads(render([first], as_json=True))[0]["macs"] == first.macs


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=re.escape(f"no ONNX file {tmp_path / 'x.onnx'}")):
        read_onnx(tmp_path / "x.onnx")


@pytest.mark.parametrize("read", [read_onnx, read_file])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x08\x08"])
def test_a_file_that_is_no_onnx(tmp_path, content, read):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(f"{path} is not a valid ONNX file: ") + ".+"):
        read(path)


def test_a_truncated_file(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(a_convolution().SerializeToString()[:-40])
    with pytest.raises(ModelError, match="is not a valid ONNX file"):
        read_file(path)


def test_a_graph_whose_weights_are_missing(tmp_path):
    model = a_convolution()
    del model.graph.initializer[:]
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match=r"is not a valid ONNX file: .*w"):
        read_file(tmp_path / "x.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(tmp_path, value):
    model = a_convolution()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[1, 2, 0, 0] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="the stored tensor w holds NaN or infinite numbers"):
        read_file(tmp_path / "x.onnx")


def test_weights_beside_a_file_are_read_in_its_folder_only(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "x.onnx"
    onnx.save(a_convolution(), path, save_as_external_data=True, location="x.data", size_threshold=0)
    assert numpy_helper.to_array(read_file(path).graph.initializer[0]).sum() == 4 * 27
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../x.data"
    path.write_bytes(model.SerializeToString())
    (path.parent / "x.data").rename(tmp_path / "x.data")
    with pytest.raises(ModelError, match=r"wants to read '\.\./x\.data', outside its own folder; that is never done"):
        read_file(path)
    model.graph.initializer[0].external_data[0].value = "gone.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"keeps its weights in .+gone\.data, which is not there"):
        read_file(path)


def test_macs_of_integer_convolutions_are_counted():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["i"], name="conv"),
        helper.make_node("Cast", ["i"], ["logits"], to=TensorProto.FLOAT),
    ]
    assert count_macs(model_of(nodes, {"w": np.ones((4, 3, 3, 3), np.int8)})) == 6 * 6 * 108


def kernels(count: int, **operators: int) -> Coverage:
    return Coverage(operators, tuple(Kernel(f"c{i}", "Conv", "QLinearConv", True, is_layer=True) for i in range(count)))


@pytest.mark.parametrize(
    ("found", "widths", "macs", "flags", "expected"),
    [
        (kernels(4), {"a": 32, "b": 16, "c": 64, "d": 10}, 10**6, ["avx2", "avx512_vnni"], []),
        (kernels(4), {"a": 32}, 10**6, ["avx2"], ["this CPU has no VNNI"]),
        (kernels(4), {"a": 32}, 10**6, [], []),
        (Coverage({}, (INT8, FLOAT, island("Elu"))), {"a": 32}, 10**6, [], ["2 float islands: head, Elu_1"]),
        (kernels(1, ConvInteger=1), {"a": 32}, 10**6, [], ["dynamic ranges"]),
        (kernels(4), {"a": 30, "b": 17, "c": 64, "d": 16}, 10**6, [], ["50 % of the layers have channels that are no"]),
        (kernels(4), {"a": 32}, 399_999, [], ["too small: 100,000 multiply-accumulates a layer"]),
        (kernels(4), {"a": 32}, None, [], []),
        (
            Coverage({"ConvInteger": 1}, (INT8, FLOAT)), {"a": 3, "b": 5}, 10, ["avx2"],
            ["this CPU", "1 float islands", "dynamic", "100 %", "too small"],
        ),
    ],
)  # fmt: skip
def test_causes_of_slowness_in_their_order(found, widths, macs, flags, expected):
    reasons = causes(found, widths, macs, flags)
    assert len(reasons) == len(expected)
    for reason, start in zip(reasons, expected, strict=True):
        assert reason.startswith(start)


def test_causes_are_read_off_a_file(tmp_path):
    onnx.save(a_convolution(), tmp_path / "x.onnx")
    assert slowness(tmp_path / "x.onnx", ["avx_vnni"]) == [
        "1 float islands: logits",
        "too small: 3,888 multiply-accumulates a layer, so that what an operator costs in any case outweighs them",
    ]
