"""Where along the way values are lost: signal-to-noise at every rounded value, from the float net to the file."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto
from torch import Tensor, fx

from compress.edits.graph import evaluating
from compress.edits.quantizers import ActivationQuantizer, QuantizedConv2d, QuantizedHardSigmoid, QuantizedLinear
from compress.export.reading import Reading, values
from compress.measure.file import outputs, session

LARGEST_DB = 160.0  # for values that are the same; float32 cannot tell more
ENOUGH_DB = 20.0
LOGITS = "logits"
PIXELS = 4 * 224 * 224  # of images that are compared at once, so that a large net's values fit into memory

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerNoise:
    """Signal-to-noise ratios in dB behind one quantizer, or of the logits.

    `rounding_db`: the net without any rounding against the net with it. `file_db` and `plain_db`: the net with rounding
    against the file, with ONNX Runtime's optimisations and without. None where there is nothing to compare.
    """

    quantizer: str
    rounding_db: float | None = None
    file_db: float | None = None
    plain_db: float | None = None

    @property
    def diverges(self) -> bool:
        """Whether the file loses more here than rounding itself does, and more than a hundredth of the signal's power.

        Below 20 dB more than rounding ties went another way; but where rounding alone leaves less, as with weights of 4
        bits, small differences grow as fast, and the file is held to that.
        """
        allowed = min(ENOUGH_DB, LARGEST_DB if self.rounding_db is None else self.rounding_db)
        return any(db is not None and db < allowed for db in (self.file_db, self.plain_db))


def first_divergence(noise: Sequence[LayerNoise]) -> LayerNoise | None:
    """The first place, in the order in which data pass, where the file is no longer the net; None where it always is.

    A value that only passes through such a place again, like the logits of a net that recovers, does not matter before.
    """
    return next((each for each in noise if each.diverges), None)


def decibels(signal: float, noise: float) -> float:
    """10·log10(Σ ref² / Σ (ref - x)²) from the two sums, within ±160: a number even for equal or all-zero values."""
    if noise <= 0:
        return LARGEST_DB
    if signal <= 0:
        return -LARGEST_DB
    return min(max(10 * math.log10(signal / noise), -LARGEST_DB), LARGEST_DB)


@dataclass
class Power:
    """Sums of squares of a reference and of its difference to something else, over any number of parts."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in two arrays of one shape."""
        exact = reference.astype(np.float32, copy=False).ravel()
        difference = exact - other.astype(np.float32, copy=False).ravel()
        self.signal += float(np.dot(exact, exact))
        self.noise += float(np.dot(difference, difference))

    @property
    def db(self) -> float:
        """The ratio so far."""
        return decibels(self.signal, self.noise)


@dataclass
class Comparison:
    """The sums of one comparison by the name of the value, in order of appearance."""

    powers: dict[str, Power] = field(default_factory=dict)

    def add(self, reference: Values, other: Values) -> None:
        """Take in what both hold."""
        for name, exact in reference.items():
            if name in other and other[name].size == exact.size:
                self.powers.setdefault(name, Power()).add(exact, other[name])

    def db(self, name: str) -> float | None:
        """The ratio of a value, None where it was not compared."""
        return self.powers[name].db if name in self.powers else None


class Recorder(fx.Interpreter):
    """Runs a net with quantizers and keeps what each gives; with `rounding` off, as the float net that it simulates.

    A quantizer that is called again is kept as `name_1`, as its node in the file is called. What is kept are NumPy
    arrays by name, the logits among them.
    """

    def __init__(self, module: fx.GraphModule, *, rounding: bool) -> None:
        super().__init__(module)
        self.rounding = rounding
        self.found: dict[str, np.ndarray] = {}
        self.calls: Counter[str] = Counter()

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer, without its rounding if so wanted."""
        layer = self.fetch_attr(target)
        result = super().call_module(target, args, kwargs) if self.rounding else unrounded(layer, args, kwargs)
        if isinstance(layer, ActivationQuantizer):
            count = self.calls[target]
            self.calls[target] += 1
            # A copy: a later layer may work in place.
            self.found[f"{target}_{count}" if count else target] = result.numpy().copy()
        return result

    @classmethod
    def values(cls, module: fx.GraphModule, images: Tensor, *, rounding: bool) -> dict[str, np.ndarray]:
        """Everything that is kept of one run over images (n, C, H, W)."""
        recorder = cls(module, rounding=rounding)
        with evaluating(module), torch.no_grad():
            logits = recorder.run(images)
        return recorder.found | {LOGITS: logits.numpy()}


def unrounded(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer gives without rounding anything."""
    if isinstance(layer, ActivationQuantizer):
        return args[0]
    if isinstance(layer, QuantizedConv2d):
        return layer._conv_forward(args[0], layer.weight, layer.bias)
    if isinstance(layer, QuantizedLinear):
        return F.linear(args[0], layer.weight, layer.bias)
    if isinstance(layer, QuantizedHardSigmoid):
        return F.hardsigmoid(args[0])
    return layer(*args, **kwargs)


@dataclass
class Exposed:
    """A file that also gives every rounded value: its QuantizeLinear outputs, read back into floats.

    The integers are made outputs, not the floats behind them, so that the runtime still fuses its integer kernels.
    """

    model: ModelProto
    level: str = "all"
    threads: int = 1

    def __post_init__(self) -> None:
        graph = Reading(self.model)
        self.grids: dict[str, tuple[float, float]] = {}
        whole = onnx.ModelProto()
        whole.CopyFrom(self.model)
        known = {value.name for value in self.model.graph.output}
        for node in graph.nodes:
            if node.op_type != "QuantizeLinear" or node.input[0] in graph.tensors:
                continue
            scale, point = graph.tensors.get(node.input[1]), graph.zero_point(node)
            if scale is None or values(scale).size != 1 or node.output[0] in known:
                continue
            self.grids[node.name] = float(values(scale).item()), 0.0 if point is None else float(values(point).item())
            kind = TensorProto.UINT8 if point is None else point.data_type
            whole.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
        self.running = session(whole.SerializeToString(), self.threads, level=self.level)  # type: ignore[arg-type]

    def values(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every rounded value by the name of its node, and the logits, for images as the file is fed."""
        found = outputs(self.running, images)
        rounded = found[len(found) - len(self.grids) :]
        read = {
            name: (whole.astype(np.float32) - point) * np.float32(scale)
            for (name, (scale, point)), whole in zip(self.grids.items(), rounded, strict=True)
        }
        return read | {LOGITS: found[0]}


def layer_noise(
    module: fx.GraphModule | None,
    model: ModelProto,
    images: np.ndarray,
    *,
    threads: int = 1,
    to_net: Callable[[np.ndarray], Tensor] = torch.from_numpy,
) -> tuple[LayerNoise, ...]:
    """Compare a net with rounding, the same without, and its file, value by value, in the order of the net.

    `images` (n, …) are as the file is fed, `to_net` makes them what the net takes. Without a net the file without
    optimisations stands in its place, and only `file_db` is known. Raises ExportError where the runtime refuses
    the file.
    """
    files = [Exposed(model, level, threads) for level in ("all", "none")]
    rounding, optimized, plain = Comparison(), Comparison(), Comparison()
    names: dict[str, None] = {}
    for part in _parts(images):
        fast, exact = (file.values(part) for file in files)
        if module is None:
            optimized.add(exact, fast)
            names.update(dict.fromkeys(exact))
            continue
        fed = to_net(part)
        simulated = Recorder.values(module, fed, rounding=True)
        rounding.add(Recorder.values(module, fed, rounding=False), simulated)
        optimized.add(simulated, fast)
        plain.add(simulated, exact)
        names.update(dict.fromkeys(simulated))
    return tuple(LayerNoise(name, rounding.db(name), optimized.db(name), plain.db(name)) for name in names)


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    """As many images at a time as memory is sure to hold."""
    pixels = max(int(np.prod(images.shape[1:])) // 3, 1)
    size = max(PIXELS // pixels, 1)
    for begin in range(0, len(images), size):
        yield images[begin : begin + size]
