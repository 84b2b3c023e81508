"""The plain CNN: its shape counted by hand, and its way through a pipeline on small grey images."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compress.edits.macs import count_macs
from compress.errors import ModelError
from compress.models.plain_cnn import PlainCNN
from compress.net import Net, Spec, build, probe
from compress.pipeline import parsed
from compress.running.runner import run
from compress.training.features import Place, find

GREY = (1, 16, 16)


def made(widths=(16, 32, 64), image=GREY) -> Net:
    return build(Spec(architecture=PlainCNN(widths=widths), classes=10, image=image), seed=0)


@pytest.mark.parametrize("widths", [(16, 32, 64), (8,), (8, 24), (4, 4, 4, 4, 4)])
@pytest.mark.parametrize("image", [GREY, (3, 32, 32)])
def test_parameters_and_macs_are_those_counted_by_hand(widths, image):
    net = made(widths, image)
    pairs = list(zip((image[0], *widths), widths, strict=False))
    params = sum(9 * inputs * outputs + 2 * outputs for inputs, outputs in pairs) + (widths[-1] + 1) * 10
    sides = [image[1] // 2**i for i in range(len(widths))]
    macs = sum(9 * i * o * side**2 for (i, o), side in zip(pairs, sides, strict=True)) + widths[-1] * 10
    assert net.params == params
    assert count_macs(net.module, net.example(1)) == macs


def test_it_computes_what_its_layers_say():
    net = made((4, 6))
    module = net.module.eval()
    (conv, norm, _), (conv2, norm2, _) = module.features[0], module.features[2]
    with torch.no_grad():
        for each in (norm, norm2):
            each.running_mean.uniform_(-1, 1)
            each.running_var.uniform_(0.5, 2)
            each.bias.uniform_(-1, 1)
    x = np.random.default_rng(0).standard_normal((2, *GREY))
    expected = _block(_pooled(_block(x, conv, norm)), conv2, norm2).mean((2, 3))
    linear = module.classifier
    expected = expected @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x).float()).numpy(), expected, rtol=1e-4, atol=1e-5)


def _block(x: np.ndarray, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> np.ndarray:
    """A 3×3 convolution on zero padding, batch normalisation by its running statistics, ReLU."""
    weight = conv.weight.detach().double().numpy()
    n, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((n, len(weight), height, width))
    for i in range(3):
        for j in range(3):
            y += np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    mean, var, gamma, beta = (
        each.detach().double().numpy()[:, None, None]
        for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return np.maximum((y - mean) / np.sqrt(var + norm.eps) * gamma + beta, 0)


def _pooled(x: np.ndarray) -> np.ndarray:
    n, channels, height, width = x.shape
    return x.reshape(n, channels, height // 2, 2, width // 2, 2).max((3, 5))


def test_its_stages_end_where_it_halves_the_map():
    net = made()
    found = [find(net.module, stage, net.example())[0] for stage in (1, 2, 3)]
    assert found == [Place("features.1", input=True), Place("features.3", input=True), Place("pool", input=True)]


def test_more_halvings_than_the_image_has_are_said():
    probe(made((4,) * 5))  # 16, 8, 4, 2, 1
    said = r"plain_cnn cannot be built for images \(1, 16, 16\): its 6 widths want 5 halvings; give fewer"
    with pytest.raises(ModelError, match=said):
        made((4,) * 6)


def test_it_is_pruned_quantized_and_exported(tmp_path):
    training = {"epochs": 1, "batch_size": 32, "lr": 0.01}
    raw = {
        "name": "plain",
        "data": {"digits": {"size": 16, "channels": 1}},
        "student": "plain_cnn",
        "stages": [
            {"prune": {"keep_macs": 0.6, "align": 4, "training": training}},
            {"quantize": {"training": training | {"lr": 0.001}}},
        ],
        "baseline": {"training": training | {"epochs": 2}},
        "benchmark": {"rounds": 1},
    }
    outcome = run(parsed(raw, "plain.yaml"), tmp_path, smoke=True)
    rows = {row.net: row for row in outcome.report.rows}
    assert list(rows) == ["baseline", "prune", "quantize"]
    assert outcome.exit_code == 0
    assert 0.588 <= rows["prune"].macs / rows["baseline"].macs <= 0.6
    assert rows["quantize"].int8
    assert rows["quantize"].bytes < rows["baseline"].bytes / 2
    graph = onnx.load(tmp_path / rows["quantize"].onnx).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim][1:] == [1, 16, 16]
