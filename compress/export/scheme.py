"""How a net's numbers are written for a target, in words and in the widths of its layers."""

from torch import nn

from compress.edits import Channels, Factorized, Quantizers
from compress.export.rules import ALIGNMENT
from compress.export.targets import TARGETS
from compress.net import Net, build

WEIGHTS = {
    "int8": "int8 weights",
    "int7": "int8 weights within ±63",
    "int4": "int4 weights (stored as INT4, computed in int8)",
}


def rounding(net: Net) -> Quantizers | None:
    """The edit that put a net's quantizers there, or None where it is float."""
    found = [edit for edit in net.spec.edits if isinstance(edit, Quantizers)]
    if found:
        return found[-1]
    return Quantizers() if net.int8 else None


def scheme(net: Net, target: str) -> str:
    """What a net's file for a target holds: types, what has a scale of its own, what stays float."""
    edit = rounding(net)
    if edit is None:
        half = TARGETS[target].precision == "float16"
        return "float16 weights and arithmetic, float32 inputs and outputs" if half else "float32"
    weights = f"{WEIGHTS[edit.weights]} {edit.granularity.replace('_', ' ')}"
    if edit.ranges == "dynamic":
        parts = [weights, "uint8 activations per tensor, ranges taken from each batch", "float32 biases"]
    else:
        bias = "float32 biases" if TARGETS[target].float_bias else "int32 biases"
        parts = [weights, f"{edit.activations} activations per tensor", bias]
    if edit.float_layers:
        parts.append(f"float32: {' '.join(edit.float_layers)}")
    return ", ".join(parts)


def own_widths(net: Net) -> list[str]:
    """The layers whose number of output channels is no multiple of 8 and is the architecture's own, not pruning's."""
    odd = {name: width for name, width in widths(net.module).items() if width % ALIGNMENT}
    if not any(isinstance(edit, Channels | Factorized) for edit in net.spec.edits):
        return sorted(odd)
    whole = widths(build(net.spec.model_copy(update={"edits": ()})).module)
    for edit in net.spec.edits:
        for path in edit.ranks if isinstance(edit, Factorized) else ():
            # Of the two layers in its place the second has the outputs, and the first a rank that was chosen.
            whole |= {f"{path}.0": 0, f"{path}.1": whole.get(path, 0)}
    return sorted(name for name, width in odd.items() if whole.get(name, width) == width)


def widths(module: nn.Module) -> dict[str, int]:
    """Output channels of every convolution and linear layer, by name."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            found[name] = layer.out_channels
        elif isinstance(layer, nn.Linear):
            found[name] = layer.out_features
    return found
