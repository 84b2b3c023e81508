"""Which kernels ONNX Runtime really runs for a file: its optimiser's result, node by node, and why one stays float."""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto

from compress.errors import ExportError
from compress.export.reading import LAYERS, Reading
from compress.measure.file import session

FLOAT_CONVS = ("Conv", "FusedConv", "NhwcFusedConv")
FLOAT_WEIGHTS = "its weights are float"
OWN_ROUNDING = "its weights are float, and this ONNX Runtime rounds them by itself, on one scale"
INT8_CONVS = ("QLinearConv", "ConvInteger")
ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
DYNAMIC = ("ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
INTEGER_LAYERS = (*INT8_CONVS, "QLinearMatMul", "QGemm", *DYNAMIC)
CLIPS = ("Relu", "Clip")
MOVES = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity", "Cast", "Shape",
    "Constant", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Pad", "Dropout",
)  # fmt: skip
# What has an int8 kernel where its inputs and its output are rounded.
ROUNDABLE = (
    "Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Concat", "MaxPool", "Softmax", "Where",
    "Resize", "Conv", "MatMul", "Gemm",
)  # fmt: skip
# These come apart into nodes without names when the runtime optimises them.
COMPOSED = ("HardSwish", "Mish", "Gelu")


@dataclass(frozen=True)
class Kernel:
    """What a node of a file becomes: its name and operator, the operator that runs, and why that is not an int8 one."""

    name: str
    operator: str
    runs_as: str
    int8: bool
    reason: str = ""
    is_layer: bool = False


@dataclass(frozen=True)
class Coverage:
    """What ONNX Runtime's optimiser made of a graph: how many operators of each kind, and the kernel of each node.

    `kernels` has the convolutions and matrix products, and whatever else computes between them.
    """

    operators: dict[str, int]
    kernels: tuple[Kernel, ...] = ()

    def count(self, *kinds: str) -> int:
        """How many operators there are of these kinds."""
        return sum(self.operators.get(kind, 0) for kind in kinds)

    @property
    def float_convs(self) -> int:
        """Convolutions that stay float."""
        return self.count(*FLOAT_CONVS)

    @property
    def int8_convs(self) -> int:
        """Convolutions with an integer kernel."""
        return self.count(*INT8_CONVS)

    @property
    def conversions(self) -> tuple[int, int]:
        """(QuantizeLinear, DequantizeLinear) left: at most (2, 2) where the whole path is int8."""
        return self.count("QuantizeLinear"), self.count("DequantizeLinear")

    @property
    def layers(self) -> tuple[Kernel, ...]:
        """The convolutions and matrix products."""
        return tuple(kernel for kernel in self.kernels if kernel.is_layer)

    @property
    def rounds(self) -> bool:
        """Whether any layer has an integer kernel."""
        return any(kernel.int8 for kernel in self.layers)

    @property
    def dynamic(self) -> bool:
        """Whether layers take the range of their input from the input."""
        return bool(self.count("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "ConvInteger", "MatMulInteger"))

    @property
    def float_layers(self) -> tuple[Kernel, ...]:
        """Convolutions and matrix products without an integer kernel."""
        return tuple(kernel for kernel in self.layers if not kernel.int8)

    @property
    def islands(self) -> tuple[Kernel, ...]:
        """Other operations that compute in float behind rounded values; with dynamic ranges that is all of them."""
        return () if self.dynamic else tuple(k for k in self.kernels if not k.is_layer and not k.int8)


def coverage(model: ModelProto) -> Coverage:
    """Let ONNX Runtime optimise a graph and read what is left; raises ExportError where it refuses the graph."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    for i, node in enumerate(marked.graph.node):
        node.name = f"node{i:07d}"  # by which the runtime's nodes are told, whatever names a file has
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(marked.SerializeToString(), optimized=optimized, level="extended")
        found = onnx.load(optimized).graph
    reading = Reading(model)
    return Coverage(dict(Counter(node.op_type for node in found.node)), tuple(_kernels(reading, _survivors(found))))


def require_int8(found: Coverage, left_float: Mapping[str, str]) -> tuple[str, ...]:
    """See that each layer of an int8 file has an integer kernel; returns what a user should know of the rest.

    `left_float` are layers and operations that stay float, with the reason. Raises ExportError where another layer
    stays float or a Clip is left between int8 layers: such a file is slower than the float one, and nobody said so.
    """
    # Float weights in a file are float in the net as well: nobody rounded them, and nobody gave the reason.
    unnamed = [kernel for kernel in found.float_layers if not _named_in(left_float, kernel.name)]
    lost = [kernel for kernel in unnamed if kernel.reason != FLOAT_WEIGHTS]
    left_float = {**left_float, **{kernel.name: kernel.reason for kernel in unnamed}}
    left_float |= {k.name: OWN_ROUNDING for k in found.layers if k.int8 and k.reason == FLOAT_WEIGHTS}
    if lost:
        raise ExportError(
            f"{len(lost)} of {len(found.layers)} layers stay float in ONNX Runtime {ort.__version__}: {named(lost)}; "
            "quantize cannot make this architecture int8 yet; float_layers names layers that may stay float"
        )
    clips = [kernel for kernel in found.islands if kernel.operator == "Clip"]
    if clips and not left_float:
        raise ExportError(
            f"{len(clips)} Clip operators are left between int8 layers: {named(clips)}; a range is wider than its ReLU6"
        )
    warnings = []
    if left_float:
        warnings.append(f"left in float: {listed(left_float)}")
    quantize, dequantize = found.conversions
    if found.islands and (quantize > 2 or dequantize > 2):
        kinds = Counter(kernel.operator for kernel in found.islands)
        counted = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        warnings.append(
            f"the int8 file goes back to float {dequantize} times on the way ({counted} without an int8 kernel: "
            f"{named(found.islands)}), which costs time: see its latency before you ship it"
        )
    if found.dynamic:
        warnings.append(
            f"{found.count(*DYNAMIC)} layers take the range of their input from the input (dynamic ranges), and all "
            "between them is float: slow for convolutions"
        )
    return tuple(warnings)


def _named_in(left_float: Mapping[str, str], name: str) -> bool:
    """Whether a layer, or a module that it is part of, is known to stay float."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in left_float for count in range(1, len(parts) + 1))


def named(kernels: tuple[Kernel, ...] | list[Kernel], most: int = 3) -> str:
    """Nodes with their reasons, the first few of them."""
    return listed({kernel.name: kernel.reason for kernel in kernels}, most)


def listed(reasons: Mapping[str, str], most: int = 3) -> str:
    """Names with their reasons, the first few of them."""
    shown = "; ".join(f"{name} ({reason})" for name, reason in [*reasons.items()][:most])
    return shown + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")


@dataclass(frozen=True)
class _Survivors:
    """The optimised graph: which operator each node became, and which values are integers there."""

    runs_as: dict[int, str]
    on_integers: set[int]


def _survivors(graph: onnx.GraphProto) -> _Survivors:
    runs_as, on_integers, integers = {}, set(), set()
    for node in graph.node:
        whole = node.op_type.startswith("QLinear") or node.op_type in (*ROUNDING[::2], *INTEGER_LAYERS)
        taken = any(name in integers for name in node.input)
        # A QGemm without a scale for its output gives floats, and so do the layers with dynamic ranges.
        gives_float = node.op_type in (*DYNAMIC, "DequantizeLinear") or (
            node.op_type == "QGemm" and len(node.input) < 9
        )
        if (whole or taken) and not gives_float:
            integers.update(node.output)
        mark = re.search(r"node(\d{7})", node.name)
        if mark:
            runs_as[int(mark[1])] = node.op_type
            if whole or (taken and node.op_type != "DequantizeLinear"):
                on_integers.add(int(mark[1]))
    return _Survivors(runs_as, on_integers)


def _kernels(reading: Reading, survivors: _Survivors) -> list[Kernel]:
    """The kernel of every layer, and of what computes behind rounded values, in graph order."""
    behind: set[str] = set()  # values that were computed from rounded ones
    found = []
    for i, node in enumerate(reading.nodes):
        rounded = node.op_type in ROUNDING and node.input[0] not in reading.tensors
        if rounded or behind.intersection(node.input):
            behind.update(node.output)
        runs_as = survivors.runs_as.get(i, "")
        is_layer = node.op_type in LAYERS and reading.stored(node.input[1]) is not None
        if is_layer:
            int8 = runs_as in INTEGER_LAYERS
            why = why_float(node, reading)
            why = "" if int8 and why != FLOAT_WEIGHTS else why
        elif node.op_type in (*ROUNDING, *MOVES) or not behind.intersection(node.input):
            continue
        elif not runs_as and node.op_type not in COMPOSED:
            continue  # it went into another node, or was computed once and for all
        else:
            int8 = i in survivors.on_integers
            why = "" if int8 else _why_island(node, reading)
        found.append(Kernel(node.name or node.output[0], node.op_type, runs_as or node.op_type, int8, why, is_layer))
    return found


def source(node: NodeProto, reading: Reading) -> NodeProto | None:
    """What computes a node's first input, before anything that only moves values; None for the file's input."""
    before = reading.producers.get(node.input[0])
    while before is not None and before.op_type in MOVES and before.input:
        before = reading.producers.get(before.input[0])
    return before


def signed(node: NodeProto, reading: Reading) -> bool:
    """Whether a node's first input was rounded to signed integers."""
    before = source(node, reading)
    point = reading.zero_point(before) if before is not None and before.op_type == "DequantizeLinear" else None
    return point is not None and point.data_type == TensorProto.INT8


def why_float(node: NodeProto, reading: Reading) -> str:
    """The reason that a convolution or matrix product has no integer kernel in ONNX Runtime."""
    weight = reading.stored(node.input[1])
    before = source(node, reading)
    carrier = reading.producers.get(node.input[1])
    if weight is None or weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        return FLOAT_WEIGHTS
    if weight.data_type in (TensorProto.INT4, TensorProto.UINT4) and _reads(carrier, weight.name):
        return "weights of 4 bits without a Cast to int8 are storage only"
    if before is None or before.op_type != "DequantizeLinear":
        return f"its input is not rounded: it comes from {_title(before)}"
    return _why_output(node, reading) or _why_types(node, reading) or "ONNX Runtime has no int8 kernel for it here"


def _reads(node: NodeProto | None, tensor: str) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and node.input[0] == tensor


def _why_output(node: NodeProto, reading: Reading) -> str:
    """What stands between a node and the rounding of its output."""
    value, clip = node.output[0], None
    while True:
        users = [each for each in reading.nodes if value in each.input]
        if not users:
            return "" if clip is None and node.op_type == "Gemm" else "its output is not rounded"
        others = [user for user in users if user.op_type != "QuantizeLinear"]
        if not others:
            return "" if clip is None else f"the range behind {_title(clip)} is wider than that clip"
        if len(users) > 1 or others[0].op_type not in CLIPS or clip is not None:
            return f"its output is not rounded: it goes to {_title(others[0])}"
        clip, value = others[0], others[0].output[0]


def _why_types(node: NodeProto, reading: Reading) -> str:
    if signed(node, reading):
        return "its activations are signed, and the fast kernels are for uint8"
    if len(node.input) > 2 and (bias := reading.stored(node.input[2])) is not None:
        return "its bias is float" if bias.data_type == TensorProto.FLOAT else ""
    return ""


def _why_island(node: NodeProto, reading: Reading) -> str:
    if node.op_type not in (*ROUNDABLE, *CLIPS):
        return f"there is no int8 kernel for {node.op_type}"
    for value in node.input:
        before = reading.producers.get(value)
        if before is not None and before.op_type != "DequantizeLinear":
            return f"its input is not rounded: it comes from {_title(before)}"
    if node.op_type in CLIPS:
        return "it stands alone, or its range is wider than the clip"
    return _why_output(node, reading) or _why_types(node, reading) or "ONNX Runtime has no int8 kernel for it here"


def _title(node: NodeProto | None) -> str:
    return "the input" if node is None else f"{node.op_type} {node.name}".strip()
