"""The files that leave the program, run in ONNX Runtime."""

import copy
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from compress.edits import macs
from compress.edits.calibration import calibrate
from compress.edits.quantizers import Quantizers, activation_quantizers, integer_parameters
from compress.errors import ExportError, ModelError
from compress.export.onnx import Export, Exporter, check
from compress.measure.file import count_macs, coverage, require_int8
from compress.models import MODELS
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Net, Spec, build

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(net: Net) -> Net:
    """The net with ranges taken from noise."""
    edit = Quantizers()
    result = Net(net.spec.edited(edit), edit(copy.deepcopy(net.module)).eval())
    calibrate(result.module, lambda: [drawn(16, *net.spec.image, seed=1)])
    return result


def exported(net: Net, **keys) -> onnx.ModelProto:
    return Exporter(Export(**keys), MEAN, STD)(net, {})


def run(model: onnx.ModelProto, x: np.ndarray | Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Without it CPUs that lack VNNI add pairs of products in 16 bits, which saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    running = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return running.run(None, {"input": np.asarray(x)})[0]


def said(net: Net, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return net.module.eval()(x).numpy()


class Tiny(nn.Module):
    """A clipped convolution, a sum of two equal branches, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.other = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.pool, self.dropout, self.head = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.branch(x) + self.other(x))
        return self.head(self.dropout(self.pool(x).flatten(1)))


SPEC = Spec(architecture=MobileNetV1(), classes=4, image=(3, 16, 16))  # its name alone is used here


def tiny(seed: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Tiny()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
                nn.init.normal_(layer.bias)
    return Net(SPEC, module.eval())


def untrained() -> Net:
    """As built from a description, with all the tensors that are equal by chance: zeros, ones, two equal branches."""
    net = tiny(0)
    for layer in net.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    net.module.other.load_state_dict(net.module.branch.state_dict())
    return net


METADATA = {"class_names": '["a", "b"]', "mean": "[0.4, 0.5, 0.6]", "architecture": "tiny"}


@pytest.fixture(scope="module", params=["float", "int8"])
def pair(request) -> tuple[Net, onnx.ModelProto]:
    """A net and its file, float and int8."""
    net = tiny(3)
    net = quantized(net) if request.param == "int8" else net
    return net, Exporter(Export(), MEAN, STD)(net, METADATA)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_file_computes_what_the_net_computes_for_any_batch(pair, batch):
    net, model = pair
    x = drawn(batch, 3, 16, 16)
    ours, theirs = said(net, x), run(model, x)
    assert theirs.shape == (batch, 4)
    np.testing.assert_allclose(theirs, ours, atol=0.02 if net.int8 else 1e-5)


def test_the_file_is_what_was_promised(pair):
    _, model = pair
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    (entry,), (result,) = model.graph.input, model.graph.output
    assert (entry.name, result.name) == ("input", "logits")
    first, *rest = entry.type.tensor_type.shape.dim
    assert first.dim_param == "batch"
    assert [d.dim_value for d in rest] == [3, 16, 16]
    assert {p.key: p.value for p in model.metadata_props} == METADATA
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


def test_every_layer_has_int8_tensors_of_its_own(pair):
    # With session.x64quantprecision, which `run` sets, ONNX Runtime refuses a file where two layers share one.
    model = exported(quantized(untrained())) if pair[0].int8 else pair[1]
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


def test_the_integers_are_those_computed_by_hand():
    torch.manual_seed(0)
    net = quantized(Net(Spec(architecture=MobileNetV1(), classes=4, image=(3, 8, 8)), OneConvolution().eval()))
    model = exported(net)
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
    assert require_int8(model, convolutions) == ()
    found = coverage(model)
    assert (found.int8_convs, found.float_convs) == (convolutions, 0)
    assert found.count("Clip", "Conv", "ReduceMean", "Add", "Relu") == 0
    assert max(found.conversions) <= 2


def test_the_file_has_the_macs_of_the_net(family):
    net, model = family
    assert count_macs(model) == macs.count_macs(net.module, net.example(1))


def test_hard_swish_is_warned_of_and_right():
    # Two blocks of MobileNetV3: a squeeze-and-excitation, hard-swish before and behind.
    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "HS", 1, 1, 1),
        InvertedResidualConfig(16, 3, 24, 16, True, "HS", 1, 1, 1),
    ]
    torch.manual_seed(0)
    net = quantized(Net(SPEC, MobileNetV3(blocks, 32, num_classes=4).eval()))
    model = exported(net)
    (warning,) = require_int8(model, sum(node.op_type == "Conv" for node in model.graph.node))
    assert re.match(
        r"the int8 file goes back to float \d+ times on the way \(\d+ HardSigmoid, \d+ Mul have no", warning
    )
    x = drawn(8, 3, 16, 16)
    np.testing.assert_array_equal(run(model, x).argmax(1), said(net, x).argmax(1))


def test_a_float_file_has_the_macs_of_the_net_too():
    net = tiny(0)
    by_hand = 16 * 16 * (8 * 3 * 9 + 2 * 8 * 8) + 8 * 4
    assert count_macs(exported(net)) == macs.count_macs(net.module, net.example(1)) == by_hand


def test_a_float_file_is_not_int8(pair):
    net, model = pair
    if net.int8:
        assert require_int8(model, 3) == ()
        with pytest.raises(ExportError, match=r"1 of 4 convolutions stay float in ONNX Runtime .+; quantize cannot"):
            require_int8(model, 4)
    else:
        with pytest.raises(ExportError, match="3 of 3 convolutions stay float"):
            require_int8(model, 3)
