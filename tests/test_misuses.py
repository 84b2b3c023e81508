"""One sentence for each misuse of the functions, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_api import CLASSES, SIZE, Own, images, lessons, made
from torch import Tensor, nn

import compress
from compress.errors import ConfigError, DataError, ModelError, TrainingError


class Branching(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def nan_batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((4, 3, SIZE, SIZE), float("nan")), torch.zeros(4, dtype=torch.int64))]


LABELS = torch.zeros(32, dtype=torch.int64)
MISUSES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "prune a word": (
        lambda: compress.prune("net", images()),
        ConfigError,
        "prune: module should be a torch.nn.Module, not 'net'",
    ),
    "prune by a list": (
        lambda: compress.prune(Own(), [1]),
        ConfigError,
        "prune: example should be a float32 tensor (n, C, H, W), not [1]",
    ),
    "whole numbers": (
        lambda: compress.prune(Own(), images().byte()),
        ConfigError,
        "not uint8 (32, 3, 16, 16); inputs are float32",
    ),
    "one image": (
        lambda: compress.prune(Own(), images()[0]),
        ConfigError,
        "not float32 (3, 16, 16)",
    ),
    "grey": (
        lambda: compress.prune(Own(), images()[:, :1]),
        ModelError,
        "prune: Own cannot take inputs of shape (32, 1, 16, 16): ",
    ),
    "no logits": (
        lambda: compress.prune(Maps(), images()),
        ModelError,
        "prune: Maps gives (2, 3, 16, 16) where (images, classes) logits",
    ),
    "both shares": (
        lambda: compress.prune(Own(), images(), keep_macs=0.5, keep_params=0.5),
        ConfigError,
        "Give one of keep_macs and keep_params",
    ),
    "a share of 2": (
        lambda: compress.prune(Own(), images(), keep_macs=2.0),
        ConfigError,
        "keep_macs is a fraction of the MACs",
    ),
    "importance": (
        lambda: compress.prune(Own(), images(), importance="l3"),
        ConfigError,
        "importance: no 'l3' here. Known: bn_scale, fpgm,",
    ),
    "taylor alone": (
        lambda: compress.prune(Own(), images(), importance="taylor"),
        ConfigError,
        "'taylor' needs gradients, and there are no images",
    ),
    "bad labels": (
        lambda: compress.prune(Own(), images(), importance="taylor", batches=[(images(), LABELS[:3])]),
        DataError,
        "prune: labels should be whole numbers (32,), one an image, not int64 (3,)",
    ),
    "quantize twice": (
        lambda: compress.quantize(compress.quantize(made(Own), images()), images()),
        ConfigError,
        "quantize: this module is quantized already",
    ),
    "prune what rounds": (
        lambda: compress.prune(compress.quantize(made(Own), images()), images()),
        ConfigError,
        "prune: this module is quantized, and rounding is fixed to its layers; prune first",
    ),
    "an iterator": (
        lambda: compress.quantize(Own(), iter([images()])),
        ConfigError,
        "quantize: batches are gone through more than once",
    ),
    "no batches": (
        lambda: compress.quantize(Own(), []),
        DataError,
        "quantize: there are no images to take activation ranges from",
    ),
    "words": (
        lambda: compress.quantize(Own(), ["x"]),
        ConfigError,
        "quantize: each batch should be a float32 tensor (n, C, H, W), not 'x'",
    ),
    "nan": (
        lambda: compress.quantize(Own(), nan_batches()),
        DataError,
        "a calibration image holds NaN",
    ),
    "int5": (
        lambda: compress.quantize(Own(), images(), weights="int5"),
        ConfigError,
        "quantize: weights: should be 'int8', 'int7' or 'int4', not 'int5'",
    ),
    "target": (
        lambda: compress.quantize(Own(), images(), target="tensort"),
        ConfigError,
        "quantize: no target 'tensort'. Did you mean 'tensorrt'?",
    ),
    "not for it": (
        lambda: compress.quantize(Own(), images(), target="tensorrt", weights="int4"),
        ConfigError,
        "quantize: weights: target tensorrt takes int8 or int7, not int4",
    ),
    "float target": (
        lambda: compress.quantize(Own(), images(), target="float"),
        ConfigError,
        "quantize: target float takes no int8 file",
    ),
    "float layers": (
        lambda: compress.quantize(Own(), images(), float_layers=["stm.*"]),
        ConfigError,
        "float_layers: no layer is called 'stm.*'",
    ),
    "branches": (
        lambda: compress.quantize(Branching(), images()),
        ModelError,
        "Branching cannot be traced by torch.fx",
    ),
    "no teacher": (
        lambda: compress.distill(Own(), None, lessons()),
        ConfigError,
        "distill: teacher should be a torch.nn.Module or a list of them, not None",
    ),
    "a frozen student": (
        lambda: compress.distill(Own().requires_grad_(False), Own(), lessons()),
        ConfigError,
        "distill: Own has no parameter that wants a gradient",
    ),
    "losses by a word": (
        lambda: compress.distill(Own(), Own(), lessons(), losses="kd"),
        ConfigError,
        "distill: losses should be a list",
    ),
    "an unknown loss": (
        lambda: compress.distill(Own(), Own(), lessons(), losses=["kdd"]),
        ConfigError,
        "no 'kdd' here. Did you mean 'kd'?",
    ),
    "crd": (
        lambda: compress.distill(Own(), Own(), lessons(), losses=["crd"]),
        ConfigError,
        "distill: crd knows images by their place in the data",
    ),
    "a layer that is not there": (
        lambda: compress.distill(Own(), Own(), lessons(), losses=[{"hint": {"layers": "stm"}}]),
        ConfigError,
        "losses.hint.layers: student: ",
    ),
    "epochs": (
        lambda: compress.distill(Own(), Own(), lessons(), epochs=-1),
        ConfigError,
        "distill: epochs: should be greater than or equal to 0, not -1",
    ),
    "other classes": (
        lambda: compress.distill(Own(), nn.Sequential(Own(), nn.Linear(CLASSES, 7)), lessons()),
        ConfigError,
        "it knows 7 classes and the student 4",
    ),
    "labels of other classes": (
        lambda: compress.distill(Own(), Own(), [(images(), LABELS + 9)]),
        DataError,
        "distill: labels run from 0 to 3, and there are [9]",
    ),
    "no pairs": (
        lambda: compress.distill(Own(), Own(), [images()]),
        ConfigError,
        "distill: each batch should be a pair (inputs, labels), not ",
    ),
    "no lessons": (
        lambda: compress.distill(Own(), Own(), []),
        DataError,
        "distill: there are no batches to learn from",
    ),
    "lessons of nan": (
        lambda: compress.distill(Own(), Own(), nan_batches()),
        TrainingError,
        "distill: the loss is no longer finite in epoch 1",
    ),
    "its own teacher": (
        lambda: (lambda net: compress.distill(net, net, lessons()))(Own()),
        ConfigError,
        "distill: student and teacher are one module",
    ),
    "no onnx": (
        lambda: compress.export(Own(), images(), "net.pt"),
        ConfigError,
        "export: the file's name should end in .onnx, not be 'net.pt'",
    ),
    "opset": (
        lambda: compress.export(Own(), images(), "net.onnx", opset=9),
        ConfigError,
        "export: opset: should be greater than or equal to 18, not 9",
    ),
    "names": (
        lambda: compress.export(Own(), images(), "net.onnx", class_names=["a"]),
        ConfigError,
        "export: class_names has 1 values where 4 are needed",
    ),
    "std of nothing": (
        lambda: compress.export(Own(), images(), "net.onnx", std=[1, 0, 1]),
        ConfigError,
        "export: std should hold numbers above 0, not [1, 0, 1]",
    ),
    "export branches": (
        lambda: compress.export(Branching(), images(), "net.onnx"),
        ModelError,
        "Branching cannot be traced by torch.fx",
    ),
    "run no file": (
        lambda: compress.run("nowhere.yaml"),
        ConfigError,
        "no pipeline file nowhere.yaml",
    ),
    "run nothing": (
        lambda: compress.run({"data": "digits"}),
        ConfigError,
        "the mapping is not a pipeline:",
    ),
    "run on tpu": (
        lambda: compress.run({"data": "digits", "student": "resnet18", "stages": ["train"]}, device="tpu"),
        ConfigError,
        "device should be auto, cpu or cuda, not 'tpu'",
    ),
    "no plugin": (
        lambda: compress.run("x.yaml", plugins=["none.py"]),
        ConfigError,
        "--plugin none.py: no such file",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    misuse, kind, sentence = MISUSES[name]
    with pytest.raises(kind) as caught:
        misuse()
    assert sentence in str(caught.value)
    assert [*tmp_path.iterdir()] == []
