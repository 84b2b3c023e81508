"""Weights from float ONNX files: found again in the network, proven, or refused in words."""

import copy
import logging
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from tiny import Tiny, raw_pipeline
from torch import Tensor, nn

from compress import net as nets
from compress.errors import ModelError
from compress.export.onnx import Export, Exporter
from compress.models import MODELS
from compress.net import Net, Spec
from compress.pipeline import parsed
from compress.running.runner import run
from compress.weights.loading import content_files, load_weights

RANDOM = np.random.default_rng(0)


def in_use(net: nn.Module) -> nn.Module:
    """The network with batch-norm statistics as after training, none of them trivial."""
    generator = torch.Generator().manual_seed(7)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.1, generator=generator)
    return net.eval()


def tiny(classes: int = 4, channels: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Tiny(width=8)(classes, (channels, 16, 16))


class Branches(nn.Module):
    """Convolutions of the same shape on two ways, so that only the order tells them apart; one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.side = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.again = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)  # before its convolution, as in DenseNet: it is not folded
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.main(x)) + self.side(x)
        x = self.again(torch.relu(self.norm(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def exported(net: nn.Module, path: Path, channels: int = 3, **options: Any) -> Path:
    """What torch.onnx writes of a network."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, channels, 16, 16),), path, dynamo=True, verbose=False, **options)
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A tiny network and the one file that torch.onnx writes of it."""
    net = in_use(tiny(seed=3))
    return net, exported(net, tmp_path_factory.mktemp("given") / "tiny.onnx", external_data=False)


def loaded(path: Path, net: nn.Module, keep_head: bool = False) -> tuple[str, ...]:
    return load_weights(net, "tiny", str(path), keep_head=keep_head)


def refusal(path: Path, net: nn.Module | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(path, net or tiny())
    return str(caught.value)


def assert_same(ours: nn.Module, theirs: nn.Module, channels: int = 3) -> None:
    images = torch.from_numpy(RANDOM.standard_normal((4, channels, 16, 16), dtype=np.float32))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def assert_runs_alike(net: nn.Module, path: Path, shape: tuple[int, ...] = (1, 3, 16, 16)) -> None:
    """The network gives what ONNX Runtime gives."""
    images = RANDOM.standard_normal(shape, dtype=np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        np.testing.assert_allclose(net.eval()(torch.from_numpy(images)).numpy(), expected, rtol=1e-4, atol=1e-5)


# A small network written down in ONNX: Conv, BatchNormalization, Relu, GlobalAveragePool, Flatten, MatMul, Add


def model_of(nodes: list[NodeProto], arrays: dict[str, np.ndarray], shape: Any = ("n", 3, 8, 8)) -> ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "classes"])]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "written", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def written_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    return {
        "w": draw.normal(size=(8, 3, 3, 3)),
        "scale": draw.uniform(0.5, 2, 8),
        "shift": draw.normal(size=8),
        "mean": draw.normal(size=8),
        "var": draw.uniform(0.5, 2, 8),
        "m": draw.normal(size=(8, 4)),
        "b": draw.normal(size=4),
    }


def written(arrays: dict[str, np.ndarray], activation: str = "Relu", strides: int = 2) -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4, strides=[strides] * 2),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], epsilon=1e-3),
        helper.make_node(activation, ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["l"], "matmul"),
        helper.make_node("Add", ["l", "b"], ["y"]),
    ]
    return model_of(nodes, arrays)


def like_written() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, 2, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def stored(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# What is taken


def test_a_file_of_torch_onnx(given: tuple[nn.Module, Path]) -> None:
    theirs, path = given
    net = tiny()
    assert loaded(path, net) == ()
    assert_same(net, theirs)


def test_batch_norms_become_the_identity_with_a_bias_and_train_on(given: tuple[nn.Module, Path]) -> None:
    theirs, path = given
    net = tiny()
    loaded(path, net)
    ours, norm = net.stem[1], theirs.stem[1]  # type: ignore[index]
    assert not ours.running_mean.any()
    assert (ours.running_var == 1).all()
    # w' = w·g/σ and b' = β - μ·g/σ, and the identity divides by sqrt(1 + eps)
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    expected = theirs.stem[0].weight.detach().numpy() * factor[:, None, None, None]  # type: ignore[index]
    np.testing.assert_allclose(net.stem[0].weight.detach().numpy(), expected, rtol=1e-5, atol=1e-7)  # type: ignore[index]
    shift = (norm.bias - norm.running_mean * torch.from_numpy(factor)).detach().numpy()
    np.testing.assert_allclose(ours.bias.detach().numpy(), shift, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.weight.detach().numpy(), np.full(8, np.sqrt(1 + ours.eps)), rtol=1e-6)
    net.train()(torch.randn(8, 3, 16, 16)).sum().backward()
    assert ours.running_mean.any()
    assert ours.weight.grad.isfinite().all()


def test_names_and_order_in_the_file_do_not_matter(tmp_path: Path) -> None:
    theirs = in_use(Branches())
    model = onnx.load(exported(theirs, tmp_path / "b.onnx", external_data=False))
    names = {tensor.name: f"onnx::Conv_{193 + i}" for i, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.name = ""
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    _shuffle(model, seed=1)
    net = Branches()
    load_weights(net, "branches", str(stored(model, tmp_path / "renamed.onnx")), keep_head=False)
    assert_same(net, theirs)
    assert torch.equal(net.again.weight, theirs.again.weight)  # type: ignore[union-attr,arg-type]


def _shuffle(model: ModelProto, seed: int) -> None:
    """List initializers and nodes in another order, nodes still behind what they need."""
    draw = random.Random(seed)
    weights, waiting = list(model.graph.initializer), list(model.graph.node)
    draw.shuffle(weights)
    known = {tensor.name for tensor in weights} | {value.name for value in model.graph.input}
    order = []
    while waiting:
        node = draw.choice([node for node in waiting if known.issuperset(node.input)])
        waiting.remove(node)
        order.append(node)
        known.update(node.output)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(order)
    model.graph.initializer.extend(weights)


def test_weights_beside_the_file(tmp_path: Path) -> None:
    theirs = in_use(tiny(seed=4))
    path = exported(theirs, tmp_path / "t.onnx", external_data=True)
    assert content_files(str(path)) == [path, tmp_path / "t.onnx.data"]
    net = tiny()
    loaded(path, net)
    assert_same(net, theirs)


def test_our_own_float_file(tmp_path: Path) -> None:
    theirs = in_use(tiny(seed=5))
    spec = Spec(architecture=Tiny(width=8), classes=4, image=(3, 16, 16))
    model = Exporter(Export(), (0.5,) * 3, (0.25,) * 3)(Net(spec, theirs), {})
    net = tiny()
    loaded(stored(model, tmp_path / "baseline.onnx"), net)
    assert_same(net, theirs)


def test_batch_norms_that_are_not_folded_in_the_file(tmp_path: Path) -> None:
    path, net = stored(written(written_arrays()), tmp_path / "w.onnx"), like_written()
    loaded(path, net)
    assert_runs_alike(net, path, (2, 3, 8, 8))
    assert not net[0].bias.any()  # type: ignore[union-attr,operator]  # it stands in the batch-norm, which trains on


def test_a_batch_norm_before_its_convolution_keeps_its_statistics(tmp_path: Path) -> None:
    arrays = written_arrays()
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "var"], ["n"], epsilon=1e-2),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "m", "b"], ["y"], alpha=0.5, beta=2.0),
    ]
    path = stored(model_of(nodes, arrays, ("n", 8, 8, 8)), tmp_path / "w.onnx")
    net = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    loaded(path, net)
    np.testing.assert_array_equal(net[0].running_var, arrays["var"].astype(np.float32))  # type: ignore[arg-type]
    assert_runs_alike(net, path, (2, 8, 8, 8))


def test_a_classifier_of_other_classes_is_replaced_and_said_to_be(given: tuple[nn.Module, Path]) -> None:
    theirs, path = given
    net = tiny(classes=6)
    fresh = copy.deepcopy(net)
    assert loaded(path, net) == (f"{path}: the classifier was replaced, 4 classes became 6, and starts untrained",)
    assert torch.equal(net.head.weight, fresh.head.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(ModelError, match="has a classifier of 4 classes and the data have 6: with keep_head"):
        loaded(path, tiny(classes=6), keep_head=True)
    for each in (net, theirs):
        each.head = nn.Identity()
    assert_same(net, theirs)


def test_colour_weights_serve_grey_images_by_their_sum(tmp_path: Path) -> None:
    path = stored(written(written_arrays()), tmp_path / "w.onnx")
    colour, grey = like_written(), like_written()
    grey[0] = nn.Conv2d(1, 8, 3, 2, 1)
    loaded(path, colour)
    loaded(path, grey)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(grey.eval()(images), colour.eval()(images.expand(-1, 3, -1, -1)))


# What is refused


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "w.onnx") == (
        f"no weights file {tmp_path / 'w.onnx'}; give the path of a .safetensors file, of a .pt/.pth state dict or of "
        "a float .onnx file"
    )


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_cut_off(part: float, tmp_path: Path) -> None:
    content = written(written_arrays()).SerializeToString()
    path = tmp_path / "w.onnx"
    path.write_bytes(content[: round(len(content) * part)])
    assert (
        refusal(path) == f"{path} is not a valid ONNX file: it is something else, cut off or damaged; export it again"
    )


def test_something_else(tmp_path: Path) -> None:
    path = tmp_path / "w.onnx"
    path.write_text("no graph")
    assert (
        refusal(path) == f"{path} is not a valid ONNX file: it is something else, cut off or damaged; export it again"
    )


def test_not_valid(tmp_path: Path) -> None:
    model = written(written_arrays())
    model.graph.node[2].op_type = "Relo"
    path = stored(model, tmp_path / "w.onnx")
    assert refusal(path).startswith(f"{path} is not a valid ONNX file: No Op registered for Relo")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(written(written_arrays()), tmp_path / "w.onnx")
    monkeypatch.setattr("compress.files.onnx_tensors.LIMIT_BYTES", 1000)
    assert refusal(path) == f"{path} has 0.0 GiB; more than 9.31323e-07 GiB are not read"


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "link"])
def test_weights_outside_the_folder_are_never_read(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4000))
    (folder / "link").symlink_to(tmp_path / "secret")
    path = stored(_outside(written(written_arrays()), place), folder / "w.onnx")
    assert refusal(path) == f"{path} wants to read {place!r}, outside its own folder; that is never done"


def test_weights_beside_the_file_that_are_missing(tmp_path: Path) -> None:
    path = stored(_outside(written(written_arrays()), "w.data"), tmp_path / "w.onnx")
    assert refusal(path) == (
        f"{path} keeps its weights in {tmp_path / 'w.data'}, which is not there; put the two side by side"
    )
    assert content_files(str(path)) == []


def _outside(model: ModelProto, place: str) -> ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", place
    return model


def test_int8(tmp_path: Path) -> None:
    model = written(written_arrays())
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint8), "z"))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "input"))
    path = stored(model, tmp_path / "w.onnx")
    assert refusal(path) == (f"{path} is int8 already (node input); give the float file that it was made from")


def test_float16(tmp_path: Path) -> None:
    model = written(written_arrays())
    half = np.zeros(3, np.float16)
    model.graph.initializer.append(numpy_helper.from_array(half, "half"))
    path = stored(model, tmp_path / "w.onnx")
    assert refusal(path) == f"{path} holds 16-bit weights (such as half); give the float32 file of this network"


def test_another_architecture(tmp_path: Path) -> None:
    path = stored(written(written_arrays()), tmp_path / "w.onnx")
    assert refusal(path) == (
        f"{path} is a file of another architecture than tiny: behind folding it has 1 convolution, 1 linear layer, "
        "0 batch-norms where tiny has 3 convolutions, 1 linear layer, 0 batch-norms"
    )


def test_another_width(given: tuple[nn.Module, Path]) -> None:
    path = given[1]
    assert refusal(path, Tiny(width=16)(4, (3, 16, 16))).endswith(
        " has shape (8, 3, 3, 3) where stem.0 has (16, 3, 3, 3)."
    )


def test_another_stride_and_the_stem_of_torchvisions_models(tmp_path: Path) -> None:
    path = stored(written(written_arrays(), strides=1), tmp_path / "w.onnx")
    said = refusal(path, like_written())
    assert said.startswith(f"{path} does not fit tiny: conv")
    assert said.endswith(" has strides (1, 1) where 0 has (2, 2).")
    with pytest.raises(ModelError, match="For weights made on large images set the model's `stem: imagenet`"):
        load_weights(like_written(), "resnet18", str(path), keep_head=False)


def test_the_same_weights_that_compute_something_else(tmp_path: Path) -> None:
    path = stored(written(written_arrays(), activation="Sigmoid"), tmp_path / "w.onnx")
    assert "computes something else than tiny with the same weights: their logits agree to" in refusal(
        path, like_written()
    )


def test_a_bias_that_has_no_place(tmp_path: Path) -> None:
    path = stored(written(written_arrays()), tmp_path / "w.onnx")
    net = like_written()
    net[5] = nn.Linear(8, 4, bias=False)
    assert refusal(path, net).endswith("5 has neither a bias nor a batch-norm to take it")


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    arrays = written_arrays()
    arrays["m"][2, 1] = np.inf
    path = stored(written(arrays), tmp_path / "w.onnx")
    assert refusal(path, like_written()).startswith(f"{path} holds numbers that are not finite, first in ")


def test_raw_pixels(tmp_path: Path) -> None:
    model = written(written_arrays())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["pixels"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "pixels"
    path = stored(model, tmp_path / "w.onnx")
    assert refusal(path, like_written()) == (
        f"{path} takes x: tensor(uint8) of 4 dimensions; a file is needed that takes normalised images alone, float32 "
        "of (n, C, H, W)"
    )


def test_layers_that_an_onnx_file_does_not_keep_whole(tmp_path: Path) -> None:
    path = stored(written(written_arrays()), tmp_path / "w.onnx")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 4))
    assert refusal(path, net) == (
        f"weights of tiny cannot be taken from {path}: 1.weight belongs to no Conv2d, Linear or BatchNorm2d, and only "
        "those are found again in an ONNX file; give a .safetensors or .pth file"
    )


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    net = like_written()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    refusal(stored(written(written_arrays(), activation="Sigmoid"), tmp_path / "w.onnx"), net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# Whole runs


@pytest.mark.parametrize("method", ["ptq", "qat"])
def test_one_quantize_stage_after_the_fact(method: str, tmp_path: Path) -> None:
    theirs = in_use(Tiny(width=16)(4, (3, 16, 16)))
    path = exported(theirs, tmp_path / "given.onnx", external_data=False)
    student = {"tiny": {"width": 16, "weights": str(path)}}
    stage = {"quantize": {"method": method, "training": {"epochs": 1, "batch_size": 32}}}
    outcome = run(parsed(raw_pipeline(teacher=None, student=student, stages=[stage]), "one.yaml"), tmp_path / "run")
    float_row, int8_row = outcome.report.rows
    assert (float_row.net, float_row.int8, int8_row.int8) == ("baseline", False, True)
    assert float_row.agreement == 100
    kept = nets.load(next((tmp_path / "run" / "stages").glob("baseline-*")))
    assert_same(kept.module, theirs)


def test_onnx_weights_of_a_net_of_torchvision(tmp_path: Path) -> None:
    build = MODELS["mobilenet_v3_small"].model_validate({"width": 0.3})  # type: ignore[attr-defined]
    torch.manual_seed(2)
    theirs, net = in_use(build(4, (3, 16, 16))), build(4, (3, 16, 16))
    path = exported(theirs, tmp_path / "v3.onnx", external_data=False)
    load_weights(net, "mobilenet_v3_small", str(path), keep_head=False)
    assert_same(net, theirs)
