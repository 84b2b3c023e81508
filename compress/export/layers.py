"""Layers in the form in which they go to the exporter: in ONNX's operators, with integers where a file has them."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp

from compress.edits import graph
from compress.edits.quantizers import (
    BIAS_MAX,
    SHIFT,
    ActivationQuantizer,
    DynamicConv2d,
    DynamicLinear,
    QuantizedConv2d,
    QuantizedHardSigmoid,
    QuantizedLayer,
    QuantizedLinear,
    activation_quantizers,
    integer_parameters,
    integer_weight,
    is_dynamic,
    weight_scale,
)
from compress.edits.rounding import SMALLEST_SCALE


class WithPreprocessing(nn.Module):
    """Turns raw pixels, uint8 (n, H, W, C), into what the network was trained on, then runs it."""

    factor: Tensor
    offset: Tensor

    def __init__(self, module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.module = module
        # (x/255 - mean)/std in one multiplication and one addition
        self.register_buffer("factor", 1 / (255 * torch.tensor(std)).view(1, -1, 1, 1))
        self.register_buffer("offset", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float() * self.factor + self.offset
        return self.module(x)  # type: ignore[no-any-return]


class OnnxGlobalAveragePool(nn.Module):
    """Global average pooling as one operator: the exporter's own ReduceMean has no int8 kernel."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], 1, 1)
        return torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=x.dtype, shape=shape, version=18)


class Rounding(nn.Module):
    """QuantizeLinear and DequantizeLinear. Scale and zero point are rank 0: a vector of one does not load."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.integers = torch.int8 if quantizer.symmetric else torch.uint8
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(self.integers))

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.scale, self.zero_point)
        return dequantized(quantized(x, *grid), *grid)


class IntegerHardSigmoid(nn.Module):
    """x + 3 quantized on [0, 6] and read back on [0, 1]: one int8 addition where there is no int8 hard-sigmoid."""

    three: Tensor
    three_scale: Tensor
    wide_scale: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("three", torch.tensor(255, dtype=torch.uint8))
        self.register_buffer("three_scale", torch.tensor(SHIFT / 255))
        self.register_buffer("wide_scale", torch.tensor(6 / 255))
        self.register_buffer("scale", torch.tensor(1 / 255))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        shifted = x + dequantized(self.three, self.three_scale, self.zero_point)
        return dequantized(quantized(shifted, self.wide_scale, self.zero_point), self.scale, self.zero_point)


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose weight and bias stand in the file as int8 and int32, or the bias as float."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor
    unit: Tensor
    bias_zero_point: Tensor

    def __init__(self, layer: QuantizedLayer, input_scale: Tensor, *, float_bias: bool) -> None:
        super().__init__()
        weight, scale, bias, unit = integer_parameters(layer, input_scale)
        if not layer.per_channel:
            scale, unit = scale[0].clone(), unit[0].clone()
        self.float_bias = float_bias
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int8))
        if float_bias:
            self.register_buffer("bias", (bias.double() * unit.double()).float())
        else:
            self.register_buffer("bias", bias)
            self.register_buffer("unit", unit)
            self.register_buffer("bias_zero_point", torch.zeros_like(unit, dtype=torch.int32))
        self.layer = bare(layer)

    def forward(self, x: Tensor, input_scale: Tensor) -> Tensor:
        weight = dequantized(self.weight, self.scale, self.zero_point)
        # A float bias is int8 only in the newest runtimes of ONNX Runtime; an int32 one in all of them.
        bias = self.bias if self.float_bias else dequantized(self.bias, self.unit, self.bias_zero_point)
        if isinstance(self.layer, QuantizedConv2d):
            output: Tensor = self.layer._conv_forward(x, weight, bias)
            return output
        return F.linear(x, weight, bias)


class FloatLayer(nn.Module):
    """A layer kept in float between rounded values, with its bias as int32 on a grid finer than float32's own.

    Newer ONNX Runtimes quantize the weights of such a layer by themselves, all channels on one scale, without a word;
    they leave those alone whose bias is not a float constant (their WeightBiasQuantization, from 1.21 on).
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", layer.weight.detach())
        bias = torch.zeros(channels(layer)) if layer.bias is None else layer.bias.detach()
        layer.bias = nn.Parameter(torch.zeros_like(bias))  # so that there is one to put in the place of
        scale = (bias.abs().max() / (BIAS_MAX // 2)).clamp_min(SMALLEST_SCALE)
        self.register_buffer("bias", torch.round(bias.double() / scale.double()).to(torch.int32))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        values = {"weight": self.weight, "bias": dequantized(self.bias, self.scale, self.zero_point)}
        output: Tensor = torch.func.functional_call(self.layer, values, (x,))
        return output


def channels(layer: nn.Conv2d | nn.Linear | nn.ConvTranspose2d) -> int:
    """How many numbers the bias of a layer has."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


class DynamicIntegerLayer(nn.Module):
    """A layer that takes its input's range from the input: DynamicQuantizeLinear and ConvInteger or MatMulInteger."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: DynamicConv2d | DynamicLinear) -> None:
        super().__init__()
        scale = weight_scale(layer, None)
        weight = integer_weight(layer, scale)
        self.positions = (1,) * (weight.dim() - 2)
        self.register_buffer("weight", weight if isinstance(layer, DynamicConv2d) else weight.t().contiguous())
        self.register_buffer("scale", scale.reshape(-1, *self.positions))
        bias = torch.zeros(len(scale)) if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias.reshape(-1, *self.positions))
        self.layer = bare(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (n, C, H, W) or (n, …, features) in integers, then scale and add the float bias."""
        whole, scale, zero_point = torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear", (x,), dtypes=(torch.uint8, torch.float32, torch.uint8), shapes=(x.shape, (), ()),
            version=18,
        )  # fmt: skip
        if isinstance(self.layer, DynamicConv2d):
            pads = padding(self.layer)
            sums = torch.onnx.ops.symbolic(
                "ConvInteger", (whole, self.weight, zero_point), dtype=torch.int32, version=18,
                shape=self.layer._conv_forward(x, torch.zeros(self.weight.shape), None).shape,
                attrs={
                    "pads": pads, "strides": [*self.layer.stride], "dilations": [*self.layer.dilation],
                    "group": self.layer.groups,
                },
            )  # fmt: skip
        else:
            shape = (*x.shape[:-1], self.weight.shape[1])
            inputs = (whole, self.weight, zero_point)
            sums = torch.onnx.ops.symbolic("MatMulInteger", inputs, dtype=torch.int32, shape=shape, version=18)
        return sums.float() * (scale * self.scale) + self.bias


def padding(layer: nn.Conv2d) -> list[int]:
    """A convolution's padding as ONNX writes it: begins, then ends."""
    both = layer._reversed_padding_repeated_twice  # left, right, top, bottom
    return [*both[::2][::-1], *both[1::2][::-1]]


def bare(layer: QuantizedLayer) -> QuantizedLayer:
    """The layer without its values: only its strides, padding and groups are still of use."""
    shell = copy.deepcopy(layer)
    for name in ("weight", "bias"):
        shell.register_parameter(name, None)
    del shell.clip
    return shell


def quantized(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A QuantizeLinear to the type of the zero point."""
    inputs = (x, scale, zero_point)
    return torch.onnx.ops.symbolic("QuantizeLinear", inputs, dtype=zero_point.dtype, shape=x.shape, version=18)


def dequantized(whole: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A DequantizeLinear of integers; with a vector of scales, one for each place of the first axis."""
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (whole, scale, zero_point),
        attrs={"axis": 0} if scale.dim() else {},
        dtype=torch.float32,
        shape=whole.shape,
        version=18,
    )


def integer_form(module: nn.Module, *, float_bias: bool = False) -> torch.fx.GraphModule:
    """A copy of a network with quantizers whose layers hold integers, each behind the operators of the QDQ form.

    With `float_bias` biases are written as float32, for runtimes that take no int32 DequantizeLinear.
    """
    ready = copy.deepcopy(module).eval().cpu()
    assert isinstance(ready, torch.fx.GraphModule)
    for node, layer in graph.calls(ready, QuantizedConv2d, QuantizedLinear):
        if isinstance(layer, DynamicConv2d | DynamicLinear):
            ready.set_submodule(str(node.target), DynamicIntegerLayer(layer))
            continue
        _, scale = node.all_input_nodes
        input_scale = ready.get_buffer(str(scale.target))
        ready.set_submodule(str(node.target), IntegerLayer(layer, input_scale, float_bias=float_bias))
    if not float_bias and not is_dynamic(ready):
        for node, layer in graph.calls(ready, nn.Conv2d, nn.Linear, nn.ConvTranspose2d):
            ready.set_submodule(str(node.target), FloatLayer(layer))
    for node, _ in graph.calls(ready, QuantizedHardSigmoid):
        ready.set_submodule(str(node.target), IntegerHardSigmoid())
    for name, quantizer in list(activation_quantizers(ready)):
        ready.set_submodule(name, Rounding(quantizer))
    ready.recompile()
    return ready


def swap_pooling(ready: torch.fx.GraphModule, example: Tensor) -> None:
    """Write pooling in operators that have int8 kernels, in place; sizes are those for the example's.

    Global pooling becomes GlobalAveragePool; adaptive pooling whose output sizes divide its input's becomes average
    pooling, or nothing where the two are the same. Any other adaptive pooling is left to the exporter.
    """
    ShapeProp(ready).propagate(example)
    for node in list(ready.graph.nodes):
        layer = graph.called(ready, node)
        if isinstance(layer, graph.GlobalAveragePool):
            ready.set_submodule(str(node.target), OnnxGlobalAveragePool())
        elif isinstance(layer, nn.AdaptiveAvgPool2d) or graph.does(node, {F.adaptive_avg_pool2d}, set()):
            before, after = (n.meta["tensor_meta"].shape[-2:] for n in (node.all_input_nodes[0], node))
            if all(large % small == 0 for large, small in zip(before, after, strict=True)):
                kernel = tuple(large // small for large, small in zip(before, after, strict=True))
                _replace(ready, node, nn.Identity() if kernel == (1, 1) else nn.AvgPool2d(kernel))
    graph.clean(ready)


def _replace(ready: torch.fx.GraphModule, node: torch.fx.Node, layer: nn.Module) -> None:
    name = f"{node.name}_sized"
    ready.add_submodule(name, layer)
    with ready.graph.inserting_before(node):
        new = ready.graph.call_module(name, (node.all_input_nodes[0],))
    node.replace_all_uses_with(new)
    ready.graph.erase_node(node)
