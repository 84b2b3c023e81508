import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ExportError, ModelError
from compress.measure.accuracy import judge, top_k, wilson
from compress.measure.comparison import compare_files, read_onnx, render
from compress.measure.file import Coverage, count_macs, coverage, require_int8, session
from compress.measure.latency import input_for, measure_latency, percentiles


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


def test_a_clip_between_integers_is_an_error(monkeypatch):
    monkeypatch.setattr("compress.measure.file.coverage", lambda _: Coverage({"QLinearConv": 2, "Clip": 1}))
    with pytest.raises(ExportError, match="1 Clip operators are left between int8 layers; a range is wider"):
        require_int8(onnx.ModelProto(), 2)


@pytest.mark.parametrize(
    ("operators", "named"),
    [
        (
            {"HardSwish": 2, "DequantizeLinear": 3},
            "goes back to float 3 times on the way (2 HardSwish have no int8 kernel)",
        ),
        ({"DequantizeLinear": 4}, "goes back to float 4 times on the way (other operators have no int8 kernel)"),
    ],
)
def test_detours_through_float_are_warned_of(monkeypatch, operators, named):
    monkeypatch.setattr("compress.measure.file.coverage", lambda _: Coverage({"QLinearConv": 2} | operators))
    (warning,) = require_int8(onnx.ModelProto(), 2)
    assert named in warning


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

    def turn(net, feed, seconds):
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


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x08\x08"])
def test_a_file_that_is_no_onnx(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(f"{path} is not a valid ONNX file: ") + ".+"):
        read_onnx(path)
