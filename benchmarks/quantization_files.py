"""The ONNX files that the benchmark times: float, ours in int8, and those of ONNX Runtime's own quantizer."""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from compress.edits import Quantizers
from compress.edits.calibration import calibrate
from compress.export.onnx import Export, Exporter
from compress.models import MODELS
from compress.net import Net, Spec, build

NETS = (
    "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet50", "vgg16_bn",
    "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf", "densenet121",
)  # fmt: skip
CALIBRATION = 16  # images; ranges decide no operator's speed
FLOAT_CONVS = ("Conv", "FusedConv", "NhwcFusedConv")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def files_of(name: str, size: int, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """A net's files, `float`, `int8`, `defaults` and `best`, and why one of the peers' is missing.

    The peers start from what torch.onnx.export gives, as their users do. `defaults` is quantize_static as it comes,
    `best` what its documentation advises for CPUs: quant_pre_process, QDQ, uint8 activations, int8 weights per channel.
    Weights are random and batch-norms in order, see `in_order`.
    """
    net = in_order(untrained(name, size))
    images = pictures(CALIBRATION, size, seed=1)
    exporter = Exporter(Export(), MEAN, STD)
    files = {kind: folder / f"{name}.{kind}.onnx" for kind in ("float", "int8", "defaults", "best")}
    store(exporter(net, {}), files["float"])
    store(exporter(rounding(net, images), {}), files["int8"])
    plain = folder / f"{name}.plain.onnx"
    store(exported(net), plain)
    missing = {}
    for kind, make in (("defaults", by_default), ("best", at_its_best)):
        try:
            make(plain, files[kind], images)
        except Exception as error:  # noqa: BLE001 - the line says why
            missing[kind] = f"quantize_static fails: {str(error).strip().splitlines()[0][:120]}"
            del files[kind]
    plain.unlink()
    return files, missing


def exported(net: Net) -> onnx.ModelProto:
    """A net as PyTorch's exporter writes it, any batch size."""
    shapes = ({0: torch.export.Dim("batch")},)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net.module, (net.example(),), dynamo=True, verbose=False, input_names=["input"], dynamic_shapes=shapes
        )
    assert program is not None
    return program.model_proto


def untrained(name: str, size: int, classes: int = 1000) -> Net:
    """A net with random weights, its stem as published."""
    fields: dict[str, Any] = {} if name == "mobilenet_v1" else {"stem": "imagenet"}
    if name.startswith("resnet"):
        fields["zero_init_residual"] = False  # branches of zeros would be no fair picture of ranges
    architecture = MODELS[name].model_validate(fields)  # type: ignore[attr-defined]
    return build(Spec(architecture=architecture, classes=classes, image=(3, size, size)), seed=0)


def in_order(net: Net) -> Net:
    """The net with batch-norm statistics of images, so that activations have ranges as in a trained net."""
    norms = [layer for layer in net.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    with torch.no_grad():
        net.module.train()
        for batch in pictures(CALIBRATION, net.spec.image[1], seed=0).split(8):
            net.module(batch)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    net.module.eval()
    return net


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Made-up images as a net is fed them, (count, 3, size, size): smooth patches under a little noise."""
    draw = torch.Generator().manual_seed(seed)
    patches = torch.randn(count, 3, 7, 7, generator=draw)
    smooth = nn.functional.interpolate(patches, size=(size, size), mode="bilinear")
    return smooth + 0.2 * torch.randn(count, 3, size, size, generator=draw)


def rounding(net: Net, images: Tensor) -> Net:
    """The net in int8, ranges taken from images."""
    edit = Quantizers()
    quantized = Net(net.spec.edited(edit), edit(copy.deepcopy(net.module)).eval())
    calibrate(quantized.module, lambda: images.split(8))
    return quantized


def store(model: onnx.ModelProto, path: Path) -> None:
    """Write a file as a run does."""
    path.write_bytes(model.SerializeToString(deterministic=True))


class Reader(CalibrationDataReader):
    """Feeds images to ONNX Runtime's quantizer one by one."""

    def __init__(self, images: Tensor, name: str) -> None:
        self.feeds: Iterator[Mapping[str, np.ndarray]] = iter([{name: image[None].numpy()} for image in images])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next image, or None behind the last."""
        return next(self.feeds, None)


def by_default(source: Path, target: Path, images: Tensor) -> None:
    """quantize_static with nothing set."""
    quietly(lambda: quantize_static(str(source), str(target), Reader(images, "input")))


def at_its_best(source: Path, target: Path, images: Tensor) -> None:
    """quantize_static behind quant_pre_process, with uint8 activations and a scale for each channel of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quietly(lambda: quant_pre_process(str(source), str(ready)))
        quietly(lambda: quantize_static(str(ready), str(target), Reader(images, "input"), **options))


def quietly(work: Callable[[], object]) -> None:
    """Do it without the advice that the quantizer logs."""
    logging.disable(logging.WARNING)
    try:
        work()
    finally:
        logging.disable(logging.NOTSET)


def float_convs(path: Path) -> int:
    """How many convolutions of a file are float once ONNX Runtime has optimised it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return sum(counts[kind] for kind in FLOAT_CONVS)
