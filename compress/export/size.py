"""How large a net's file will be, told before it is exported."""

from torch import nn

from compress.export.scheme import rounding
from compress.export.targets import Target
from compress.net import Net

LAYER = 1500  # the nodes and names of an integer layer and of what follows it
CHANNEL, TENSOR = 9, 9  # scales of a weight and of its bias in float32, and a zero point: one a channel, or one in all
BIAS = 4


def expected_bytes(net: Net, target: Target) -> int:
    """Bytes of a net's ONNX file for a target, to about two per cent, five where ranges are dynamic.

    Equal tensors stand in a file once, so that of a net whose biases are all zero is smaller.
    """
    edit = rounding(net)
    if edit is None:
        return net.params * (2 if target.precision == "float16" else 4)
    weight = 0.5 if edit.weights == "int4" else 1.0
    size, rest = 0.0, net.params
    for path, layer in net.module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or path in edit.float_layers:
            continue
        outputs = layer.weight.shape[0]
        size += LAYER + weight * layer.weight.numel() + BIAS * outputs
        size += CHANNEL * outputs if edit.granularity == "per_channel" else TENSOR
        rest -= sum(parameter.numel() for parameter in layer.parameters(recurse=False))
    return round(size + 4 * rest)
