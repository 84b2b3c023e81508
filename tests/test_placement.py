import math

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.edits.calibration import calibrate
from compress.edits.placement import Quantizers, insert_quantizers, layers_like, left_float
from compress.edits.quantizers import (
    QuantizedHardSigmoid,
    activation_quantizers,
    quantized_layers,
)
from compress.errors import ConfigError, ModelError


class Residual(nn.Module):
    """What the networks of the pipelines are made of: clipped and plain convolutions, a sum, pools, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = F.relu(self.second(y) + y)
        return self.head(F.adaptive_avg_pool2d(self.pool(y), 1).flatten(1))


def test_quantizers_stand_behind_all_that_computes():
    torch.manual_seed(0)
    quantized = insert_quantizers(Residual().eval())
    found = []
    for node in quantized.graph.nodes:
        called = quantized.get_submodule(node.target) if node.op == "call_module" else None
        found.append(type(called).__name__ if called is not None else node.name)
    q = "ActivationQuantizer"
    assert [name for name in found if name not in ("output",) and not name.startswith(("quantizer", "scale"))] == [
        "x", q, "QuantizedConv2d", "ReLU6", q, "QuantizedConv2d", q, "add", "relu", q,
        "MaxPool2d", q, "GlobalAveragePool", q, "flatten", "QuantizedLinear",
    ]  # fmt: skip
    bounds = {name: (layer.low, layer.high) for name, layer in activation_quantizers(quantized)}
    assert bounds["quantizer_first_2"] == (0, 6)
    assert bounds["quantizer_relu"] == (0, math.inf)
    assert bounds["quantizer_x"] == (-math.inf, math.inf)


def test_rounding_changes_a_network_a_little():
    torch.manual_seed(0)
    module, x = Residual().eval(), torch.randn(16, 3, 8, 8)
    quantized = insert_quantizers(module)
    calibrate(quantized, lambda: [x])
    with torch.no_grad():
        exact, rounded = module(x), quantized.eval()(x)
    noise = ((exact - rounded) ** 2).mean() / (exact**2).mean()
    assert 0 < noise < 0.01


def test_quantizing_leaves_the_network_as_it_was():
    module = Residual().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quantized = insert_quantizers(module)
    quantized.get_submodule("head").weight.data.zero_()
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_network_without_layers_to_quantize_is_refused():
    with pytest.raises(ModelError, match="Sequential has no Conv2d and no Linear layer to quantize: there is nothing"):
        insert_quantizers(nn.Sequential(nn.ReLU()))


def test_a_layer_of_an_unknown_kind_stays_float_and_is_named():
    other = nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4)
    quantized = insert_quantizers(nn.Sequential(nn.Linear(3, 3), other))
    assert left_float(quantized) == {
        "1": "a NonDynamicallyQuantizableLinear, and only plain Conv2d and Linear can be quantized"
    }


def test_padding_that_repeats_values_stays_float_and_is_named():
    quantized = insert_quantizers(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    )
    assert left_float(quantized) == {"1": "its padding is 'reflect', and integer kernels pad with zeros"}


class Operation(nn.Module):
    """Two convolutions with something in between, both of its inputs and its output read by layers that round."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.LazyConv2d(4, 1)
        self.between, self.layer = between, between if isinstance(between, nn.Module) else None

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.other(x)
        y = self.between(a) if self.layer is not None else self.between(a, b)
        return F.adaptive_avg_pool2d(self.last(y), 1).flatten(1)


def shuffled(a: Tensor, b: Tensor) -> Tensor:
    batch, channels, height, width = a.size()
    a = a.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)
    left, right = a.chunk(2, dim=1)
    return torch.cat([right, left, b], dim=1)


INT8 = {
    "add": lambda a, b: a + b,
    "add_ then relu": lambda a, b: F.relu(a.add_(b)),
    "mul": lambda a, b: a * b,
    "mul by a gate": lambda a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)),
    "cat": lambda a, b: torch.cat([a, b], dim=1),
    "channel shuffle": shuffled,
    "hard-swish": nn.Hardswish(),
    "hard-swish, as a function": lambda a, b: F.hardswish(a) + b,
    "hard-sigmoid": nn.Hardsigmoid(),
    "SiLU": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(-1.0, 2.0),
    "clamp": lambda a, b: torch.clamp(a, 0, 4) + b,
    "clamp, open above": lambda a, b: a.clamp(min=0) + b,
    "batch-norm of a sum": nn.BatchNorm2d(8),
    "max pooling": nn.MaxPool2d(2),
    "max pooling, as a function": lambda a, b: F.max_pool2d(a + b, 2),
    "average pooling": nn.AvgPool2d(2),
    "adaptive pooling to half": nn.AdaptiveAvgPool2d(4),
    "adaptive pooling to all": nn.AdaptiveAvgPool2d(8),
    "LeakyReLU, in place": nn.LeakyReLU(0.1, inplace=True),
    "in place behind a sum": lambda a, b: (a + b).mul_(torch.sigmoid(b)),
    "a convolution as a function": lambda a, b: F.conv2d(a, torch.full((8, 8, 1, 1), 0.2)) + b,
    "grouped convolution": nn.Conv2d(8, 8, 3, padding=1, groups=4),
    "depthwise convolution": nn.Conv2d(8, 8, 3, padding=1, groups=8),
}
FLOAT = {
    "GELU": (nn.GELU(), "between", "GELU has no int8 kernel"),
    "ELU, as a function": (lambda a, b: F.elu(a) + b, "elu", "elu has no int8 kernel"),
    "a scalar": (lambda a, b: a * 2 + b, "mul", "mul has no int8 kernel"),
}  # fmt: skip


def settled(between) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module, x = Operation(between).eval(), 2 * torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        module(x)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(-2, 2)
    return module, x


@pytest.mark.parametrize("case", INT8)
def test_an_operation_is_int8_in_the_runtime(case, optimized_operators):
    module, x = settled(INT8[case])
    quantized = insert_quantizers(module)
    calibrate(quantized, lambda: [x])
    assert left_float(quantized) == {}
    operators, output = optimized_operators(quantized, x)
    assert not {"Conv", "FusedConv", "Clip", "Mul", "Add", "Sigmoid", "Concat", "AveragePool"} & operators.keys()
    # The last pooling gives the logits, which stay float.
    assert operators["QuantizeLinear"] == 1
    assert operators["DequantizeLinear"] <= 1
    with torch.no_grad():
        exact, rounded = module(x), quantized.eval()(x)
    assert noise(exact, rounded) < 0.02
    assert noise(rounded, output) < 2e-3


@pytest.mark.parametrize("case", FLOAT)
def test_an_operation_without_a_kernel_stays_float_and_is_named(case, optimized_operators):
    between, name, reason = FLOAT[case]
    module, x = settled(between)
    quantized = insert_quantizers(module)
    calibrate(quantized, lambda: [x])
    assert left_float(quantized) == {name: reason}
    _, output = optimized_operators(quantized, x)
    with torch.no_grad():
        assert noise(module(x), quantized.eval()(x)) < 0.02
        assert noise(quantized(x), output) < 2e-3


def noise(exact: Tensor, other: Tensor) -> float:
    return (((exact - other) ** 2).sum() / (exact**2).sum()).item()


@pytest.fixture
def optimized_operators(tmp_path):
    """What ONNX Runtime really runs of a network, by kind, and what it gives."""
    from collections import Counter

    import onnxruntime as ort

    from compress.export.layers import integer_form, swap_pooling

    def found(quantized, x):
        ready = integer_form(quantized)
        swap_pooling(ready, x)
        program = torch.onnx.export(
            ready, (x,), dynamo=True, opset_version=18, verbose=False, dynamic_shapes=({0: torch.export.Dim("n")},)
        )
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        session = ort.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        return Counter(node.op_type for node in nodes), torch.from_numpy(output)

    return found


def test_the_grid_of_a_hard_swish_reaches_no_lower_than_its_zero():
    quantized = insert_quantizers(settled(nn.Hardswish())[0])
    bounds = {name: (layer.low, layer.high) for name, layer in activation_quantizers(quantized)}
    assert bounds["quantizer_first"] == (-3, math.inf)
    assert [type(layer) for layer in quantized.modules() if isinstance(layer, QuantizedHardSigmoid)] != []


def test_signed_activations_leave_hard_sigmoids_as_they_are():
    quantized = insert_quantizers(settled(nn.Hardsigmoid())[0], Quantizers(activations="int8"))
    assert all(layer.symmetric for _, layer in activation_quantizers(quantized))
    assert not any(isinstance(layer, QuantizedHardSigmoid) for layer in quantized.modules())
    assert "has no int8 kernel" in next(iter(left_float(quantized).values()))


def test_layers_stay_float_by_name():
    module = settled(INT8["add"])[0]
    quantized = insert_quantizers(module, Quantizers(float_layers=("other",)))
    assert left_float(quantized) == {"other": "kept in float, as asked for"}
    assert [name for name, _ in quantized_layers(quantized)] == ["first", "last"]
    assert type(quantized.get_submodule("other")) is nn.Conv2d


def test_a_float_layer_is_float_in_the_runtime_too(optimized_operators):
    # Newer ONNX Runtimes would quantize it on their own, see FloatLayer.
    module, x = settled(INT8["add"])
    module.other.weight.data[0] *= 1000  # with one scale for all channels the others would be lost
    quantized = insert_quantizers(module, Quantizers(float_layers=("other",)))
    calibrate(quantized, lambda: [x])
    operators, output = optimized_operators(quantized, x)
    assert operators["Conv"] == 1
    assert operators["QLinearConv"] == 2
    with torch.no_grad():
        assert noise(quantized.eval()(x), output) < 2e-3


def test_patterns_name_layers_and_a_typing_error_is_answered_with_the_nearest():
    module = settled(INT8["add"])[0]
    assert layers_like(module, ["first", "o*"]) == ("first", "other")
    with pytest.raises(ConfigError, match=r"float_layers: no layer is called 'frist'. Did you mean 'first'\?"):
        layers_like(module, ["frist"])


def test_with_dynamic_ranges_layers_round_and_nothing_else():
    module, x = settled(INT8["add"])
    quantized = insert_quantizers(module, Quantizers(ranges="dynamic"))
    assert not list(activation_quantizers(quantized))
    assert len(list(quantized_layers(quantized))) == 3
    with torch.no_grad():
        assert 0 < noise(module(x), quantized.eval()(x)) < 0.01


def test_the_same_edit_gives_the_same_names_and_shapes():
    module = settled(INT8["hard-swish"])[0]
    for edit in (Quantizers(), Quantizers(ranges="dynamic"), Quantizers(float_layers=("last",), equalized=True)):
        first, second = edit(module).state_dict(), edit(module).state_dict()
        assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}


class Branches(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.sum() > 0:
            y = -y
        return y


def test_what_cannot_be_traced_is_answered_with_the_line_of_the_users_code():
    with pytest.raises(ModelError, match=r'at test_placement.py line \d+, "if y.sum\(\) > 0:"'):
        insert_quantizers(Branches())


class Clash(nn.Module):
    """A layer of the user's own with a name that a rewrite would give to one of its."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.act_gate = nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.act_gate(self.act(self.first(x))), 1).flatten(1)


def test_a_users_own_layer_is_not_overwritten_by_a_made_up_name():
    torch.manual_seed(0)
    module, x = Clash().eval(), torch.randn(4, 3, 8, 8)
    quantized = insert_quantizers(module)
    calibrate(quantized, lambda: [x])
    with torch.no_grad():
        assert noise(module(x), quantized.eval()(x)) < 0.01


class Same(nn.Conv2d):
    """A convolution with a forward of its own, as timm has them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def test_a_subclass_with_a_forward_of_its_own_is_a_layer_under_its_own_name():
    torch.manual_seed(0)
    module = nn.Sequential(Same(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    quantized = insert_quantizers(module)
    assert [name for name, _ in quantized_layers(quantized)] == ["0", "3"]
    assert layers_like(module, ["0"]) == ("0",)


class ConvHead(nn.Module):
    """Logits from a convolution, as fully convolutional nets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x))).flatten(1)


def test_a_convolution_that_gives_the_logits_is_int8(optimized_operators):
    torch.manual_seed(0)
    module, x = ConvHead().eval(), torch.randn(4, 3, 8, 8)
    quantized = insert_quantizers(module)
    calibrate(quantized, lambda: [x])
    operators, output = optimized_operators(quantized, x)
    assert operators["QLinearConv"] == 2
    assert noise(quantized.eval()(x).detach(), output) < 1e-3
