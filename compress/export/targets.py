"""What files are made for, and what each kind of runtime takes."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnx import ModelProto

from compress.export import rules
from compress.export.rules import Judged, Rule

OPSET_OF_INT4 = 21


@dataclass(frozen=True)
class Target:
    """A kind of runtime: what quantize may be asked for, what form the file has, and the rules it is held to.

    `weights`, `activations` and `ranges` are what it takes, the default first; without weights nothing is quantized.
    `why_not` gives reasons against other values. `align` is the number that prune makes widths multiples of, None for
    prune's own choice. `batch` is the fixed batch size, None for any. With `float_bias` the biases of integer layers
    are float32 in the file. `format` is a second file that is written beside the first.
    """

    name: str
    summary: str
    weights: tuple[str, ...] = ()
    activations: tuple[str, ...] = ("uint8",)
    ranges: tuple[str, ...] = ("static",)
    why_not: Mapping[str, str] = field(default_factory=dict)
    align: int | None = None
    batch: int | None = None
    float_bias: bool = False
    precision: Literal["float32", "float16"] = "float32"
    format: str | None = None
    rules: tuple[Rule, ...] = ()

    @property
    def quantizes(self) -> bool:
        """Whether an int8 file makes sense."""
        return bool(self.weights)


SIGNED = "ONNX Runtime has fast kernels for uint8 activations only"
INT8_RULES = (rules.unsigned_activations, rules.symmetric_weights, rules.whole_biases)
COREML = "CoreML runs no QuantizeLinear"

ONNXRUNTIME = Target(
    name="onnxruntime",
    summary="ONNX Runtime on CPUs with VNNI or dot products: uint8 activations, int8 weights.",
    weights=("int8", "int7", "int4"),
    ranges=("static", "dynamic"),
    why_not={"activations: int8": SIGNED},
    rules=INT8_RULES,
)
AVX2 = Target(
    name="onnxruntime-avx2",
    summary="ONNX Runtime on x86 CPUs without VNNI: weights of 7 bits, so that sums in 16 bits do not saturate.",
    weights=("int7", "int4"),
    ranges=("static", "dynamic"),
    why_not={
        "activations: int8": SIGNED,
        "weights: int8": "without VNNI, sums of two products of 8 bits overflow 16 bits",
    },
    rules=(*INT8_RULES, rules.weights_of_seven_bits),
)
TENSORRT = Target(
    name="tensorrt",
    summary="TensorRT: signed int8 activations and weights, no zero points, float biases.",
    weights=("int8", "int7"),
    activations=("int8",),
    why_not={
        "activations: uint8": "TensorRT takes no zero points other than 0",
        "weights: int4": "TensorRT has no convolution with weights of 4 bits",
        "ranges: dynamic": "TensorRT wants activation scales that stand in the file",
    },
    float_bias=True,
    rules=(rules.signed_activations, rules.no_zero_points, rules.symmetric_weights, rules.float_biases),
)
ARM = Target(
    name="arm",
    summary="ONNX Runtime on Arm: as onnxruntime, and prune makes channels multiples of 8.",
    weights=("int8", "int7", "int4"),
    ranges=("static", "dynamic"),
    why_not={"activations: int8": SIGNED},
    align=rules.ALIGNMENT,
    rules=(*INT8_RULES, rules.aligned_channels),
)
MOBILE = Target(
    name="mobile",
    summary="Phones and NPUs: as onnxruntime, one image at a time, and the same net as .ort beside the .onnx.",
    weights=("int8", "int7"),
    why_not={
        "activations: int8": SIGNED,
        "weights: int4": "an .ort file stores them as 8 bits",
        "ranges: dynamic": "NPUs want activation ranges that stand in the file",
    },
    batch=1,
    format=".ort",
    rules=(*INT8_RULES, rules.fixed_shapes),
)
FLOAT16 = Target(
    name="float16",
    summary="CoreML and GPUs: every file with float16 weights and arithmetic, float32 inputs and outputs.",
    why_not={"quantize": COREML},
    precision="float16",
    rules=(rules.no_rounding, rules.half_weights, rules.float_interface),
)
FLOAT = Target(
    name="float",
    summary="CoreML and anything else that takes no quantized file: float32.",
    why_not={"quantize": COREML},
    rules=(rules.no_rounding,),
)

TARGETS: dict[str, Target] = {
    target.name: target for target in (ONNXRUNTIME, AVX2, TENSORRT, ARM, MOBILE, FLOAT16, FLOAT)
}


def broken_rules(model: ModelProto, target: str, own_widths: Collection[str] | None = None) -> list[str]:
    """What of a file its target does not take, one sentence each; empty where it holds all of the target's rules.

    `own_widths` are layers whose channels may be no multiples of 8, because their widths are the architecture's and
    not pruning's; left out, those that the file's metadata name.
    """
    judged = Judged.of(model, own_widths)
    return [sentence for rule in TARGETS[target].rules for sentence in rule(judged)]


def refusals(target: Target, opset: int, asked: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Which of quantize's options (`weights`, `activations`, `ranges`) a target does not take: (option, why)."""
    for option, value in asked.items():
        taken: tuple[str, ...] = getattr(target, option)
        if value is None:
            continue
        if value not in taken:
            reason = target.why_not.get(f"{option}: {value}")
            said = f"target {target.name} takes {' or '.join(taken)}, not {value}"
            yield option, f"{said}: {reason}" if reason else said
        elif value == "int4" and opset < OPSET_OF_INT4:
            yield option, f"int4 needs opset {OPSET_OF_INT4}, not {opset}; set export.opset: {OPSET_OF_INT4}"
