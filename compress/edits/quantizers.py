"""Simulated integer arithmetic, as layers: rounding of activations, and convolutions and linear layers that round
their weights.

The scheme is that of integer kernels (Jacob et al. 2018, arXiv:1712.05877, eq. 1, 4 and sec. 2.4): activations of 8
bits, one scale a tensor; weights symmetric with zero point 0, one scale an output channel or one a tensor; biases
int32 with scale s_x·s_w. `placement` puts these layers into a network.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.edits.rounding import SMALLEST_SCALE, rounded, rounded_by_channel

ACTIVATIONS = {"uint8": (0, 255), "int8": (-128, 127)}
WEIGHTS = {"int8": 127, "int7": 63, "int4": 7}  # the largest integer of a symmetric grid
BIAS_MAX = 2**31 - 1
# Of a hard-sigmoid: 3, and a 64th of a step more. At 3 itself an x of 0, of which squeeze-excite has many, falls
# between two integers, and every runtime has a way of its own to choose one.
SHIFT = 3 + 6 / 255 / 64


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to integers and back: s·(clip(round(x/s) + z) - z), with a straight-through gradient.

    `activations` is `uint8` (0 … 255, any zero point) or `int8` (-128 … 127, zero point 0). `scale` (float32) and
    `zero_point` (int32) are rank-0 buffers. `low` and `high` bound the range that it may ever take: behind a ReLU6 they
    are 0 and 6, so that a runtime can drop the clip. Switched off by `enabled`, it passes its input on, which
    calibration uses. While a net is trained, `moving` sees every input before it is rounded, and `learner` rounds
    in its place.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, low: float = -float("inf"), high: float = float("inf"), activations: str = "uint8") -> None:
        super().__init__()
        self.low, self.high, self.enabled = low, high, True
        self.smallest, self.largest = ACTIVATIONS[activations]
        self.symmetric = activations == "int8"
        self.moving: nn.Module | None = None
        self.learner: nn.Module | None = None
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Round to the nearest of the 256 values that can be written."""
        if not self.enabled:
            return x
        if self.training and self.moving is not None:
            self.moving(x, self)
        if self.training and self.learner is not None:
            learnt: Tensor = self.learner(x, self)
            return learnt
        return rounded(x, self.scale, self.zero_point, self.smallest, self.largest)

    def set_range(self, minimum: float, maximum: float) -> None:
        """Take the range [minimum, maximum], widened to hold 0 exactly and cut to [low, high].

        A range without width becomes [0, 1e-12·255], so that a constant zero stays zero. A symmetric quantizer takes
        the larger of the two sides for both.
        """
        minimum = min(max(minimum, self.low), 0.0)
        maximum = max(min(maximum, self.high), 0.0)
        if self.symmetric:
            self.scale.fill_(max(-minimum / -self.smallest, maximum / self.largest, SMALLEST_SCALE))
            self.zero_point.zero_()
            return
        steps = self.largest - self.smallest
        scale = torch.tensor(max((maximum - minimum) / steps, SMALLEST_SCALE), dtype=torch.float32)
        zero_point = min(max(round(-minimum / float(scale)), self.smallest), self.largest)
        # Neither end may pass its bound, not even by float32's last digit (255·(6/255) can exceed 6): then ONNX Runtime
        # keeps the Clip and the convolution in float.
        above, below = self.largest - zero_point, zero_point - self.smallest
        if above * float(scale) > self.high:
            scale.fill_(self.high / above)
        if -below * float(scale) < self.low:
            scale.fill_(-self.low / below)
        while above * float(scale) > self.high or -below * float(scale) < self.low:
            scale = torch.nextafter(scale, torch.tensor(0.0))
        self.scale.copy_(scale)
        self.zero_point.fill_(zero_point)

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():.4g}, zero_point={self.zero_point.item()}"


class QuantizedHardSigmoid(nn.Module):
    """relu6(x + 3)/6 without an operator of its own: x + 3 is rounded on [0, 6], and the integers are read as [0, 1].

    Howard et al. 2019 (arXiv:1905.02244, sec. 5.2) give the function; runtimes have no int8 kernel for it, and one for
    the addition, whose rounding does the clipping. Its grid is fixed: `scale` 1/255 and `zero_point` 0 are those of its
    output.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1 / 255), persistent=False)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, float32, to the same shape in [0, 1]."""
        return rounded(x + SHIFT, 6 * self.scale, self.zero_point, 0, 255) / 6


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weights are rounded to integers, and whose bias to int32 outside training.

    `largest` is the largest integer of a weight, `clip` (out,) the largest value that is written as a share of the
    largest there is. While a net is trained, `learner` rounds the weights if it is set.
    """

    largest: int
    per_channel: bool
    clip: Tensor
    learner: nn.Module | None

    def forward(self, x: Tensor, input_scale: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (n, C, H, W); `input_scale` is the scale that `x` was rounded with."""
        weight, bias = rounded_parameters(self, input_scale)
        output: Tensor = self._conv_forward(x, weight, bias)
        return output


class QuantizedLinear(nn.Linear):
    """A linear layer whose weights are rounded to integers, and whose bias to int32 outside training.

    The attributes are those of `QuantizedConv2d`.
    """

    largest: int
    per_channel: bool
    clip: Tensor
    learner: nn.Module | None

    def forward(self, x: Tensor, input_scale: Tensor) -> Tensor:  # type: ignore[override]
        """Multiply (n, …, features); `input_scale` is the scale that `x` was rounded with."""
        weight, bias = rounded_parameters(self, input_scale)
        return F.linear(x, weight, bias)


class DynamicConv2d(QuantizedConv2d):
    """A convolution that rounds its own input by the extremes of each batch; its bias stays float."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (n, C, H, W) of any range."""
        output: Tensor = self._conv_forward(dynamically_rounded(x), rounded_weight(self), self.bias)
        return output


class DynamicLinear(QuantizedLinear):
    """A linear layer that rounds its own input by the extremes of each batch; its bias stays float."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Multiply (n, …, features) of any range."""
        return F.linear(dynamically_rounded(x), rounded_weight(self), self.bias)


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def quantized_layer(layer: nn.Conv2d | nn.Linear, weights: str, *, per_channel: bool, dynamic: bool) -> QuantizedLayer:
    """The same layer with rounding; it shares its weights with the given one."""
    copy: QuantizedLayer
    if isinstance(layer, nn.Linear):
        kind = DynamicLinear if dynamic else QuantizedLinear
        copy = kind(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        conv = DynamicConv2d if dynamic else QuantizedConv2d
        copy = conv(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
            layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode, device="meta",  # type: ignore[arg-type]
        )  # fmt: skip
    copy.weight, copy.bias = layer.weight, layer.bias
    copy.largest, copy.per_channel, copy.learner = WEIGHTS[weights], per_channel, None
    copy.register_buffer("clip", torch.ones(len(layer.weight), device=layer.weight.device))
    return copy.train(layer.training)


def weight_scale(layer: QuantizedLayer, input_scale: Tensor | None) -> Tensor:
    """One scale an output channel, (out,): clip·max|w|/largest, and no smaller than lets the bias fit into int32.

    A channel that pruning or training left near zero would otherwise get a scale so small that b/(s_x·s_w) overflows.
    Where there is one scale for the whole tensor, it stands in all places. `input_scale` None: the bias stays float.
    """
    weight = layer.weight.detach()
    scale = layer.clip * weight.abs().amax(dim=tuple(range(1, weight.dim()))) / layer.largest
    if layer.bias is not None and input_scale is not None:
        needed = layer.bias.detach().abs() / (input_scale * (BIAS_MAX // 2))
        scale = torch.maximum(scale, needed)
    if not layer.per_channel:
        scale = scale.amax().expand_as(scale)
    return scale.clamp_min(SMALLEST_SCALE)


def rounded_weight(layer: QuantizedLayer, input_scale: Tensor | None = None) -> Tensor:
    """The weight as integer kernels see it, in float, with a straight-through gradient."""
    if layer.training and layer.learner is not None:
        learnt: Tensor = layer.learner(layer.weight, layer)
        return learnt
    return rounded_by_channel(layer.weight, weight_scale(layer, input_scale), layer.largest)


def rounded_parameters(layer: QuantizedLayer, input_scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as the integer kernels see them, in float, with a straight-through gradient."""
    weight = rounded_weight(layer, input_scale)
    if layer.bias is None or layer.training:
        return weight, layer.bias  # rounding to 32 bits does not change training, and costs time
    unit = input_scale.double() * weight_scale(layer, input_scale).double()
    return weight, (torch.round(layer.bias.double() / unit) * unit).float()


def integer_parameters(layer: QuantizedLayer, input_scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a file stores: int8 weight, float32 scale (out,), int32 bias (out,), float32 bias scale s_x·s_w (out,)."""
    scale = weight_scale(layer, input_scale)
    weight = integer_weight(layer, scale)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach()
    unit = input_scale.double() * scale.double()
    whole = torch.round(bias.double() / unit).clamp(-BIAS_MAX, BIAS_MAX)
    return weight, scale, whole.to(torch.int32), unit.float()


def integer_weight(layer: QuantizedLayer, scale: Tensor) -> Tensor:
    """The weight as integers of type int8, for `scale` (out,)."""
    shape = (-1, *(1,) * (layer.weight.dim() - 1))
    weight = torch.round(layer.weight.detach() / scale.view(shape)).clamp(-layer.largest, layer.largest)
    return weight.to(torch.int8)


def dynamically_rounded(x: Tensor) -> Tensor:
    """Round a tensor to uint8 by its own extremes, as ONNX's DynamicQuantizeLinear defines it."""
    low, high = x.detach().aminmax()
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 255).clamp_min(SMALLEST_SCALE)
    zero_point = torch.round(-low / scale).clamp(0, 255).to(torch.int32)
    return rounded(x, scale, zero_point, 0, 255)


def activation_quantizers(module: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """All activation quantizers by name, in the order in which data pass them."""
    for name, layer in module.named_modules():
        if isinstance(layer, ActivationQuantizer):
            yield name, layer


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """All layers that round their weights, by name."""
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedConv2d | QuantizedLinear):
            yield name, layer


def rounds(module: nn.Module) -> bool:
    """Whether a network has layers that compute with rounded weights."""
    return any(True for _ in quantized_layers(module))


def is_dynamic(module: nn.Module) -> bool:
    """Whether activations are rounded by the extremes of each batch."""
    return any(isinstance(layer, DynamicConv2d | DynamicLinear) for layer in module.modules())


ACTIVATION_MAX = 255
