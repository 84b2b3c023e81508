"""What is lost on CPUs that add pairs of products in 16 bits.

Without VNNI, x64 kernels multiply unsigned activations with signed weights and add neighbouring products with one
instruction (vpmaddubsw), which saturates at 32767: 255·127 + 255·127 does not fit. Weights of 7 bits always fit
(ONNX Runtime, "Quantize ONNX models", on U8S8 and saturation).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto
from torch import Tensor, fx

from compress.edits.graph import called, evaluating
from compress.edits.quantizers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, integer_parameters
from compress.export.reading import Layer, Reading, values
from compress.measure.coverage import signed

LARGEST_INPUT = 255
LARGEST_SUM, SMALLEST_SUM = 32767, -32768
CHUNK = 1 << 24  # products of pairs that are held at once
WORTH = 500_000_000  # sums to look at in one simulation: some ten seconds


@dataclass(frozen=True)
class Risk:
    """How many neighbouring pairs of a layer's weights can leave 16 bits, of how many."""

    layer: str
    pairs: int
    of: int

    @property
    def share(self) -> float:
        """In per cent."""
        return 100 * self.pairs / self.of if self.of else 0.0


@dataclass(frozen=True)
class Saturation:
    """Which layers of a file can saturate, worst first, in pairs of weights over the whole file."""

    risks: tuple[Risk, ...] = ()
    pairs: int = 0

    @property
    def share(self) -> float:
        """Pairs at risk in all layers that are summed in pairs, in per cent."""
        return 100 * sum(risk.pairs for risk in self.risks) / self.pairs if self.pairs else 0.0


def saturation_risk(model: ModelProto) -> Saturation:
    """Read the risk off a file's integer weights; depthwise layers, whose kernels add in 32 bits, have none.

    Layers behind signed activations are not counted: other kernels run them.
    """
    reading, found, total = Reading(model), [], 0
    for layer in reading.layers():
        if layer.weight.data_type not in (TensorProto.INT8, TensorProto.INT4) or signed(layer.node, reading):
            continue
        rows = packed(layer)
        if rows is None:
            continue
        at_risk = risky_pairs(rows)
        total += at_risk.size
        if at_risk.any():
            found.append(Risk(layer.name, int(at_risk.sum()), at_risk.size))
    return Saturation(tuple(sorted(found, key=lambda risk: -risk.share)), total)


def risky_pairs(rows: np.ndarray) -> np.ndarray:
    """Which neighbouring pairs can leave 16 bits: (outputs, k) integers to (outputs, k/2) booleans.

    The largest sum is that of the positive weights at inputs of 255, the smallest that of the negative ones.
    """
    even = np.pad(rows, [(0, 0), (0, rows.shape[1] % 2)]).astype(np.int64)
    pairs = even.reshape(len(rows), -1, 2)
    highest = LARGEST_INPUT * np.maximum(pairs, 0).sum(axis=2)
    lowest = LARGEST_INPUT * np.minimum(pairs, 0).sum(axis=2)
    result: np.ndarray = (highest > LARGEST_SUM) | (lowest < SMALLEST_SUM)
    return result


def packed(layer: Layer) -> np.ndarray | None:
    """A layer's weights as kernels pack them, (outputs, k); None for a depthwise convolution.

    k runs over height, width, input channels, the last fastest.
    """
    whole = values(layer.weight)
    if layer.node.op_type in ("Conv", "ConvInteger"):
        return None if whole.shape[1] == 1 else np.moveaxis(whole, 1, -1).reshape(len(whole), -1)
    if whole.ndim != 2:
        return None
    transposed = any(each.name == "transB" and each.i for each in layer.node.attribute)
    return whole if transposed else whole.T


class Saturating(fx.Interpreter):
    """Runs a net with quantizers as a CPU without VNNI does: sums of two neighbouring products stay within 16 bits.

    What a kernel loses is taken off the exact result of a layer, and later layers see it. `cut` counts the sums that
    were cut, by layer. Raises TooMuch where there are more sums to look at than `WORTH`.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.cut: dict[str, int] = {}
        self.sums = 0
        self.points = dict(_input_points(module))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer and take off what saturation costs it."""
        exact = super().call_module(target, args, kwargs)
        if target not in self.points:
            return exact
        layer, (x, scale), point = self.fetch_attr(target), args, self.points[target]
        loss, count, sums = lost(layer, torch.round(x / scale) + point, scale, point)
        self.sums += sums
        if self.sums > WORTH:
            raise TooMuch
        if not count:
            return exact
        self.cut[target] = self.cut.get(target, 0) + count
        if isinstance(layer, QuantizedLinear):  # whose outputs come last, behind any positions
            loss = loss.transpose(1, 2)
        return exact + loss.reshape(exact.shape)


class TooMuch(Exception):
    """A simulation would take minutes."""


def saturated_logits(module: fx.GraphModule, images: Tensor) -> tuple[np.ndarray, dict[str, int]] | None:
    """The logits (n, classes) of a net with quantizers on a CPU without VNNI, and the sums that were cut, by layer.

    None where that takes minutes.
    """
    runner = Saturating(module)
    with evaluating(module), torch.no_grad():
        try:
            logits = runner.run(images)
        except TooMuch:
            return None
    return logits.numpy(), runner.cut


def _input_points(module: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    """The zero point of each layer's input, by layer, where it is unsigned; depthwise layers are left out."""
    for node in module.graph.nodes:
        layer = called(module, node)
        if not isinstance(layer, QuantizedConv2d | QuantizedLinear) or len(node.all_input_nodes) < 2:
            continue
        quantizer = module.get_submodule(str(node.all_input_nodes[1].target).rpartition(".")[0])
        depthwise = isinstance(layer, QuantizedConv2d) and layer.weight.shape[1] == 1
        if not depthwise and not getattr(quantizer, "symmetric", False):
            yield str(node.target), quantizer.get_buffer("zero_point")


def lost(layer: QuantizedLayer, inputs: Tensor, scale: Tensor, point: Tensor) -> tuple[Tensor, int, int]:
    """What saturation adds to a layer's output, (n, outputs, positions), how many sums it cuts, and of how many.

    `inputs` are integers in floats, (n, C, H, W) or (n, features), rounded with `scale` and zero point `point`. Only
    pairs of weights that can leave 16 bits are looked at: the others' sums are exact.
    """
    weight, weight_scale, _, _ = integer_parameters(layer, scale)
    rows = weight.movedim(1, -1).flatten(1)
    columns = _columns(layer, inputs, float(point))
    odd = rows.shape[1] % 2
    rows, columns = F.pad(rows, (0, odd)).float(), F.pad(columns, (0, 0, 0, odd))
    outs, pairs = (torch.from_numpy(each) for each in np.nonzero(risky_pairs(rows.numpy())))
    n, groups, _, positions = columns.shape
    total, count = torch.zeros(n, len(rows), positions), 0
    if len(outs) * n * positions > WORTH:
        return total, 0, len(outs) * n * positions
    step = max(CHUNK // max(n * positions, 1), 1)
    for begin in range(0, len(outs), step):
        out, k = outs[begin : begin + step], 2 * pairs[begin : begin + step]
        group = torch.div(out, len(rows) // groups, rounding_mode="floor")
        sums = columns[:, group, k] * rows[out, k].view(1, -1, 1)
        sums += columns[:, group, k + 1] * rows[out, k + 1].view(1, -1, 1)
        change = sums.clamp(SMALLEST_SUM, LARGEST_SUM) - sums
        count += int(change.count_nonzero())
        total.index_add_(1, out, change)
    return total * (scale * weight_scale).view(1, -1, 1), count, len(outs) * n * positions


def _columns(layer: QuantizedLayer, inputs: Tensor, point: float) -> Tensor:
    """What each output multiplies with its weights, (n, groups, k, positions), k in the kernels' order."""
    if isinstance(layer, QuantizedLinear):
        return inputs.reshape(len(inputs), 1, -1, inputs.shape[-1]).transpose(2, 3)
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, value=point)  # kernels pad with the zero point
    found = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    cells = layer.kernel_size[0] * layer.kernel_size[1]
    return found.view(len(inputs), layer.groups, -1, cells, found.shape[-1]).transpose(2, 3).flatten(2, 3)
