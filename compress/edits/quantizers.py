"""Simulated int8 arithmetic, inserted into a network as layers.

`Quantizers` is the edit: it traces a network, folds its batch-norms, and puts an `ActivationQuantizer` after the
input, after each convolution or its ReLU, after each addition and pooling; convolutions and linear layers
become `QuantizedConv2d` and `QuantizedLinear`, which round their weights. The scheme is ONNX Runtime's fast path on
CPUs: activations uint8, one scale a tensor; weights int8, one scale an output channel, zero point 0; biases int32
with scale s_x·s_w (Jacob et al. 2018, arXiv:1712.05877, eq. 4 and sec. 2.4).
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import compress.edits.graph as graph
from compress.config import Config
from compress.errors import ModelError

ACTIVATION_MAX = 255
WEIGHT_MAX = 127
BIAS_MAX = 2**31 - 1
SMALLEST_SCALE = 1e-12


class Quantizers(Config):
    """Rounding to int8 as part of the network (Krishnamoorthi 2018, arXiv:1806.08342, sec. 3)."""

    name: ClassVar[str] = "quantizers"
    weights: Literal["int8"] = "int8"
    activations: Literal["uint8"] = "uint8"

    def __call__(self, module: nn.Module) -> nn.Module:
        return insert_quantizers(module)


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to uint8 and back: s·(clip(round(x/s) + z, 0, 255) - z), with a straight-through gradient.

    `scale` (float32) and `zero_point` (int32) are rank-0 buffers. `low` and `high` bound the range that it may
    ever take: behind a ReLU6 they are 0 and 6, so that a runtime can drop the clip. Switched off by `enabled`,
    it passes its input on, which calibration uses.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, low: float = -float("inf"), high: float = float("inf")) -> None:
        super().__init__()
        self.low, self.high, self.enabled = low, high, True
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Round to the nearest of the 256 values that can be written."""
        if not self.enabled:
            return x
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, ACTIVATION_MAX)

    def set_range(self, minimum: float, maximum: float) -> None:
        """Take the range [minimum, maximum], widened to hold 0 exactly and cut to [low, high].

        A range without width becomes [0, 1e-12·255], so that a constant zero stays zero.
        """
        minimum = min(max(minimum, self.low), 0.0)
        maximum = max(min(maximum, self.high), 0.0)
        scale = torch.tensor(max((maximum - minimum) / ACTIVATION_MAX, SMALLEST_SCALE), dtype=torch.float32)
        zero_point = round(-minimum / float(scale))
        # In float32 255·(6/255) can exceed 6; then ONNX Runtime keeps the Clip and the convolution in float.
        while (ACTIVATION_MAX - zero_point) * float(scale) > self.high:
            scale = torch.nextafter(scale, torch.tensor(0.0))
        self.scale.copy_(scale)
        self.zero_point.fill_(min(max(zero_point, 0), ACTIVATION_MAX))

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():.4g}, zero_point={self.zero_point.item()}"


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weights are rounded to int8, and whose bias to int32 outside training."""

    def forward(self, x: Tensor, input_scale: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (n, C, H, W); `input_scale` is the scale that `x` was rounded with."""
        weight, bias = rounded_parameters(self, input_scale)
        output: Tensor = self._conv_forward(x, weight, bias)
        return output


class QuantizedLinear(nn.Linear):
    """A linear layer whose weights are rounded to int8, and whose bias to int32 outside training."""

    def forward(self, x: Tensor, input_scale: Tensor) -> Tensor:  # type: ignore[override]
        """Multiply (n, features); `input_scale` is the scale that `x` was rounded with."""
        weight, bias = rounded_parameters(self, input_scale)
        return F.linear(x, weight, bias)


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def weight_scale(layer: QuantizedLayer, input_scale: Tensor) -> Tensor:
    """One scale an output channel, (out,): max|w|/127, and no smaller than lets the bias fit into int32.

    A channel that pruning or training left near zero would otherwise get a scale so small that
    b/(s_x·s_w) overflows.
    """
    weight = layer.weight.detach()
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim()))) / WEIGHT_MAX
    if layer.bias is not None:
        needed = layer.bias.detach().abs() / (input_scale * (BIAS_MAX // 2))
        scale = torch.maximum(scale, needed)
    return scale.clamp_min(SMALLEST_SCALE)


def rounded_parameters(layer: QuantizedLayer, input_scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as the integer kernels see them, in float, with a straight-through gradient."""
    scale = weight_scale(layer, input_scale)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    weight = torch.fake_quantize_per_channel_affine(layer.weight, scale, zero, 0, -WEIGHT_MAX, WEIGHT_MAX)
    if layer.bias is None or layer.training:
        return weight, layer.bias  # rounding to 32 bits does not change training, and costs time
    unit = input_scale.double() * scale.double()
    return weight, (torch.round(layer.bias.double() / unit) * unit).float()


def integer_parameters(layer: QuantizedLayer, input_scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a file stores: int8 weight, float32 scale (out,), int32 bias (out,), float32 bias scale s_x·s_w (out,)."""
    scale = weight_scale(layer, input_scale)
    shape = (-1, *(1,) * (layer.weight.dim() - 1))
    weight = torch.round(layer.weight.detach() / scale.view(shape)).clamp(-WEIGHT_MAX, WEIGHT_MAX)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach()
    unit = input_scale.double() * scale.double()
    whole = torch.round(bias.double() / unit).clamp(-BIAS_MAX, BIAS_MAX)
    return weight.to(torch.int8), scale, whole.to(torch.int32), unit.float()


def activation_quantizers(module: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """All activation quantizers by name, in the order in which data pass them."""
    for name, layer in module.named_modules():
        if isinstance(layer, ActivationQuantizer):
            yield name, layer


def insert_quantizers(module: nn.Module) -> fx.GraphModule:
    """Trace and fold a network and make it round as int8 hardware does; ranges are still to be set.

    The given module is left as it was. Raises ModelError where it cannot be traced or has nothing to quantize.
    """
    traced = graph.folded(module)
    placed = _Placement(traced)
    for node in list(traced.graph.nodes):
        placed.visit(node)
    if not any(graph.calls(traced, QuantizedConv2d, QuantizedLinear)):
        raise ModelError(f"{type(module).__name__} has no Conv2d and no Linear layer, so there is nothing to quantize")
    graph.clean(traced)
    return traced


class _Placement:
    """Walks the graph once, remembering for each value the quantizer that rounded it."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.rounded_by: dict[fx.Node, str] = {}

    def visit(self, node: fx.Node) -> None:
        """Put what a node needs around it: rounded inputs, a rounding layer, a rounded output."""
        layer = graph.called(self.traced, node)
        if node.op == "placeholder":
            self.round_after(node)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            self.replace_layer(node, layer)
        elif graph.is_add(node) or isinstance(layer, nn.AvgPool2d | graph.GlobalAveragePool):
            for source in node.all_input_nodes:
                self.ensure_rounded(source)
            self.round_after(self.with_activation(node))
        elif self.keeps_values(node, layer) and node.all_input_nodes[0] in self.rounded_by:
            self.pass_on(node, again=isinstance(layer, nn.MaxPool2d))

    def replace_layer(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        """Make a convolution or linear layer round its weights; it is told the scale of its input."""
        if type(layer) not in (nn.Conv2d, nn.Linear):
            raise ModelError(
                f"layer {node.target} is a {type(layer).__name__}: only plain Conv2d and Linear can be quantized"
            )
        source = node.all_input_nodes[0]
        self.ensure_rounded(source)
        self.traced.set_submodule(str(node.target), _quantized(layer))
        with self.traced.graph.inserting_before(node):
            scale = self.traced.graph.get_attr(f"{self.rounded_by[source]}.scale")
        node.args = (node.args[0], scale)
        if isinstance(layer, nn.Linear) and all(user.op == "output" for user in node.users):
            return  # logits stay float: integer kernels give them for free, and ties are avoided
        self.round_after(self.with_activation(node))

    def with_activation(self, node: fx.Node) -> fx.Node:
        """The ReLU that alone follows a node, or the node itself: nothing may stand between the two."""
        users = list(node.users)
        if len(users) == 1 and _clip_range(graph.called(self.traced, users[0]), users[0]) is not None:
            return users[0]
        return node

    def round_after(self, node: fx.Node) -> None:
        low, high = _clip_range(graph.called(self.traced, node), node) or (-float("inf"), float("inf"))
        name = f"quantizer_{node.name}"
        self.traced.add_submodule(name, ActivationQuantizer(low, high))
        self.insert(node, name)

    def ensure_rounded(self, node: fx.Node) -> None:
        """Round a value that came through layers without an int8 form (their arithmetic stays in float)."""
        if node not in self.rounded_by:
            self.round_after(node)
            inserted = next(user for user in node.users if user.name.startswith("quantizer_"))
            self.rounded_by[node] = self.rounded_by[inserted]

    def pass_on(self, node: fx.Node, *, again: bool) -> None:
        """A layer that only moves values leaves them on the same grid; pooling kernels want to see it said again."""
        name = self.rounded_by[node.all_input_nodes[0]]
        if again:
            self.insert(node, name)
        else:
            self.rounded_by[node] = name

    def insert(self, node: fx.Node, name: str) -> None:
        users = list(node.users)
        with self.traced.graph.inserting_after(node):
            rounded = self.traced.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, rounded)
        self.rounded_by[rounded] = name

    def keeps_values(self, node: fx.Node, layer: nn.Module | None) -> bool:
        moves = graph.does(node, {torch.flatten, torch.reshape}, {"flatten", "view", "reshape", "contiguous"})
        return moves or isinstance(layer, nn.Flatten | nn.MaxPool2d)


def _clip_range(layer: nn.Module | None, node: fx.Node) -> tuple[float, float] | None:
    if isinstance(layer, nn.ReLU6) or graph.does(node, {F.relu6}, set()):
        return 0.0, 6.0
    if isinstance(layer, nn.ReLU) or graph.does(node, {F.relu, torch.relu}, {"relu", "relu_"}):
        return 0.0, float("inf")
    return None


def _quantized(layer: nn.Conv2d | nn.Linear) -> QuantizedLayer:
    """The same layer with rounding; weights are shared with the given one, which is thrown away."""
    copy: QuantizedLayer
    if isinstance(layer, nn.Linear):
        copy = QuantizedLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        copy = QuantizedConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
            layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode, device="meta",  # type: ignore[arg-type]
        )  # fmt: skip
    copy.weight, copy.bias = layer.weight, layer.bias
    return copy.train(layer.training)
