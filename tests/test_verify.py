"""`compress verify`: sound files pass, a changed number is found however it is hidden, foreign files are told."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_pipeline

from compress.errors import ConfigError, DataError, ExportError, ModelError
from compress.export.reading import Reading
from compress.export.seal import seal
from compress.files import durable
from compress.measure.accuracy import Accuracy
from compress.measure.identity import differing_layers
from compress.measure.layerwise import LayerNoise
from compress.measure.verification import Check, Verification, render
from compress.net import load
from compress.running.conclusion import Outcome
from compress.running.proof import Proof, require_agreement
from compress.running.runner import run
from compress.verbs.verifying import verify

TRAINING = {"epochs": 2, "batch_size": 16, "lr": 0.01}
INT8, FLOAT = "models/quantize.int8.onnx", "models/baseline.onnx"


def pipeline(**changes):
    stages = [{"quantize": {"method": "ptq"}}]
    return tiny_pipeline(**{"teacher": None, "baseline": {"training": TRAINING}, "stages": stages} | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Outcome:
    return run(pipeline(), tmp_path_factory.mktemp("verify") / "run")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of the run that may be spoilt."""
    return Path(shutil.copytree(whole.folder, tmp_path / "run"))


def by_name(found: Verification) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def failed(found: Verification) -> set[str]:
    return {check.name for check in found.failures}


def spoil(path: Path, name: str, change, *, again: bool = False) -> None:
    """Change an initializer of a file; with `again` seal it anew."""
    model = onnx.load(path)
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    if again:
        seal(model)
    onnx.save(model, path)


def one_up(values: np.ndarray) -> None:
    values.flat[5] += 1 if values.flat[5] < 100 else -1


def stored(path: Path, layer: str) -> str:
    return next(each.weight.name for each in Reading(onnx.load(path)).layers() if each.name == layer)


def test_the_files_of_a_run_pass(whole):
    for name in (INT8, FLOAT):
        found = verify(whole.folder / name)
        assert found.failures == ()
        checks = by_name(found)
        passed = {"format", "seal", "target", "weights", "run", "agreement"} | ({"kernels", "layers"} & checks.keys())
        assert all(checks[each].ok for each in passed if each != "kernels")
    checks = by_name(verify(whole.folder / INT8))
    assert checks["kernels"].said.startswith("4 of 4 layers have an int8 kernel (3 QLinearConv, 1 QGemm)")
    assert "160 of 160 images" in checks["agreement"].said
    report = json.loads((whole.folder / "report.json").read_text())
    assert checks["accuracy"].said.startswith(f"{report['rows'][-1]['top1_onnx']:.1f} % of 160 images right")
    assert "simulated there, " in checks["saturation"].said


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("layer", ["stem.0", "middle.0", "back.0", "head"])
def test_one_changed_weight_fails_and_is_named(folder, layer, again):
    spoil(folder / INT8, stored(folder / INT8, layer), one_up, again=again)
    found = verify(folder / INT8)
    assert failed(found) >= {"weights", "run"} | (set() if again else {"seal"})
    assert by_name(found)["seal"].ok is again
    said = by_name(found)["weights"].said
    assert said.startswith(f"the file is not of its net: {layer}: 1 of ")
    assert said.endswith("weights differ from the net's")


def test_one_changed_float_weight_fails(folder):
    name = stored(folder / FLOAT, "middle.0")
    spoil(folder / FLOAT, name, lambda values: values.flat.__setitem__(3, values.flat[3] + 0.001), again=True)
    said = by_name(verify(folder / FLOAT))["weights"].said
    assert said == "the file is not of its net: middle.0: 1 of 1024 weights differ from the net's"


def test_without_its_run_a_changed_file_fails_by_its_seal(folder, tmp_path):
    alone = Path(shutil.copy(folder / INT8, tmp_path / "alone.onnx"))
    assert verify(alone).failures == ()
    assert by_name(verify(alone))["weights"].ok is None
    spoil(alone, stored(alone, "middle.0"), one_up)
    assert failed(verify(alone)) == {"seal"}
    (said,) = (check.said for check in verify(alone).failures)
    assert said == "the seal is broken: weights, graph or metadata were changed after the export"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (".bias", "its bias differs from the net's"),
        (".scale", "its weights' scales differ from the net's"),
    ],
)
def test_biases_and_scales_are_compared_too(folder, end, said):
    net = load(next(folder.glob("stages/0-quantize-*")))
    model = onnx.load(folder / INT8)
    assert differing_layers(model, net) == []
    names = [tensor.name for tensor in model.graph.initializer if tensor.name == f"middle.0{end}"]
    for tensor in model.graph.initializer:
        if tensor.name in names:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values + values.max() * 0.1).astype(values.dtype), tensor.name))
    assert names
    assert differing_layers(model, net) == [f"middle.0: {said}"]


def test_a_quantizer_of_another_scale_is_named(folder):
    net = load(next(folder.glob("stages/0-quantize-*")))
    model = onnx.load(folder / INT8)
    net.module.quantizer_middle_2.scale.mul_(1.01)
    found = differing_layers(model, net)
    assert "quantizer_middle_2: its scale or zero point differs from the net's" in found


def test_the_run_of_a_file_elsewhere_can_be_named(folder, tmp_path):
    moved = Path(shutil.copy(folder / INT8, tmp_path / "quantize.int8.onnx"))
    found = by_name(verify(moved, run=folder))
    assert found["weights"].ok
    assert found["run"].ok
    with pytest.raises(ConfigError, match=r"--run .+: that is no run folder, there is no .+stages"):
        verify(moved, run=tmp_path)


def test_a_run_whose_nets_are_gone_is_said(folder):
    for stage in folder.glob("stages/0-quantize-*"):
        (stage / "weights.safetensors").unlink()
    check = by_name(verify(folder / INT8))["weights"]
    assert check.ok is None
    assert re.match(r"not compared with the net: .+ holds no weights", check.said)
    shutil.rmtree(folder / "stages")
    (folder / "stages").mkdir()
    assert "no stage in" in by_name(verify(folder / INT8))["weights"].said


def test_a_rule_of_a_target_is_judged_on_the_file(whole):
    found = verify(whole.folder / INT8, target="tensorrt")
    assert failed(found) == {"target"}
    assert by_name(found)["target"].said.startswith("a rule of target tensorrt is broken: quantizer_x: should round to")
    with pytest.raises(ConfigError, match=r"--target tensorflow: no such target\..+tensorrt"):
        verify(whole.folder / INT8, target="tensorflow")


def test_a_file_that_predicts_something_else_fails(folder):
    name = stored(folder / INT8, "head")
    spoil(folder / INT8, name, lambda values: values.__imul__(-1), again=True)
    found = verify(folder / INT8)
    assert {"weights", "agreement", "layers"} <= failed(found)
    assert by_name(found)["layers"].said.startswith("net and file part at logits: -")
    assert json.loads(render(found, as_json=True))["first_diverging"] == "logits"


def test_a_reference_is_agreed_with(whole, folder, tmp_path):
    alone = Path(shutil.copy(folder / INT8, tmp_path / "alone.onnx"))
    reference, data = whole.folder / FLOAT, whole.folder / "test.npz"
    checks = by_name(verify(alone, reference=reference, data=data))
    assert checks["agreement"].ok
    assert f"the class that {reference} gives them" in checks["agreement"].said
    assert checks["layers"].said.startswith("the file's two forms stay together: ")
    spoil(folder / FLOAT, stored(folder / FLOAT, "head"), lambda values: values.__imul__(-1))
    found = verify(alone, reference=folder / FLOAT, data=data)
    assert failed(found) == {"agreement"}
    check = by_name(verify(alone, reference=reference))["agreement"]
    assert check.ok is None
    assert re.match(r"logits \d\d\.\d dB against .+ on made-up images", check.said)


def test_what_could_not_be_looked_at_is_said(folder, tmp_path):
    alone = Path(shutil.copy(folder / FLOAT, tmp_path / "alone.onnx"))
    checks = by_name(verify(alone))
    assert (checks["agreement"].ok, checks["weights"].ok) == (None, None)
    assert checks["agreement"].said == "not looked at: there are no images; --data FILE.npz gives some"
    assert checks["weights"].said.startswith("not compared with a net: the file lies in no run folder")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "holds no such array; `inputs` is needed, `labels` may be there"),
        (
            {"inputs": np.zeros((4, 3, 16, 16), np.float32), "labels": np.zeros(3)},
            r"4 inputs and labels of shape \(3,\); one",
        ),
        (
            {"inputs": np.zeros((4, 3, 8), np.float32)},
            r"does not fit .+: images float32 \(4, 3, 8\), and the file takes",
        ),
        (
            {"inputs": np.zeros((4, 3, 16, 16), np.uint8)},
            r"does not fit .+: images uint8 \(4, 3, 16, 16\), and the file",
        ),
    ],
)
def test_images_that_do_not_fit(folder, tmp_path, arrays, said):
    alone = Path(shutil.copy(folder / FLOAT, tmp_path / "alone.onnx"))
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=said):
        verify(alone, data=tmp_path / "d.npz", reference=folder / FLOAT)


def test_images_that_cannot_be_read(whole, tmp_path):
    (tmp_path / "d.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"d\.npz cannot be read as a \.npz file of images"):
        verify(whole.folder / FLOAT, data=tmp_path / "d.npz")


def test_an_untrained_net_is_not_judged_by_its_predictions(folder):
    report = json.loads((folder / "report.json").read_text()) | {"verdict": "untrained"}
    (folder / "report.json").write_text(json.dumps(report))
    spoil(folder / INT8, stored(folder / INT8, "head"), lambda values: values.__imul__(-1), again=True)
    found = verify(folder / INT8)
    assert failed(found) == {"weights", "run"}
    assert by_name(found)["agreement"].said.endswith("not judged, the net was not trained")


@pytest.mark.parametrize("changes", [{"export": {"input": "uint8_nhwc"}}, {"export": {"target": "mobile"}}])
def test_other_inputs_and_fixed_batches(tmp_path, changes):
    found = run(pipeline(**changes), tmp_path / "run")
    assert found.exit_code == 0
    checked = verify(tmp_path / "run" / INT8)
    assert checked.failures == ()
    checks = by_name(checked)
    assert checks["agreement"].ok
    assert checks["layers"].said.startswith("net and file stay together")
    if "target" in changes["export"]:
        assert (tmp_path / "run" / INT8).with_suffix(".ort").is_file()


def test_layers_kept_in_float_are_named_and_pass(tmp_path):
    stages = [{"quantize": {"method": "ptq", "float_layers": ["stem.*"]}}]
    outcome = run(pipeline(stages=stages), tmp_path / "run")
    assert outcome.exit_code == 0
    assert any("left in float: stem.0 (kept in float, as asked for)" in each for each in outcome.report.warnings)
    found = verify(tmp_path / "run" / INT8)
    assert found.failures == ()
    assert [node.name for node in found.float_nodes if node.is_layer] == ["stem.0"]


def foreign(tmp_path: Path) -> Path:
    """A Conv of another program whose output nobody rounded."""
    weights = {
        "w": np.full((16, 16, 1, 1), 3, np.int8), "s": np.array(0.02, np.float32), "zero": np.array(0, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["x"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], name="wf"),
        helper.make_node("Conv", ["x", "wf"], ["y"], name="conv"),
        helper.make_node("Elu", ["y"], ["logits"], name="elu"),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 16, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 16, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_a_foreign_file_that_rounds_for_nothing_fails_with_the_node(tmp_path):
    found = verify(foreign(tmp_path))
    assert by_name(found)["seal"].ok is None
    assert failed(found) == {"kernels"}
    said = by_name(found)["kernels"].said
    assert said.startswith("1 of 1 layers are stored as integers and run in float: conv (its output is not rounded: it")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x08"])
def test_what_is_no_onnx_file(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="is not a valid ONNX file"):
        verify(tmp_path / "x.onnx")


def test_an_opset_that_the_runtime_refuses(folder, tmp_path):
    model = onnx.load(folder / FLOAT)
    model.opset_import[0].version = 30
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises((ExportError, ModelError), match=r"x\.onnx"):
        verify(tmp_path / "x.onnx")


def test_findings_are_rendered_as_text_and_json(whole):
    found = verify(whole.folder / INT8)
    lines = render(found, as_json=False).splitlines()
    assert lines[0] == str(whole.folder / INT8)
    assert lines[1].split()[:2] == ["ok", "format"]
    assert lines[-1].split()[0] == "logits"
    raw = json.loads(render(found, as_json=True))
    assert (raw["ok"], raw["first_diverging"], len(raw["signal_to_noise"])) == (True, None, len(found.noise))
    assert {"name", "ok", "said"} == set(raw["checks"][0])


def test_the_run_keeps_the_noise_of_every_layer(whole):
    (proof,) = whole.folder.glob("stages/0-quantize-*/proof.json")
    layers = json.loads(proof.read_text())["layers"]
    assert [each["quantizer"] for each in layers] == [each.quantizer for each in verify(whole.folder / INT8).noise]
    assert all(isinstance(each[key], float) for each in layers for key in ("rounding_db", "file_db", "plain_db"))


def test_a_file_that_diverges_fails_the_run():
    accuracy = Accuracy(90.0, 80.0, 95.0, 90.0, 99.0, agreement=100.0, samples=9)
    layers = (LayerNoise("quantizer_x", 40.0, 160.0, 160.0), LayerNoise("quantizer_a", 35.0, 11.0, 50.0))
    proof = Proof("models/a.onnx", "", accuracy, 1, 1, 1, True, (), layers)
    with pytest.raises(ExportError, match=r"no longer the PyTorch net a from quantizer_a on: 11\.0 dB .+ leaves 35\.0"):
        require_agreement("a", proof)


def test_a_file_spoilt_on_its_way_to_the_disk_fails_the_run(tmp_path, monkeypatch):
    write = durable.write

    def spoilt(path: Path, content: bytes | str) -> None:
        write(path, content)
        if path.name == "quantize.int8.onnx":
            spoil(path, stored(path, "back.0"), one_up)

    monkeypatch.setattr(durable, "write", spoilt)
    with pytest.raises(ExportError, match=r"models/quantize\.int8\.onnx: the seal is broken(.|\n)+back\.0: 1 of"):
        run(pipeline(), tmp_path / "run")


def test_float16_files_hold_their_nets_rounded_weights(tmp_path):
    stages = [{"prune": {"keep_macs": 0.6, "training": {"epochs": 0}}}]
    run(pipeline(stages=stages, export={"target": "float16"}), tmp_path / "run")
    found = verify(tmp_path / "run" / "models/prune.onnx")
    assert found.failures == ()
    checks = by_name(found)
    assert (checks["weights"].ok, checks["target"].ok, checks["agreement"].ok) == (True, True, True)
    path = tmp_path / "run" / "models/prune.onnx"
    spoil(path, stored(path, "head"), lambda values: values.flat.__setitem__(2, values.flat[2] * 1.01), again=True)
    assert "head: 1 of " in by_name(verify(path))["weights"].said
