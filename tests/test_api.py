"""The algorithms as functions: what they promise of plain modules, and one sentence for each misuse."""

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import compress
from compress.export.seal import sealed
from compress.losses import KD

SIZE, CLASSES = 16, 4


class Own(nn.Module):
    """A user's network: two ways that are added, dropout, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.way = nn.Sequential(nn.Conv2d(32, 48, 3, 1, 1), nn.ReLU(), nn.Conv2d(48, 32, 3, 1, 1), nn.BatchNorm2d(32))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.drop(F.relu(x + self.way(x)).mean((2, 3))))  # type: ignore[no-any-return]


def mobilenet() -> nn.Module:
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return torchvision.models.MobileNetV2(CLASSES, inverted_residual_setting=blocks)  # type: ignore[no-any-return]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def lessons() -> list[tuple[Tensor, Tensor]]:
    """Images whose class is the quarter of the batch's brightness that they are in: something that can be learnt."""
    x = images(128)
    y = x.mean((1, 2, 3)).argsort().argsort() * CLASSES // len(x)
    return list(zip((x + y.view(-1, 1, 1, 1)).split(32), y.split(32), strict=True))


def macs(module: nn.Module) -> int:
    """Counted from the shapes that pass, independently of ours."""
    total = 0

    def see(layer: Any, _: object, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        total += positions * layer.weight.numel()

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(see) for layer in layers]
    with torch.no_grad():
        module.eval()(images(1))
    for handle in handles:
        handle.remove()
    return total


def state(module: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool]]:
    values = {name: value.clone() for name, value in module.state_dict().items()}
    return values, [layer.training for layer in module.modules()], [p.requires_grad for p in module.parameters()]


def require_as_before(module: nn.Module, before: tuple[dict[str, Tensor], list[bool], list[bool]]) -> None:
    values, modes, wanted = state(module)
    assert (modes, wanted) == before[1:]
    assert values.keys() == before[0].keys()
    assert all(torch.equal(value, before[0][name]) for name, value in values.items())


def loss_of(module: nn.Module, teacher: nn.Module) -> float:
    """Hinton's soft term at T = 4, in NumPy."""
    x = torch.cat([inputs for inputs, _ in lessons()])
    with torch.no_grad():
        mine, theirs = (each(x).double().numpy() / 4 for each in (module.eval(), teacher.eval()))

    def log_softmax(z: np.ndarray) -> np.ndarray:
        shifted = z - z.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # type: ignore[no-any-return]

    p, q = log_softmax(theirs), log_softmax(mine)
    return float(16 * (np.exp(p) * (p - q)).sum(1).mean())


def logits_of(path: Path, inputs: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path).run(None, {"input": inputs})[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def rounding() -> nn.Module:
    return compress.quantize(made(Own), images())


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    said = (
        "import sys, compress; print([m for m in ('torch', 'onnx', 'pydantic') if m in sys.modules]); compress.nothing"
    )
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert ended.stdout == "[]\n"
    assert ended.stderr.endswith("AttributeError: module 'compress' has no attribute 'nothing'\n")


@pytest.mark.parametrize("build", [Own, mobilenet])
@pytest.mark.parametrize("keep", [{"keep_macs": 0.6}, {"keep_params": 0.6}, {}])
def test_a_pruned_module_meets_its_share(build: Callable[[], nn.Module], keep: dict[str, float]) -> None:
    module = made(build)
    before = state(module)
    smaller = compress.prune(module, images(), **keep, align=1)
    require_as_before(module, before)
    assert type(smaller) is type(module)
    share = macs(smaller) / macs(module)
    if "keep_params" in keep:
        share = sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in module.parameters())
    wanted = next(iter(keep.values()), 0.5)
    assert 0.98 * wanted <= share <= wanted
    assert smaller(images(2)).shape == (2, CLASSES)


def test_pruning_by_gradients_takes_batches() -> None:
    module = made(Own)
    by_weights = compress.prune(module, images(), importance="l2", align=2).state_dict()
    by_gradients = compress.prune(module, images(), importance="taylor", align=2, batches=lessons()).state_dict()
    assert any(not torch.equal(value, by_gradients[name]) for name, value in by_weights.items())


def test_what_cannot_be_pruned_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "compress"):
        compress.prune(made(Own), images())
    assert "prune: Not pruned: head, its outputs are the network's." in caplog.messages


@pytest.mark.parametrize("build", [Own, mobilenet])
@pytest.mark.parametrize(
    "batches", [images(), [images()], [(images(), torch.zeros(32))]], ids=["tensor", "list", "pairs"]
)
def test_a_quantized_module_rounds(build: Callable[[], nn.Module], batches: Any) -> None:
    module = made(build).train()
    before = state(module)
    rounding = compress.quantize(module, batches)
    require_as_before(module, before)
    assert not rounding.training
    module.eval()
    x = images(64)
    with torch.no_grad():
        exact, rounded = module(x), rounding(x)
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("build", [Own, mobilenet])
def test_an_int8_file_is_int8_and_agrees(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    module = made(build)
    rounding = compress.quantize(compress.prune(module, images()), images())
    before = state(rounding)
    path = compress.export(copy.deepcopy(rounding), images(), tmp_path / "new" / "net.onnx", class_names=list("abcd"))
    require_as_before(rounding, before)
    model = onnx.load(path)
    assert sealed(model)
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1} == {onnx.TensorProto.INT8}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["class_names"], about["net"]) == ('["a", "b", "c", "d"]', "net")
    assert about["architecture"] == type(module).__name__
    assert "int8 weights per channel" in about["scheme"]
    x = images(200)
    with torch.no_grad():
        ours = rounding(x).numpy()
    assert (logits_of(path, x.numpy()).argmax(1) == ours.argmax(1)).mean() >= 0.97


def test_a_float_file_gives_the_same_and_normalises_for_itself(tmp_path: Path) -> None:
    module = made(Own)
    plain = compress.export(module, images(), tmp_path / "plain.onnx")
    x = images(50)
    with torch.no_grad():
        assert np.allclose(logits_of(plain, x.numpy()), module(x).numpy(), atol=1e-4)
    raw = compress.export(
        module, images(), str(tmp_path / "raw.onnx"), input="uint8_nhwc", mean=(0.4, 0.5, 0.6), std=(0.2,) * 3
    )
    pixels = torch.randint(256, (20, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    fed = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.2
    with torch.no_grad():
        assert np.allclose(logits_of(raw, pixels.numpy()), module(fed).numpy(), atol=1e-3)


def test_export_writes_the_same_bytes_again(rounding: nn.Module, tmp_path: Path) -> None:
    first, second = (compress.export(rounding, images(), tmp_path / name / "net.onnx").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    "losses",
    [None, ["kd"], [{"kd": {"temperature": 2}}, "cross_entropy"], [KD()], [{"hint": {"layers": 1, "weight": 0.01}}]],
)
def test_a_distilled_student_is_nearer_to_its_teacher(losses: Any) -> None:
    teacher, student = made(Own), made(Own)
    nn.init.normal_(teacher.head.weight, std=1.0)  # type: ignore[arg-type]
    nn.init.normal_(student.stem[0].weight, std=0.1)  # type: ignore[index,arg-type]
    before, untouched = state(student), state(teacher)
    learnt = compress.distill(student, teacher, lessons(), losses=losses, epochs=15, lr=0.005)
    require_as_before(student, before)
    require_as_before(teacher, untouched)
    assert not learnt.training
    assert loss_of(learnt, teacher) < 0.96 * loss_of(student, teacher)


def test_distilling_follows_from_its_seed() -> None:
    first, again, other = (compress.distill(made(Own), made(Own), lessons(), epochs=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight)  # type: ignore[arg-type]
    assert not torch.equal(first.head.weight, other.head.weight)  # type: ignore[arg-type]


def test_a_quantized_student_learns_with_its_rounding(rounding: nn.Module, tmp_path: Path) -> None:
    teacher = made(Own)
    nn.init.normal_(teacher.head.weight, std=1.0)  # type: ignore[arg-type]
    learnt = compress.distill(rounding, [teacher, made(Own)], lessons(), blend=[1, 0.001], epochs=5, lr=0.01)
    assert loss_of(learnt, teacher) < loss_of(rounding, teacher)
    path = compress.export(learnt, images(), tmp_path / "learnt.onnx")
    x = torch.cat([inputs for inputs, _ in lessons()])
    with torch.no_grad():
        assert (logits_of(path, x.numpy()).argmax(1) == learnt(x).argmax(1).numpy()).mean() >= 0.97


def test_a_plain_training_loop_trains_the_rounding_module(rounding: nn.Module) -> None:
    module = copy.deepcopy(rounding).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    found = []
    for _ in range(5):
        for x, y in lessons():
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert np.mean(found[-4:]) < np.mean(found[:4])


def test_a_pipeline_as_a_function(tmp_path: Path) -> None:
    pipeline = {
        "name": "mine",
        "data": {"synthetic": {"size": 16, "classes": 4, "samples": 64}},
        "student": {"plain_cnn": {"widths": [8, 16]}},
        "stages": [{"quantize": {"method": "ptq"}}],
        "budget": {"max_bytes": 1},
        "benchmark": {"rounds": 2},
    }
    heard: list[str] = []
    rows = compress.run(
        pipeline, out=tmp_path / "out", overrides={"stages.quantize.calibration": 32, "baseline.training.epochs": 0},
        emit=lambda event: heard.append(event["event"]),
    )  # fmt: skip
    assert [row.net for row in rows] == ["baseline", "quantize"]
    assert (len(rows), rows[-1], rows[:1][0]) == (2, rows["quantize"], rows["baseline"])
    assert rows["quantize"].int8
    assert (tmp_path / "out" / rows[1].onnx).stat().st_size == rows[1].bytes
    assert "calibration: 32" in (tmp_path / "out" / "pipeline.yaml").read_text()
    assert (rows.verdict, rows.exit_code, rows.budget[0].ok) == ("untrained", 0, False)
    assert rows.folder == tmp_path / "out"
    assert rows.failure is None
    assert rows.alternatives == ()
    assert heard[0] == "started"
    assert heard[-1] == "finished"
    assert "quantize" in repr(rows)
    with pytest.raises(KeyError, match=r"no net 'quantise'. Did you mean 'quantize'?"):
        rows["quantise"]
    assert pipeline["stages"] == [{"quantize": {"method": "ptq"}}]
