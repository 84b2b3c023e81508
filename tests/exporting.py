"""Small nets, their int8 forms, and their files run in ONNX Runtime."""

import copy

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from compress.edits import Quantizers
from compress.edits.calibration import calibrate
from compress.export.onnx import Export, Exporter
from compress.models.mobilenet_v1 import MobileNetV1
from compress.net import Net, Spec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(net: Net, **fields) -> Net:
    """The net with ranges taken from noise; `fields` are those of the edit."""
    edit = Quantizers(**fields)
    result = Net(net.spec.edited(edit), edit(copy.deepcopy(net.module)).eval())
    if edit.ranges == "static":
        calibrate(result.module, lambda: [drawn(16, *net.spec.image, seed=1)])
    return result


def exported(net: Net, **keys) -> onnx.ModelProto:
    return Exporter(Export(**keys), MEAN, STD)(net, {})


def session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Without it CPUs that lack VNNI add pairs of products in 16 bits, which saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def run(model: onnx.ModelProto, x: np.ndarray | Tensor) -> np.ndarray:
    content = model.SerializeToString()
    running = ort.InferenceSession(content, session_options(), providers=["CPUExecutionProvider"])
    return running.run(None, {"input": np.asarray(x)})[0]


def said(net: Net, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return net.module.eval()(x).numpy()


class Tiny(nn.Module):
    """A clipped convolution, a sum of two equal branches, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.other = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.pool, self.dropout, self.head = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.branch(x) + self.other(x))
        return self.head(self.dropout(self.pool(x).flatten(1)))


SPEC = Spec(architecture=MobileNetV1(), classes=4, image=(3, 16, 16))  # its name alone is used here


def tiny(seed: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Tiny()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
                nn.init.normal_(layer.bias)
    return Net(SPEC, module.eval())


def untrained() -> Net:
    """As built from a description, with all the tensors that are equal by chance: zeros, ones, two equal branches."""
    net = tiny(0)
    for layer in net.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    net.module.other.load_state_dict(net.module.branch.state_dict())
    return net
