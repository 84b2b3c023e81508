"""What a file's size is expected to be, against the file."""

import pytest
import torch
from exporting import exported, quantized
from torch import nn

from compress.export.size import expected_bytes
from compress.export.targets import TARGETS
from compress.models import MODELS
from compress.net import Net, Spec, build

FAMILIES = {"plain_cnn": {}, "mobilenet_v1": {"width": 0.5}, "resnet18": {}}


def lively(name: str, **fields) -> Net:
    """A net whose biases all differ, as training leaves them: equal ones stand in a file once."""
    net = build(Spec(architecture=MODELS[name](**fields), classes=10, image=(3, 32, 32)), seed=0)
    with torch.no_grad():
        for layer in net.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.uniform_(-1, 1)
                layer.running_mean.uniform_(-1, 1)
    net.module.eval()
    return net


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_it_is_the_files_to_two_per_cent(name: str, int8: bool) -> None:
    net = lively(name, **FAMILIES[name])
    net = quantized(net) if int8 else net
    size = len(exported(net).SerializeToString())
    assert expected_bytes(net, TARGETS["onnxruntime"]) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "export", "off"),
    [
        ({"weights": "int4"}, {"opset": 21}, 0.03),
        ({"granularity": "per_tensor"}, {}, 0.03),
        ({"float_layers": ("features.2.0", "classifier")}, {}, 0.03),
        ({"ranges": "dynamic"}, {}, 0.06),
        (None, {"target": "float16"}, 0.03),
    ],
    ids=["int4", "per_tensor", "float_layers", "dynamic", "float16"],
)
def test_whatever_the_numbers_are_written_as(fields: dict | None, export: dict, off: float) -> None:
    net = lively("plain_cnn", widths=(32, 64, 128))
    net = net if fields is None else quantized(net, **fields)
    size = len(exported(net, **export).SerializeToString())
    assert expected_bytes(net, TARGETS[export.get("target", "onnxruntime")]) == pytest.approx(size, rel=off)
