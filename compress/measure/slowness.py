"""Why an int8 file is no faster than the float net that it came from."""

from collections.abc import Collection
from pathlib import Path

import onnx
from onnx import ModelProto

from compress.environment import has_vnni
from compress.errors import ExportError
from compress.export.reading import Reading
from compress.measure.coverage import Coverage, coverage
from compress.measure.file import count_macs

WIDTH = 16  # channels that a kernel computes at once
# Measured in ONNX Runtime 1.31 with AVX512-VNNI: 0.9 times float's speed at 45,000 for a layer, 1.2 times at 120,000.
FEW_MACS = 100_000
SHOWN = 5


def slowness(file: Path, flags: Collection[str]) -> list[str]:
    """The likely causes that an int8 file is slow on a CPU with these flags, the weightiest first."""
    model = onnx.load(file)
    try:
        macs: int | None = count_macs(model)
    except ExportError:
        macs = None
    return causes(coverage(model), widths(model), macs, flags)


def causes(found: Coverage, widths: dict[str, int], macs: int | None, flags: Collection[str]) -> list[str]:
    """The likely causes, each a phrase: no VNNI, float islands, dynamic ranges, odd widths, too little work.

    `widths` are the output channels of every layer, `macs` the multiply-accumulates for one image, `flags` those of the
    CPU, none where they are not known.
    """
    reasons = []
    if flags and not has_vnni([*flags]):
        reasons.append("this CPU has no VNNI or dot-product instructions")
    islands = [kernel.name for kernel in (*found.float_layers, *found.islands)]
    if islands:
        more = f" and {len(islands) - SHOWN} more" if len(islands) > SHOWN else ""
        reasons.append(f"{len(islands)} float islands: {', '.join(islands[:SHOWN])}{more}")
    if found.dynamic:
        reasons.append("dynamic ranges: each layer looks for the extremes of its input first, and gives floats")
    odd = [name for name, width in widths.items() if width % WIDTH]
    # The classes are as many as they are; one odd layer is no cause.
    if len(odd) > max(1, len(widths) // 10):
        share = 100 * len(odd) / len(widths)
        reasons.append(f"{share:.0f} % of the layers have channels that are no multiple of {WIDTH}, such as {odd[0]}")
    if macs is not None and found.layers and macs < FEW_MACS * len(found.layers):
        reasons.append(
            f"too small: {macs / len(found.layers):,.0f} multiply-accumulates a layer, so that what an operator costs "
            "in any case outweighs them"
        )
    return reasons


def widths(model: ModelProto) -> dict[str, int]:
    """The output channels of every convolution and matrix product, by name."""
    found = {}
    for layer in Reading(model).layers():
        transposed = any(each.name == "transB" and each.i for each in layer.node.attribute)
        first = layer.node.op_type in ("Conv", "ConvInteger") or transposed
        found[layer.name] = layer.weight.dims[0 if first else -1]
    return found
