"""The files that leave the program, run in ONNX Runtime."""

import copy
import functools

import numpy as np
import onnx
import pytest
import torch
from exporting import MEAN, SPEC, STD, drawn, exported, quantized, run, said, tiny, untrained
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from compress.edits import graph, macs
from compress.edits.placement import left_float
from compress.edits.quantizers import ActivationQuantizer, activation_quantizers, integer_parameters
from compress.errors import ExportError, ModelError
from compress.export.onnx import Export, Exporter, check
from compress.measure.coverage import coverage, require_int8
from compress.measure.file import count_macs
from compress.models import MODELS
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Net, Spec, build
from compress.pruning.channels import Prunable

METADATA = {"class_names": '["a", "b"]', "mean": "[0.4, 0.5, 0.6]", "architecture": "tiny"}


@pytest.fixture(scope="module", params=["float", "int8"])
def pair(request) -> tuple[Net, onnx.ModelProto]:
    """A net and its file, float and int8."""
    net = tiny(3)
    net = quantized(net) if request.param == "int8" else net
    return net, Exporter(Export(), MEAN, STD)(net, METADATA)


@pytest.fixture(scope="module")
def alike(pair) -> tuple[Net, onnx.ModelProto]:
    """The same before training, where many tensors are equal, and its file."""
    net = quantized(untrained()) if pair[0].int8 else untrained()
    return net, exported(net)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_file_computes_what_the_net_computes_for_any_batch(pair, batch):
    net, model = pair
    x = drawn(batch, 3, 16, 16)
    ours, theirs = said(net, x), run(model, x)
    assert theirs.shape == (batch, 4)
    np.testing.assert_allclose(theirs, ours, atol=0.02 if net.int8 else 1e-5)


@pytest.fixture(scope="module")
def of_two_widths() -> dict[str, Net]:
    """A net with a depthwise convolution and a flattening, whole and cut to half its widths, both int8."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6()]
    layers += [nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)]
    whole = Net(SPEC, nn.Sequential(*layers).eval())
    prunable = Prunable(copy.deepcopy(whole.module), whole.example(1))
    edit = prunable.narrowed([group.width // 2 for group in prunable.groups])
    assert edit.sizes["2"] == (8, 8, 8)
    half = Net(whole.spec.edited(edit), edit(copy.deepcopy(whole.module)).eval())
    return {"whole": quantized(whole), "half": quantized(half)}


@pytest.mark.parametrize("first", ["whole", "half"])
def test_a_sketch_is_the_file_whichever_width_was_traced(of_two_widths, first, monkeypatch):
    exporter, traced = Exporter(Export(), MEAN, STD), []
    trace = Exporter.traced
    monkeypatch.setattr(Exporter, "traced", lambda self, *args: traced.append(1) or trace(self, *args))
    order = sorted(of_two_widths, key=lambda name: name != first)
    sketches = {name: exporter.sketch(of_two_widths[name]) for name in order}
    assert len(traced) == 1
    x = drawn(3, 3, 16, 16)
    for name, sketch in sketches.items():
        file = exported(of_two_widths[name])
        assert np.array_equal(run(sketch, x), run(file, x))
        assert abs(sketch.ByteSize() - file.ByteSize()) < 200
        assert coverage(sketch).operators == coverage(file).operators


def test_what_was_traced_for_a_sketch_serves_the_file_to_the_byte(of_two_widths):
    net = of_two_widths["half"]
    exporter = Exporter(Export(), MEAN, STD)
    exporter.sketch(net)
    again = Net(net.spec, copy.deepcopy(net.module))
    with torch.no_grad():
        next(again.module.parameters()).mul_(1.5)
    known = len(exporter.graphs)
    assert exporter(again, METADATA) == Exporter(Export(), MEAN, STD)(again, METADATA)
    assert len(exporter.graphs) == known == 1


def test_the_file_is_what_was_promised(pair):
    net, model = pair
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    (entry,), (result,) = model.graph.input, model.graph.output
    assert (entry.name, result.name) == ("input", "logits")
    first, *rest = entry.type.tensor_type.shape.dim
    assert first.dim_param == "batch"
    assert [d.dim_value for d in rest] == [3, 16, 16]
    written = {p.key: p.value for p in model.metadata_props}
    assert written.keys() - METADATA.keys() == {"target", "scheme", "seal"}
    assert METADATA.items() <= written.items()
    assert [*written] == sorted(written)
    assert written["target"] == "onnxruntime"
    words = "int8 weights per channel, uint8 activations per tensor, int32 biases" if net.int8 else "float32"
    assert written["scheme"] == words
    assert (model.producer_name, model.producer_version) == ("compress", "")


def test_nothing_of_the_exporter_is_left_in(pair):
    _, model = pair
    graph = model.graph
    left = [model.doc_string, graph.doc_string, graph.metadata_props, graph.value_info, model.functions]
    assert not any(map(len, left))
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        assert not part.doc_string
        assert not part.metadata_props
    content = model.SerializeToString()
    for trace in (b"site-packages", b".py", b"nn.Module", b"torch"):
        assert trace not in content


def test_equal_tensors_stand_in_the_file_once(pair):
    _, model = pair
    values = [
        (t.data_type, tuple(t.dims), onnx.numpy_helper.to_array(t).tobytes())
        for t in model.graph.initializer
        if t.data_type != onnx.TensorProto.INT8
    ]
    assert len(values) == len(set(values))


def test_every_layer_has_int8_tensors_of_its_own(alike):
    # With session.x64quantprecision, which `run` sets, ONNX Runtime refuses a file where two layers share one.
    _, model = alike
    whole = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    read = [name for node in model.graph.node for name in node.input if name in whole]
    assert sorted(read) == sorted(whole)
    assert run(model, drawn(2, 3, 16, 16)).shape == (2, 4)


def test_weights_that_are_equal_because_nothing_was_trained_count_for_the_size():
    module = nn.Sequential(
        *(nn.Conv2d(3 if i == 0 else 24, 24, 3, padding=1) for i in range(3)), nn.AdaptiveAvgPool2d(1)
    )
    module[2].load_state_dict(module[1].state_dict())
    model = exported(Net(SPEC, nn.Sequential(module, nn.Flatten(), nn.Linear(24, 4)).eval()))
    assert len(model.SerializeToString()) > 4 * (24 * 3 * 9 + 2 * 24 * 24 * 9)


def test_pooling_and_batch_norm_have_forms_that_integer_kernels_know(pair):
    kinds = {node.op_type for node in pair[1].graph.node}
    assert "GlobalAveragePool" in kinds
    assert not kinds & {"ReduceMean", "BatchNormalization", "Dropout"}


def test_exporting_leaves_the_net_as_it_was(pair):
    net = Net(pair[0].spec, copy.deepcopy(pair[0].module).train())
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    Exporter(Export(), MEAN, STD).ready(net)
    assert net.module.training
    assert all(torch.equal(before[name], value) for name, value in net.module.state_dict().items())


def test_the_bytes_are_repeatable_and_do_not_depend_on_what_was_exported_before(pair):
    net, model = pair
    exporter = Exporter(Export(), MEAN, STD)
    stand_in = quantized(untrained()) if net.int8 else untrained()
    exporter(stand_in, {})
    # The graph was traced from a net whose branches are equal; this one's are not.
    again = exporter(net, METADATA)
    assert list(exporter.graphs) == [net.spec.key]
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    np.testing.assert_array_equal(run(again, drawn(5, 3, 16, 16)), run(model, drawn(5, 3, 16, 16)))
    assert exporter(net, METADATA).SerializeToString() == again.SerializeToString()


def test_a_table_of_operators_made_for_this_export_gives_the_same_bytes(pair, fresh_operators, monkeypatch):
    """What the tests do to be fast (see conftest.py) is not seen in a file."""
    if fresh_operators is None:
        pytest.skip("this version of torch keeps its table elsewhere, and the tests share none")
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    net, model = pair
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", fresh_operators)
    again = Exporter(Export(), MEAN, STD)(net, METADATA)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_raw_pixels_give_what_normalised_ones_give(pair):
    net, model = pair
    pixels = torch.randint(0, 256, (4, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    raw = exported(net, input="uint8_nhwc")
    normalised = (pixels.permute(0, 3, 1, 2).numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert raw.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    expected = run(model, normalised.astype(np.float32))
    np.testing.assert_allclose(run(raw, pixels), expected, atol=0.05 if net.int8 else 1e-4)


def test_a_newer_opset_can_be_had():
    net = quantized(tiny(1))
    model = exported(net, opset=21)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert model.ir_version == 10
    np.testing.assert_allclose(run(model, drawn(3, 3, 16, 16)), said(net, drawn(3, 3, 16, 16)), atol=0.02)


def test_an_opset_that_was_not_written_is_an_error(pair):
    with pytest.raises(
        ExportError, match=r"opset 19 was asked for and the exporter wrote 18; set export\.opset to that"
    ):
        check(pair[1], 19)


def test_a_graph_that_is_not_onnx_is_an_error(pair):
    broken = onnx.ModelProto()
    broken.CopyFrom(pair[1])
    broken.graph.node[0].op_type = "Convolution"
    with pytest.raises(ExportError, match="the exported graph is not valid ONNX: "):
        check(broken, 18)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_net_that_cannot_be_traced_is_an_error():
    with pytest.raises(ModelError, match=r"Deciding cannot be traced by torch\.fx"):
        exported(Net(SPEC, Deciding()))


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).flatten(1)[:, :4]


def test_a_net_that_cannot_be_exported_is_an_error():
    with pytest.raises(ExportError, match=r"torch\.onnx cannot export this network at opset 18: .+"):
        exported(Net(SPEC, Bessel()))


class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.MaxPool2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.conv(x))).flatten(1)


@pytest.fixture(scope="module")
def one_convolution() -> tuple[Net, onnx.ModelProto]:
    torch.manual_seed(0)
    net = quantized(Net(Spec(architecture=MobileNetV1(), classes=4, image=(3, 8, 8)), OneConvolution().eval()))
    return net, exported(net)


def test_the_integers_are_those_computed_by_hand(one_convolution):
    net, model = one_convolution
    assert coverage(model).int8_convs == 1
    grids = dict(activation_quantizers(net.module))
    (s_x, z_x), (s_y, z_y) = (
        (np.float64(grids[name].scale.item()), grids[name].zero_point.item())
        for name in ("quantizer_x", "quantizer_relu")
    )
    conv = net.module.get_submodule("conv")
    weight, scale, bias, _ = (t.numpy() for t in integer_parameters(conv, grids["quantizer_x"].scale))
    x = drawn(5, 3, 8, 8, seed=7).numpy()
    whole = np.clip(np.rint(x / np.float32(s_x)) + z_x, 0, 255).astype(np.int64)
    framed = np.pad(whole - z_x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = np.zeros((5, 4, 4, 4), np.int64) + bias.reshape(1, 4, 1, 1)
    for i in range(4):
        for j in range(4):
            window = framed[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            sums[:, :, i, j] += np.einsum("nchw,ochw->no", window, weight.astype(np.int64))
    ratio = (s_x * scale.astype(np.float64) / s_y).reshape(1, 4, 1, 1)
    bytes_out = np.clip(np.rint(sums * ratio) + z_y, 0, 255).max((2, 3))
    by_runtime = np.rint(run(model, x) / s_y) + z_y
    assert np.abs(by_runtime - bytes_out).max() <= 1
    assert (by_runtime == bytes_out).mean() > 0.9
    by_torch = np.rint(said(net, torch.from_numpy(x)) / s_y) + z_y
    assert np.abs(by_torch - bytes_out).max() <= 1


FAMILIES = {"mobilenet_v2": {"width": 0.25}, "mobilenet_v1": {"width": 0.25}, "resnet18": {}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[Net, onnx.ModelProto]:
    """A net of 32 pixels, not yet quantized, and the int8 file of its quantized form."""
    architecture = MODELS[request.param](**FAMILIES[request.param])
    net = build(Spec(architecture=architecture, classes=10, image=(3, 32, 32)), seed=0)
    net.module.eval()
    return net, exported(quantized(net))


def test_int8_is_int8_in_the_runtime(family):
    net, model = family
    convolutions = sum(isinstance(m, nn.Conv2d) for m in net.module.modules())
    found = coverage(model)
    assert require_int8(found, left_float(net.module)) == ()
    assert (found.int8_convs, found.float_convs) == (convolutions, 0)
    assert found.count("Clip", "Conv", "ReduceMean", "Add", "Relu") == 0
    assert max(found.conversions) <= 2


def test_the_file_has_the_macs_of_the_net(family):
    net, model = family
    assert count_macs(model) == macs.count_macs(net.module, net.example(1))


def hard_swish_net() -> Net:
    """Two blocks of MobileNetV3: a squeeze-and-excitation, hard-swish before and behind."""
    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "HS", 1, 1, 1),
        InvertedResidualConfig(16, 3, 24, 16, True, "HS", 1, 1, 1),
    ]
    torch.manual_seed(0)
    return Net(SPEC, MobileNetV3(blocks, 32, num_classes=4).eval())


@functools.cache
def hard_swish_file(ranges: str) -> tuple[Net, onnx.ModelProto]:
    net = quantized(hard_swish_net(), ranges=ranges)
    return net, exported(net)


def test_hard_swish_is_int8_and_right():
    net, model = hard_swish_file("static")
    assert require_int8(coverage(model), left_float(net.module)) == ()
    x = drawn(8, 3, 16, 16)
    np.testing.assert_array_equal(run(model, x).argmax(1), said(net, x).argmax(1))


def test_a_float_file_has_the_macs_of_the_net_too():
    net = tiny(0)
    by_hand = 16 * 16 * (8 * 3 * 9 + 2 * 8 * 8) + 8 * 4
    assert count_macs(exported(net)) == macs.count_macs(net.module, net.example(1)) == by_hand


def test_a_float_file_is_not_int8(pair):
    net, model = pair
    found = coverage(model)
    assert len(found.layers) == 4
    assert len(found.float_layers) == (0 if net.int8 else 4)


# Names


def layers_of(net: Net) -> list[str]:
    """The layers with weights, in the order in which data pass them."""
    module = net.module if net.int8 else graph.folded(net.module)
    return [str(node.target) for node, _ in graph.calls(module, nn.Conv2d, nn.Linear)]


def names(model: onnx.ModelProto, *kinds: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in kinds]


@pytest.mark.parametrize("form", ["float32_nchw", "uint8_nhwc"])
def test_layers_and_quantizers_keep_their_names(pair, form):
    net, model = pair
    if form == "uint8_nhwc":
        model = exported(net, input=form)
    assert names(model, "Conv", "Gemm") == layers_of(net)
    quantizers = [str(node.target) for node, _ in graph.calls(net.module, ActivationQuantizer)] if net.int8 else []
    assert names(model, "QuantizeLinear") == quantizers
    behind = [f"{name}/dequantize" for name in quantizers]
    inside = [f"{layer}/{tensor}" for layer in quantizers and layers_of(net) for tensor in ("weight", "bias")]
    assert sorted(names(model, "DequantizeLinear")) == sorted(behind + inside)
    every = [node.name for node in model.graph.node]
    assert len(every) == len({*every})
    assert "" not in every


def test_each_dequantize_is_called_as_what_it_reads(pair):
    _, model = pair
    makers = {node.output[0]: node.name for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            source = node.input[0]
            owner, _, tensor = source.rpartition(".")
            assert node.name == (f"{makers[source]}/dequantize" if source in makers else f"{owner}/{tensor}")


def test_a_quantizer_that_is_called_twice_has_a_number_in_its_second_name(one_convolution):
    _, model = one_convolution
    assert names(model, "QuantizeLinear") == ["quantizer_x", "quantizer_relu", "quantizer_relu_1"]
    assert "quantizer_relu_1/dequantize" in names(model, "DequantizeLinear")


def test_two_layers_that_compute_the_same_from_the_same_become_one(alike):
    net, model = alike
    assert layers_of(net) == ["stem.0", "branch.0", "other.0", "head"]
    assert names(model, "Conv", "Gemm") == ["stem.0", "branch.0", "head"]


@pytest.mark.parametrize("ranges", ["static", "dynamic"])
def test_a_net_with_gates_is_named_throughout(ranges):
    net, model = hard_swish_file(ranges)
    assert names(model, "Conv", "Gemm", "ConvInteger", "MatMulInteger") == layers_of(net)
    every = [node.name for node in model.graph.node]
    assert len(every) == len({*every})
