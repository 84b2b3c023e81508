"""Every stage, killed at a step and taken up again: the same bits. Checkpoints that are damaged are found out."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_pipeline

from compress.errors import ResourceError, TrainingError
from compress.files import durable
from compress.losses import CrossEntropy
from compress.models.mobilenet_blocks import MobileNetBlocks
from compress.net import Net, Spec, build
from compress.recipe import Training
from compress.stages import Env
from compress.training import checkpoint
from compress.training.checkpoint import Checkpoints, Keeper
from compress.training.loop import Loop, Progress
from compress.training.train import fit

CPU = torch.device("cpu")
TRAINING = {"epochs": 3, "batch_size": 16, "lr": 0.01}
SOFT = [{"cross_entropy": {"weight": 0.1}}, "kd"]
BLOCKS = MobileNetBlocks(
    stem=16, widths=(16, 32), depths=(1, 1), kernels=(3, 3), expansions=(1, 2), strides=(1, 2), head=32
)
SPACE = {"widths": [0.5], "depths": [], "kernels": [5], "expansions": []}
SEARCH = {
    "keep_macs": 0.8, "method": {"evolution": {"population": 2, "generations": 1}}, "space": SPACE, "align": 8
}  # fmt: skip

# What a stage keeps between its steps differs with each of these.
STAGES: dict[str, dict[str, Any]] = {
    "adamw, warm-up and cosine": {"train": {"training": TRAINING | {"warmup": 1}}},
    "one cycle, clipping": {"train": {"training": TRAINING | {"schedule": "one_cycle", "clip": 1.0}}},
    "sgd, averaged": {"train": {"training": TRAINING | {"optimizer": "sgd", "ema": 0.9}}},
    "sgd, one cycle": {"train": {"training": TRAINING | {"optimizer": "sgd", "schedule": "one_cycle"}}},
    "milestones": {"train": {"training": TRAINING | {"schedule": "step", "milestones": [1, 2], "bn_l1": 1e-4}}},
    "affine": {"train": {"training": TRAINING | {"augment": "affine", "dropout": 0.5, "l1": 1e-5}}},
    "knowledge": {"distill": {"losses": SOFT, "training": TRAINING}},
    "cached": {"distill": {"losses": SOFT, "training": TRAINING, "targets": "cached", "views": 3}},
    "adapters": {"distill": {"losses": ["cross_entropy", {"hint": {"layers": [-1]}}], "training": TRAINING}},
    "memory": {"distill": {"losses": ["cross_entropy", {"crd": {"negatives": 16}}], "training": TRAINING}},
    "adversaries": {"distill": {"losses": ["cross_entropy", "adversarial"], "training": TRAINING}},
    "phases": {"distill": {"phases": [{"losses": ["kd"], "training": {"epochs": 1}}, {"losses": SOFT}],
                           "training": TRAINING}},
    "mutual": {"mutual": {"training": TRAINING}},
    "born again": {"born_again": {"generations": 2, "training": TRAINING | {"epochs": 2}}},
    "prune": {"prune": {"keep_macs": 0.6, "training": TRAINING}},
    "prune in steps": {"prune": {"keep_macs": 0.6, "steps": 2, "training": TRAINING}},
    "sparsify": {"sparsify": {"sparsity": 0.6, "training": TRAINING}},
    "factorize": {"factorize": {"keep_macs": 0.8, "training": TRAINING}},
    "search by training": {"search": SEARCH | {"scored_by": "training", "training": TRAINING | {"epochs": 1}}},
    "search by sharing": {"search": SEARCH | {"scored_by": "sharing", "training": TRAINING}},
    "calibrated again": {"quantize": {"training": TRAINING}},
    "moving ranges": {"quantize": {"ranges": {"moving_average": {}}, "training": TRAINING}},
    "learnt scales": {"quantize": {"learn": "lsq", "training": TRAINING}},
    "pact": {"quantize": {"learn": "pact", "training": TRAINING}},
    "int4": {"quantize": {"weights": "int4", "training": TRAINING}},
}  # fmt: skip


class Killed(BaseException):
    """As good as SIGKILL: nothing gets a chance to tidy up."""


def net_for(stage: Any) -> Net:
    architecture = BLOCKS if stage.name == "search" else Tiny()
    return build(Spec(architecture=architecture, classes=4, image=(3, 16, 16)), 1)


def env_for(images: Any, told: dict[str, list[Any]], **more: Any) -> Env:
    teacher = build(Spec(architecture=Tiny(width=48), classes=4, image=(3, 16, 16)), 2)
    teacher.module.eval()
    return Env(
        images, (teacher,), CPU, seed=5, stage="killed", emit=told.setdefault("events", []).append,
        note=told.setdefault("notes", []).append, warn=told.setdefault("warnings", []).append,
        beside=lambda name, net: told.setdefault("beside", []).append((name, net)), teacher_keys=("teacher",), **more,
    )  # fmt: skip


def curve(told: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """What is told of the epochs, but for what the clock says."""
    clock = ("images_per_s", "seconds", "left_s", "again")
    found: list[dict[str, Any]] = []
    for event in told["events"]:
        if event["event"] == "epoch":
            found.append({k: v for k, v in event.items() if k not in clock})
        elif gone := event.get("withdrawn"):
            del found[-gone:]
    return found


def same(a: Net, b: Net) -> bool:
    first, second = a.module.state_dict(), b.module.state_dict()
    return a.spec == b.spec and first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Kills the training once so many checkpoints were written; 0 lets it live."""
    left = [0]

    def written(keeper: Keeper, *args: Any) -> None:
        write(keeper, *args)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    write = Keeper._write
    monkeypatch.setattr(Keeper, "_write", written)
    return lambda count: left.__setitem__(0, count)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_was_killed_twice_ends_with_the_same_bits(name, images, tmp_path, killing):
    stage = tiny_pipeline(student={"mobilenet_blocks": BLOCKS.model_dump()} if "search" in name else "tiny",
                          stages=[STAGES[name]], export={"opset": 21}).stages[0]  # fmt: skip
    whole: dict[str, list[Any]] = {}
    expected = stage(net_for(stage), env_for(images, whole, out=tmp_path / "a"))
    told: dict[str, list[Any]] = {}
    for count in (6, 5):
        killing(count)
        with pytest.raises(Killed):
            stage(net_for(stage), env_for(images, {}, out=tmp_path, checkpoints=Checkpoints(tmp_path / "c", 0)))
    killing(0)
    found = stage(net_for(stage), env_for(images, told, out=tmp_path, checkpoints=Checkpoints(tmp_path / "c", 0)))
    resumed = [event["step"] for event in told["events"] if event["event"] == "resumed"]
    assert resumed
    assert max(resumed) > 0
    assert same(found, expected)
    assert curve(told) == curve(whole)
    assert told["notes"] == whole["notes"]
    assert told["warnings"] == whole["warnings"]
    assert [name for name, _ in told.get("beside", [])] == [name for name, _ in whole.get("beside", [])]
    assert all(same(a, b) for (_, a), (_, b) in zip(told.get("beside", []), whole.get("beside", []), strict=True))


# What becomes of the files


def toy(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"x": torch.full((3,), float(step))}, {"made_of": "this", "step": step}


def kept(folder: Path, steps: int = 4) -> Checkpoints:
    store = Checkpoints(folder, 0)
    keeper = store.next()
    for step in range(1, steps + 1):
        keeper.save(step, *toy(step))
    return store


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def found(folder: Path, warn: Any = None) -> int | None:
    checkpoint = Checkpoints(folder, 0, warn or (lambda text: None)).next().find("this")
    if checkpoint is None:
        return None
    assert torch.equal(checkpoint.tensors["x"], torch.full((3,), float(checkpoint.facts["step"])))
    return checkpoint.facts["step"]


def test_the_last_two_are_kept_and_the_last_is_found(tmp_path):
    kept(tmp_path)
    assert [path.name[:14] for path in files(tmp_path)] == ["0000-000000003", "0000-000000004"]
    assert found(tmp_path) == 4


def test_a_finished_training_keeps_its_result_alone(tmp_path):
    kept(tmp_path)
    Checkpoints(tmp_path, 0).next().finish(*toy(5))
    assert [path.name[:9] for path in files(tmp_path)] == ["0000-done"]
    assert found(tmp_path) == 5


def test_tensors_of_every_kind_come_back_as_they_were(tmp_path):
    some = torch.arange(-6, 6)
    given = {str(kind): some.to(kind).reshape(3, 4) for kind in checkpoint.TYPES}
    given |= {"none": torch.zeros(0, 3), "number": torch.tensor(7), "slice": torch.arange(9.0)[::2], "again": some}
    given |= {"channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), "shared": some}
    Checkpoints(tmp_path, 0).next().save(1, given, {"made_of": "this"})
    found = Checkpoints(tmp_path, 0).next().find("this")
    assert found is not None
    assert found.tensors.keys() == given.keys()
    for name, value in given.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


def test_every_flipped_bit_and_every_cut_is_found_out_and_said(tmp_path):
    kept(tmp_path / "whole")
    last = files(tmp_path / "whole")[-1].name
    size = (tmp_path / "whole" / last).stat().st_size
    damages = [lambda path, at=at: flipped(path, at) for at in range(0, size, 7)]
    damages += [lambda path, at=at: path.write_bytes(path.read_bytes()[:at]) for at in range(0, size, 29)]
    damages += [lambda path: path.write_bytes(path.read_bytes() + b"x"), lambda path: path.write_bytes(b"\0" * size)]
    for i, damage in enumerate(damages):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / last)
        said: list[str] = []
        assert found(folder, said.append) == 3
        assert said == [f"{last} is damaged and is not used; the training goes on from what was kept before it"]
        assert not (folder / last).exists()


def test_both_damaged_is_a_start_from_the_beginning(tmp_path):
    kept(tmp_path)
    for path in files(tmp_path):
        flipped(path, 40)
    said: list[str] = []
    assert found(tmp_path, said.append) is None
    assert len(said) == 2


def test_what_is_half_written_or_foreign_is_passed_over(tmp_path):
    kept(tmp_path)
    last = files(tmp_path)[-1]
    (tmp_path / (last.name + durable.UNFINISHED)).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "0000-000000009-zz.safetensors").write_bytes(b"")
    assert found(tmp_path) == 4


def test_one_of_another_training_is_not_taken(tmp_path):
    kept(tmp_path)
    assert Checkpoints(tmp_path, 0).next().find("another") is None


def test_a_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch):
    store = kept(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match=r"No space left on device \([\d,]+ bytes are needed, [\d,]+ .* free"):
        Keeper(store, 0).save(9, *toy(9))
    monkeypatch.undo()
    assert found(tmp_path) == 4
    assert not list(tmp_path.glob("*" + durable.UNFINISHED))


def test_the_time_of_all_processes_is_counted(tmp_path):
    first = Checkpoints(tmp_path, 0, earlier_s=1000.0)
    first.next().save(1, *toy(1))
    assert 1000 < Checkpoints(tmp_path, 0).seconds < 1010


def test_without_a_folder_nothing_is_kept(images):
    stage = tiny_pipeline(stages=[STAGES["knowledge"]]).stages[0]
    told: dict[str, list[Any]] = {}
    stage(net_for(stage), env_for(images, told, checkpoints=Checkpoints(None, 0)))
    assert not Checkpoints(None, 0).next().due


# Numbers that are not finite, and too little memory


def spoiling(monkeypatch: pytest.MonkeyPatch, at: set[int], how: Any) -> list[int]:
    """Lets `how` spoil a training behind its n-th step, counted over all rollbacks; gives the steps that were made."""
    made: list[int] = []

    def step(loop: Loop, *args: Any) -> None:
        real(loop, *args)
        made.append(loop.state.step)
        if len(made) in at:
            how(loop)

    real = Loop.step
    monkeypatch.setattr(Loop, "step", step)
    return made


def fill(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor[(0,) * tensor.dim()] = value


SPOILED = {
    "weight": (lambda loop: fill(loop.module.stem[0].weight, np.nan), "stem.0.weight"),
    "bias": (lambda loop: fill(loop.module.head.bias, -np.inf), "head.bias"),
    "gradient": (lambda loop: fill(loop.module.head.weight.grad, np.inf), "head.weight's gradient"),
    "running mean": (lambda loop: fill(loop.module.back[1].running_mean, np.nan), "back.1.running_mean"),
    "running variance": (lambda loop: fill(loop.module.stem[1].running_var, np.inf), "stem.1.running_var"),
    "average": (lambda loop: fill(loop.state.average.head.weight, np.nan), "the moving average of head.weight"),
    "averaged statistics": (lambda loop: fill(loop.state.average.stem[1].running_var, np.nan), "the moving average of"),
    "adapter": (lambda loop: fill(loop.objective.parameters[0], np.nan), "the losses' "),
}  # fmt: skip


def spoiled_training(images: Any, store: Checkpoints, told: dict[str, list[Any]]) -> Net:
    raw = {"distill": {"losses": ["cross_entropy", {"hint": {"layers": [-1]}}], "training": TRAINING | {"ema": 0.9}}}
    stage = tiny_pipeline(stages=[raw]).stages[0]
    return stage(net_for(stage), env_for(images, told, checkpoints=store))


@pytest.fixture(scope="module")
def unspoiled(images) -> tuple[Net, list[dict[str, Any]]]:
    told: dict[str, list[Any]] = {}
    return spoiled_training(images, Checkpoints(), told), curve(told)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", SPOILED)
def test_what_is_spoiled_once_is_trained_again_to_the_same_bits(
    name, on_disk, images, unspoiled, monkeypatch, tmp_path
):
    """At the end of the second epoch, where gradients and statistics are looked at, too."""
    spoil, tensor = SPOILED[name]
    spoiling(monkeypatch, {8}, spoil)
    told: dict[str, list[Any]] = {}
    store = Checkpoints(tmp_path if on_disk else None, 0)
    assert same(spoiled_training(images, store, told), unspoiled[0])
    assert curve(told) == unspoiled[1]
    assert len(told["warnings"]) == 1
    assert tensor in told["warnings"][0]
    assert "is not finite in epoch 2: went back to epoch " in told["warnings"][0]
    assert "and on with nothing changed (1 of 3 times)" in told["warnings"][0]


def test_a_loss_that_is_spoiled_once_is_told_by_its_name(images, unspoiled, monkeypatch):
    def spoiled(self: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        value = real(self, batch)
        return value * float("nan") if len(calls) == 7 else value

    calls: list[int] = []
    real = CrossEntropy.__call__
    monkeypatch.setattr(CrossEntropy, "__call__", spoiled)
    told: dict[str, list[Any]] = {}
    assert same(spoiled_training(images, Checkpoints(), told), unspoiled[0])
    assert "the loss cross_entropy is not finite in epoch 2" in told["warnings"][0]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_spoiled_each_time_ends_the_training_with_its_name(on_disk, images, monkeypatch, tmp_path):
    made = spoiling(monkeypatch, {*range(3, 99)}, SPOILED["weight"][0])
    told: dict[str, list[Any]] = {}
    with pytest.raises(TrainingError) as caught:
        spoiled_training(images, Checkpoints(tmp_path if on_disk else None, 0), told)
    assert str(caught.value).startswith(
        "stage killed: a value of stem.0.weight is not finite in epoch 1, after 3 returns to the last good state. "
    )
    assert "Lower training.lr (now 0.01)" in str(caught.value)
    ways = ["with nothing changed (1 of 3", "with 0.5 times the learning rate (2 of 3", "with 0.25 times the learning"]
    assert all(way in text for way, text in zip(ways, told["warnings"], strict=True))
    assert len(made) < 12


def test_a_rollback_with_half_the_rate_has_half_the_rate(images, monkeypatch):
    rates: list[float] = []

    def watched(loop: Loop) -> None:
        rates.append(loop.state.optimizer.param_groups[0]["lr"])
        if len(rates) in (2, 4):
            fill(loop.module.stem[0].weight, np.nan)

    spoiling(monkeypatch, {*range(99)}, watched)
    told: dict[str, list[Any]] = {}
    spoiled_training(images, Checkpoints(), told)
    usual = rates[:2]
    assert rates[2:4] == usual  # the third step of both is never finished
    assert rates[4:6] == [rate / 2 for rate in usual]
    assert len(told["warnings"]) == 2


def test_a_checkpoint_never_holds_what_is_spoiled(images, monkeypatch, tmp_path):
    spoiling(monkeypatch, {5}, SPOILED["average"][0])
    store = Checkpoints(tmp_path, 0)
    written: list[bool] = []

    def checked(keeper: Keeper, step: str, tensors: Any, facts: Any) -> None:
        written.append(all(bool(x.isfinite().all()) for name, x in tensors.items() if x.is_floating_point()))
        write(keeper, step, tensors, facts)

    write = Keeper._write
    monkeypatch.setattr(Keeper, "_write", checked)
    spoiled_training(images, store, {})
    assert len(written) == 13
    assert all(written)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: BaseException) -> None:
    """As if no more than so many images had room."""

    def forward(loop: Loop, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > most:
            raise error
        return real(loop, inputs)

    real = Loop.forward
    monkeypatch.setattr(Loop, "forward", forward)


SHORTAGES = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_with_too_little_memory_batches_are_cut_and_that_is_said(error, images, monkeypatch, tmp_path):
    stage = tiny_pipeline(stages=[{"train": {"training": TRAINING}}]).stages[0]
    short_of_memory(monkeypatch, 4, error)
    told: dict[str, list[Any]] = {}
    stage(net_for(stage), env_for(images, told))
    assert len(told["warnings"]) == 2
    assert told["warnings"][1].startswith(
        "memory ran out with 8 images at a time: from epoch 1, step 1 on a batch is trained in 4 parts of 4, whose "
        "gradients are added up; batch-norm and losses over a batch see 4 images at a time."
    )
    assert [event["steps"] for event in told["events"] if event["event"] == "epoch"] == [4, 4, 4]


def test_the_gradients_of_the_parts_are_those_of_the_batch(images, monkeypatch):
    """Of a net without batch-norm, to which the batch's size means nothing."""
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 4)
    )
    training = Training(epochs=2, batch_size=16, lr=0.1, optimizer="sgd", clip=0.5, l1=1e-4)
    whole, parts = copy.deepcopy(plain), copy.deepcopy(plain)
    given = {"device": CPU, "seed": 1, "progress": Progress("x")}
    fit(whole, images, training, [CrossEntropy()], **given)
    short_of_memory(monkeypatch, 6, MemoryError())
    fit(parts, images, training, [CrossEntropy()], **given)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), parts.parameters(), strict=True))


def test_no_memory_for_two_images_is_said_with_what_to_try(images, monkeypatch):
    stage = tiny_pipeline(stages=[{"train": {"training": TRAINING}}]).stages[0]
    short_of_memory(monkeypatch, 1, MemoryError())
    with pytest.raises(ResourceError, match="out of memory even with 2 images at a time"):
        stage(net_for(stage), env_for(images, {}))
