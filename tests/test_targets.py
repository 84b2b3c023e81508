"""What each target takes: the rules on files made by hand, and our own files for each."""

import collections
import copy
import functools
import typing

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from exporting import MEAN, STD, drawn, exported, quantized, run, said, session_options, tiny
from onnx import TensorProto, helper, numpy_helper
from tiny import Tiny as TinyNet
from torch import Tensor, nn

from compress.edits.channels import Channels
from compress.errors import ExportError
from compress.export.onnx import Export, Exporter
from compress.export.reading import Reading, values
from compress.export.scheme import own_widths, scheme
from compress.export.seal import digest, seal, sealed
from compress.export.storage import extras, halve, ort_format, store_four_bits, write_ort
from compress.export.targets import TARGETS, broken_rules, refusals
from compress.measure.coverage import coverage
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Net, Spec, build

INT8 = [name for name, target in TARGETS.items() if target.quantizes]
# What a net is quantized with for each target, and the opset that the numbers need.
FORMS = [
    ("onnxruntime", {}, 18),
    ("onnxruntime", {"granularity": "per_tensor"}, 18),
    ("onnxruntime", {"ranges": "dynamic"}, 18),
    ("onnxruntime", {"weights": "int4"}, 21),
    ("onnxruntime", {"weights": "int4", "ranges": "dynamic"}, 21),
    ("onnxruntime-avx2", {"weights": "int7"}, 18),
    ("tensorrt", {"activations": "int8"}, 18),
    ("arm", {}, 18),
    ("mobile", {}, 18),
]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


# The table


def test_the_table_has_what_export_target_may_say():
    assert tuple(TARGETS) == typing.get_args(Export.model_fields["target"].annotation)
    assert all(name == target.name for name, target in TARGETS.items())
    assert all(target.summary.endswith(".") for target in TARGETS.values())


def test_the_limit_of_seven_bits_is_what_sixteen_bits_hold():
    assert 2 * 255 * 63 <= 2**15 - 1 < 2 * 255 * 65


@pytest.mark.parametrize(
    ("target", "asked", "why"),
    [
        ("onnxruntime", {"weights": "int8", "activations": "uint8", "ranges": "dynamic"}, []),
        ("onnxruntime", {"weights": None, "activations": None}, []),
        ("onnxruntime", {"activations": "int8"},
         [("activations", "target onnxruntime takes uint8, not int8: "
           "ONNX Runtime has fast kernels for uint8 activations only")]),
        ("onnxruntime", {"weights": "int4"}, [("weights", "int4 needs opset 21, not 18; set export.opset: 21")]),
        ("onnxruntime-avx2", {"weights": "int8"},
         [("weights", "target onnxruntime-avx2 takes int7 or int4, not int8: "
           "without VNNI, sums of two products of 8 bits overflow 16 bits")]),
        ("tensorrt", {"weights": "int4", "activations": "uint8", "ranges": "dynamic"},
         [("weights", "target tensorrt takes int8 or int7, not int4: "
           "TensorRT has no convolution with weights of 4 bits"),
          ("activations", "target tensorrt takes int8, not uint8: TensorRT takes no zero points other than 0"),
          ("ranges", "target tensorrt takes static, not dynamic: "
           "TensorRT wants activation scales that stand in the file")]),
        ("mobile", {"ranges": "dynamic"},
         [("ranges", "target mobile takes static, not dynamic: "
           "NPUs want activation ranges that stand in the file")]),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(target, asked, why):
    assert [*refusals(TARGETS[target], 18, asked)] == why


def test_int4_is_taken_at_opset_21():
    assert [*refusals(TARGETS["arm"], 21, {"weights": "int4"})] == []


# Rules, on a file of one convolution


def one_convolution(
    *, weight=5, weight_point=0, kind=np.int8, activation=np.uint8, point=0, bias=np.int32, width=8, batch="n"
) -> onnx.ModelProto:
    """A quantized 1×1 convolution as onnx.helper writes it; all weights are `weight`."""
    tensors = {
        "s": np.float32(0.1), "z": activation(point), "w": np.full((width, 3, 1, 1), weight, kind),
        "ws": np.float32(0.1), "wz": kind(weight_point), "b": np.zeros(width, bias), "bs": np.float32(0.01),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], name="quantizer_x"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="quantizer_x/dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="conv/weight"),
    ]
    bias_name = "b"
    if bias is np.int32:
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="conv/bias"))
        bias_name = "bd"
    nodes.append(helper.make_node("Conv", ["x", "wd", bias_name], ["logits"], name="conv"))
    return wrapped(nodes, tensors, [batch, 3, 4, 4], [batch, width, 4, 4])


def wrapped(nodes, tensors, entry, result, kind=TensorProto.FLOAT) -> onnx.ModelProto:
    body = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", kind, entry)],
        [helper.make_tensor_value_info("logits", kind, result)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def float_convolution(kind=np.float32, width=8) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["input", "conv.weight"], ["logits"], name="conv")
    weight = {"conv.weight": np.ones((width, 3, 1, 1), kind)}
    return wrapped([node], weight, ["n", 3, 4, 4], ["n", width, 4, 4], helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


SEVEN = "conv: the weight w reaches ±{}, and beyond ±63 sums of two products overflow 16 bits on CPUs without VNNI"
BROKEN = [
    ("onnxruntime", one_convolution(), []),
    ("onnxruntime", one_convolution(point=7), []),
    ("onnxruntime", one_convolution(activation=np.int8), ["quantizer_x: should round to uint8, not int8"]),
    ("onnxruntime", one_convolution(bias=np.float32), ["conv: the bias b should be int32, not FLOAT"]),
    ("onnxruntime", one_convolution(kind=np.uint8), ["conv: the weight w should be int8, not UINT8"]),
    ("onnxruntime", one_convolution(weight_point=3), ["conv: the zero point wz of its weight should be 0"]),
    ("onnxruntime", float_convolution(), []),
    ("onnxruntime-avx2", one_convolution(weight=63), []),
    ("onnxruntime-avx2", one_convolution(weight=-63), []),
    ("onnxruntime-avx2", one_convolution(weight=64), [SEVEN.format(64)]),
    ("onnxruntime-avx2", one_convolution(weight=-128), [SEVEN.format(128)]),
    ("tensorrt", one_convolution(activation=np.int8, bias=np.float32), []),
    ("tensorrt", one_convolution(bias=np.float32), ["quantizer_x: should round to int8, not uint8"]),
    ("tensorrt", one_convolution(activation=np.int8), ["conv: the bias b should be float32, not INT32"]),
    ("tensorrt", one_convolution(activation=np.int8, bias=np.float32, point=-2),
     ["quantizer_x: the zero point z should be 0, not -2",
      "quantizer_x/dequantize: the zero point z should be 0, not -2"]),
    ("arm", one_convolution(width=16), []),
    ("arm", one_convolution(width=12), ["conv: 12 output channels are no multiple of 8"]),
    ("arm", float_convolution(width=12), ["conv: 12 output channels are no multiple of 8"]),
    ("mobile", one_convolution(batch=1), []),
    ("mobile", one_convolution(batch=2),
     ["input: the batch should be 1, not 2", "logits: the batch should be 1, not 2"]),
    ("mobile", one_convolution(),
     ["input: the dimension n should be a number", "logits: the dimension n should be a number"]),
    ("float", float_convolution(), []),
    ("float", one_convolution(bias=np.float32),
     ["quantizer_x: a QuantizeLinear has no place in a float file",
      "quantizer_x/dequantize: a DequantizeLinear has no place in a float file",
      "conv/weight: a DequantizeLinear has no place in a float file"]),
    ("float16", float_convolution(), ["conv: the weight conv.weight should be float16, not FLOAT"]),
    ("float16", float_convolution(np.float16),
     ["input: should be float32 or uint8, not float16", "logits: should be float32 or uint8, not float16"]),
]  # fmt: skip


@pytest.mark.parametrize(("target", "model", "said"), BROKEN)
def test_rules_are_read_off_the_file(target, model, said):
    assert broken_rules(model, target) == said


def test_a_width_of_the_architectures_own_is_allowed_by_argument_or_metadata():
    model = one_convolution(width=12)
    assert broken_rules(model, "arm", own_widths={"conv"}) == []
    helper.set_model_props(model, {"own_widths": '["conv"]'})
    assert broken_rules(model, "arm") == []
    assert broken_rules(model, "arm", own_widths=()) == ["conv: 12 output channels are no multiple of 8"]
    helper.set_model_props(model, {"own_widths": "["})
    assert len(broken_rules(model, "arm")) == 1


# Our own files


@functools.cache
def net_and_file(number: int) -> tuple[Net, onnx.ModelProto]:
    """One of FORMS: a net quantized so, and its file, freshly traced."""
    target, fields, opset = FORMS[number]
    net = quantized(tiny(3), **fields)
    return net, exported(net, target=target, opset=opset)


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_a_file_for_each_target_computes_what_the_net_computes(number):
    target, _, _ = FORMS[number]
    net, model = net_and_file(number)
    assert broken_rules(model, target) == []
    x = drawn(1, 3, 16, 16)
    np.testing.assert_allclose(run(model, x), said(net, x), atol=0.02)
    written = {entry.key: entry.value for entry in model.metadata_props}
    assert (written["target"], written["scheme"]) == (target, scheme(net, target))


@pytest.fixture(scope="module")
def traced() -> dict[tuple[str, bool], dict[str, onnx.ModelProto]]:
    """Graphs of one net, by the form of its input and whether its batch is fixed."""
    return collections.defaultdict(dict)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["float32_nchw", "uint8_nhwc"])
def test_a_float_net_has_a_file_for_each_target(target, form, traced):
    net, fixed = tiny(3), TARGETS[target].batch is not None
    # What is traced of a float net follows from its inputs alone; what is made of that, from the target.
    model = Exporter(Export(target=target, input=form), MEAN, STD, traced[form, fixed])(net, {})
    assert broken_rules(model, target) == []
    pixels = torch.randint(0, 256, (1, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    fed = x if form == "float32_nchw" else pixels
    np.testing.assert_allclose(run(model, fed), said(net, x), atol=0.02 if target == "float16" else 1e-4)


@pytest.mark.parametrize(
    ("target", "first"),
    [
        ("onnxruntime-avx2", r"stem\.0: the weight stem\.0\.weight reaches ±127, .* \(3 more\)"),
        ("tensorrt", r"quantizer_x: should round to int8, not uint8 \(\d+ more\)"),
        ("float", r"quantizer_x: a QuantizeLinear has no place in a float file \(\d+ more\)"),
        ("float16", r"quantizer_x: a QuantizeLinear has no place in a float file \(\d+ more\)"),
    ],
)
def test_the_exporter_refuses_a_net_that_its_target_does_not_take(target, first):
    with pytest.raises(ExportError, match=f"^the file breaks a rule of target {target}: {first}$"):
        exported(quantized(tiny(3)), target=target)


@pytest.mark.parametrize("number", [2, 3, 6, 8])
def test_the_bytes_are_repeatable_for_each_target(number):
    target, fields, opset = FORMS[number]
    config = Export(target=target, opset=opset)
    first, second = quantized(tiny(3), **fields), quantized(tiny(4), **fields)
    exporter = Exporter(config, MEAN, STD)
    exporter(second, {})
    assert list(exporter.graphs) == [first.spec.key]
    again = exporter(first, {}).SerializeToString(deterministic=True)
    _, fresh = net_and_file(number)
    assert again == fresh.SerializeToString(deterministic=True)


def test_scheme_says_what_is_in_the_file():
    def words(target="onnxruntime", **fields):
        return scheme(quantized(tiny(0), **fields), target)

    assert scheme(tiny(0), "onnxruntime") == "float32"
    assert scheme(tiny(0), "float16") == "float16 weights and arithmetic, float32 inputs and outputs"
    assert words() == "int8 weights per channel, uint8 activations per tensor, int32 biases"
    assert words("tensorrt", activations="int8", granularity="per_tensor") == (
        "int8 weights per tensor, int8 activations per tensor, float32 biases"
    )
    assert words(weights="int7").startswith("int8 weights within ±63 per channel, ")
    assert words(weights="int4").startswith("int4 weights (stored as INT4, computed in int8) per channel, ")
    assert words(ranges="dynamic") == (
        "int8 weights per channel, uint8 activations per tensor, ranges taken from each batch, float32 biases"
    )
    assert words(float_layers=("head", "stem.0")).endswith(", float32: head stem.0")


# Weights of 4 bits


def wide() -> Net:
    """Where weights are most of the file."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)).eval()
    return Net(Spec(architecture=MobileNetV1(), classes=4, image=(3, 16, 16)), module)


def test_weights_of_4_bits_halve_the_file_and_run_as_int8():
    net = quantized(wide(), weights="int4")
    model = exported(net, opset=21)
    kinds = [layer.weight.data_type for layer in Reading(model).layers()]
    assert kinds == [TensorProto.INT4] * 3
    found = coverage(model)
    assert (found.int8_convs, found.float_convs) == (2, 0)
    whole = exported(quantized(wide()), opset=21)
    sizes = [len(each.SerializeToString()) for each in (model, whole)]
    weights = 64 * 3 * 9 + 64 * 64 * 9 + 64 * 4
    assert sizes[1] - sizes[0] == pytest.approx(weights / 2, rel=0.05)
    assert sizes[0] < 0.6 * sizes[1]


def test_weights_of_4_bits_are_the_same_numbers_as_in_8():
    net = quantized(wide(), weights="int4")
    model = exported(net, opset=21)
    wider = copied(model)
    for tensor in wider.graph.initializer:
        if tensor.data_type == TensorProto.INT4:
            tensor.CopyFrom(numpy_helper.from_array(values(tensor), tensor.name))
    x = drawn(4, 3, 16, 16)
    np.testing.assert_array_equal(run(model, x), run(wider, x))
    for layer in Reading(model).layers():
        assert np.abs(values(layer.weight)).max() == 7


def test_4_bits_in_an_older_opset_are_an_error():
    with pytest.raises(ExportError, match=r"^weights of 4 bits need opset 21, not 18; set export\.opset to that$"):
        exported(quantized(tiny(0), weights="int4"))


def test_what_does_not_fit_into_4_bits_is_an_error():
    with pytest.raises(ExportError, match=r"^w does not fit into 4 bits: it reaches 9$"):
        store_four_bits(one_convolution(weight=-9))


# Mobile


def test_mobile_files_take_one_image_and_have_their_ort_twin(tmp_path):
    model = exported(quantized(tiny(3)), target="mobile")
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*model.graph.input, *model.graph.output)]
    assert shapes == [[1, 3, 16, 16], [1, 4]]
    onnx.save(model, tmp_path / "net.onnx")
    written = write_ort(tmp_path / "net.onnx")
    assert written == tmp_path / "net.ort"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.ort"]
    x = drawn(1, 3, 16, 16).numpy()
    beside = ort.InferenceSession(written, session_options(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(beside.run(None, {"input": x})[0], run(model, x))
    assert beside.get_modelmeta().custom_metadata_map["target"] == "mobile"


def test_only_mobile_has_a_second_file():
    model = exported(tiny(0))
    assert [*extras(model, "mobile")] == [".ort"]
    assert all(extras(model, target) == {} for target in TARGETS if target != "mobile")


def test_a_graph_that_the_runtime_refuses_has_no_ort_form():
    broken = float_convolution()
    broken.graph.node[0].op_type = "Convolution"
    with pytest.raises(ExportError, match=r"^ONNX Runtime \S+ cannot write the graph in its own format: "):
        ort_format(broken)


# Float16


def test_a_float16_file_is_half_as_large_and_nearly_as_exact():
    net = wide()
    half, whole = exported(net, target="float16"), exported(net)
    assert len(half.SerializeToString()) < 0.52 * len(whole.SerializeToString())
    x = drawn(4, 3, 16, 16)
    ours = said(net, x)
    np.testing.assert_allclose(run(half, x), ours, atol=4 * np.finfo(np.float16).eps * np.abs(ours).max())
    for layer in Reading(half).layers():
        stored = dict(net.module.state_dict())[layer.weight.name].numpy()
        np.testing.assert_array_equal(values(layer.weight), stored.astype(np.float16))


def test_a_number_beyond_float16_is_an_error():
    net = tiny(0)
    with torch.no_grad():
        net.module.head.weight[1, 2] = 70000
    with pytest.raises(
        ExportError, match=r"^head\.weight holds 70000, and float16 ends at 65504: set export\.target to float$"
    ):
        exported(net, target="float16")


class Enlarging(nn.Module):
    """A layer with an operator whose scales stay float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.conv(x), scale_factor=2.0).mean((2, 3))


def test_numbers_that_an_operator_wants_in_float32_stay_so():
    torch.manual_seed(0)
    net = Net(Spec(architecture=MobileNetV1(), classes=4, image=(3, 8, 8)), Enlarging().eval())
    model = exported(net, target="float16")
    assert "Resize" in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, drawn(2, 3, 8, 8)), said(net, drawn(2, 3, 8, 8)), atol=5e-3)


def test_halving_leaves_integers_alone():
    model = one_convolution(bias=np.float32)
    before = {t.name: values(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    halve(model)
    after = {t.name: values(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    assert before.keys() == after.keys() == {"w", "wz"}
    assert all(np.array_equal(before[name], after[name]) for name in before)


# Arm


def narrowed(width: int) -> Net:
    """A small residual net whose middle convolution pruning made `width` wide."""
    whole = build(Spec(architecture=TinyNet(), classes=10, image=(3, 16, 16)), seed=0)
    sizes = {"middle.0": (32, width, 1), "middle.1": (width, width, 1), "back.0": (width, 32, 1)}
    edit = Channels(sizes=sizes)
    return Net(whole.spec.edited(edit), edit(copy.deepcopy(whole.module)).eval())


def test_widths_that_pruning_made_are_held_to_multiples_of_8_and_the_heads_own_is_not():
    assert own_widths(narrowed(24)) == own_widths(narrowed(25)) == ["head"]
    assert broken_rules(exported(narrowed(24), target="arm"), "arm") == []
    with pytest.raises(ExportError, match=r"target arm: middle\.0: 25 output channels are no multiple of 8$"):
        exported(narrowed(25), target="arm")
    assert len(broken_rules(exported(narrowed(25)), "arm", own_widths={"head"})) == 1


def test_odd_widths_that_were_never_cut_are_the_nets_own():
    net = build(Spec(architecture=TinyNet(width=30), classes=10, image=(3, 16, 16)), seed=0)
    assert own_widths(net) == ["back.0", "head", "middle.0", "stem.0"]
    assert broken_rules(exported(Net(net.spec, net.module.eval()), target="arm"), "arm") == []


# Seal


@pytest.fixture(scope="module")
def file() -> onnx.ModelProto:
    return exported(quantized(tiny(3), weights="int4"), opset=21)


def changed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with the first number of one tensor changed by the least that its type can say."""
    result = copied(model)
    tensor = next(t for t in result.graph.initializer if t.name == name)
    numbers = numpy_helper.to_array(tensor).copy()
    first = numbers.flat[0]
    numbers.flat[0] = np.nextafter(first, 9) if numbers.dtype == np.float32 else (first - 1 if first > 0 else first + 1)
    tensor.CopyFrom(numpy_helper.from_array(numbers, name))
    return result


def test_every_exported_file_is_sealed_and_stays_so_on_disk(file, tmp_path):
    assert sealed(file) is True
    onnx.save(file, tmp_path / "net.onnx")
    assert sealed(onnx.load(tmp_path / "net.onnx")) is True


def test_one_number_changed_breaks_the_seal(file):
    for tensor in file.graph.initializer:
        assert sealed(changed(file, tensor.name)) is False, tensor.name


def test_a_changed_graph_breaks_the_seal(file):
    def spoilt(change) -> bool | None:
        model = copied(file)
        change(model)
        return sealed(model)

    conv = next(i for i, node in enumerate(file.graph.node) if node.op_type == "Conv")
    assert spoilt(lambda model: None) is True
    assert spoilt(lambda model: setattr(model.graph.node[conv], "name", "other")) is False
    assert spoilt(lambda model: setattr(model.graph.node[conv].attribute[0], "name", "x")) is False
    assert spoilt(lambda model: model.graph.node.pop()) is False
    assert spoilt(lambda model: model.graph.node[conv].input.pop()) is False
    assert spoilt(lambda model: setattr(model.metadata_props[0], "value", "x")) is False
    assert spoilt(lambda model: setattr(model.opset_import[0], "version", 22)) is False
    assert spoilt(lambda model: setattr(model.graph.output[0], "name", "x")) is False
    assert spoilt(lambda model: setattr(model.graph.initializer[0], "data_location", TensorProto.EXTERNAL)) is False
    assert spoilt(lambda model: setattr(model.graph.initializer[0], "raw_data", b"")) is False
    assert spoilt(lambda model: model.graph.initializer.pop()) is False


def test_how_a_file_is_serialised_does_not_matter(file):
    model = copied(file)
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:  # numbers in a field of their own, not as bytes
            numbers = values(tensor)
            model.graph.initializer[i].CopyFrom(
                helper.make_tensor(tensor.name, TensorProto.FLOAT, numbers.shape, numbers.flatten().tolist())
            )
    tensors = [*model.graph.initializer][::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    props = [*model.metadata_props][::-1]
    del model.metadata_props[:]
    model.metadata_props.extend(props)
    model.graph.doc_string = model.graph.node[0].doc_string = "a remark"
    assert model.SerializeToString() != file.SerializeToString()
    assert sealed(model) is True


def test_a_file_without_a_seal_has_none_and_can_be_sealed():
    model = float_convolution()
    helper.set_model_props(model, {"b": "2", "a": "1"})
    assert sealed(model) is None
    before = digest(model)
    seal(model)
    assert [entry.key for entry in model.metadata_props] == ["a", "b", "seal"]
    assert model.metadata_props[2].value == before == digest(model)
    seal(model)
    assert sealed(model) is True


def test_a_graph_within_a_node_is_sealed_too():
    def branch(value: float) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.float32([value])))
        return helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])

    def model(value: float) -> onnx.ModelProto:
        node = helper.make_node("If", ["yes"], ["logits"], then_branch=branch(value), else_branch=branch(0))
        return wrapped([node], {"yes": np.array(True)}, ["n"], [1])

    assert digest(model(1)) == digest(model(1)) != digest(model(2))
