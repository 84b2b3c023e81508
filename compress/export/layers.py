"""Layers in the form in which they go to the exporter: in ONNX's operators, with integers where a file has them."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.edits import graph
from compress.edits.quantizers import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    activation_quantizers,
    integer_parameters,
)


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
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        symbolic, grid = torch.onnx.ops.symbolic, (self.scale, self.zero_point)
        q = symbolic("QuantizeLinear", (x, *grid), dtype=torch.uint8, shape=x.shape, version=18)
        return symbolic("DequantizeLinear", (q, *grid), dtype=torch.float32, shape=x.shape, version=18)


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose weight and bias stand in the file as int8 and int32."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor
    unit: Tensor
    bias_zero_point: Tensor

    def __init__(self, layer: QuantizedLayer, input_scale: Tensor) -> None:
        super().__init__()
        weight, scale, bias, unit = integer_parameters(layer, input_scale)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.register_buffer("bias", bias)
        self.register_buffer("unit", unit)
        self.register_buffer("bias_zero_point", torch.zeros_like(bias))
        self.layer = copy.deepcopy(layer)
        for name in ("weight", "bias"):  # only its strides, padding and groups are still of use
            self.layer.register_parameter(name, None)

    def forward(self, x: Tensor, input_scale: Tensor) -> Tensor:
        weight = self.dequantized(self.weight, self.scale, self.zero_point)
        # A float bias is int8 only in the newest runtimes; an int32 one in all of them.
        bias = self.dequantized(self.bias, self.unit, self.bias_zero_point)
        if isinstance(self.layer, QuantizedConv2d):
            output: Tensor = self.layer._conv_forward(x, weight, bias)
            return output
        return F.linear(x, weight, bias)

    def dequantized(self, whole: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """A DequantizeLinear of integers with one scale an output channel."""
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (whole, scale, zero_point),
            attrs={"axis": 0},
            dtype=torch.float32,
            shape=whole.shape,
            version=18,
        )


def integer_form(module: nn.Module) -> torch.fx.GraphModule:
    """A copy of a network with quantizers whose layers hold integers, each behind the operators of the QDQ form."""
    ready = copy.deepcopy(module).eval().cpu()
    assert isinstance(ready, torch.fx.GraphModule)
    for node, layer in graph.calls(ready, QuantizedConv2d, QuantizedLinear):
        _, scale = node.all_input_nodes
        ready.set_submodule(str(node.target), IntegerLayer(layer, ready.get_buffer(str(scale.target))))
    for name, quantizer in list(activation_quantizers(ready)):
        ready.set_submodule(name, Rounding(quantizer))
    ready.recompile()
    return ready


def swap_pooling(ready: torch.fx.GraphModule) -> None:
    """Let global pooling be written as GlobalAveragePool, in place."""
    for node, _ in graph.calls(ready, graph.GlobalAveragePool):
        ready.set_submodule(str(node.target), OnnxGlobalAveragePool())
