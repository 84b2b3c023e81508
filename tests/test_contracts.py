"""What every member of a table promises, held against all of them; a new member is tested by standing in its table."""

import ast
import copy
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import compress
import compress.models.timm as timm
from compress.config import Config, OneOf, as_named
from compress.data import DATASETS
from compress.edits import EDITS, Channels
from compress.edits.calibration import calibrate
from compress.edits.quantizers import activation_quantizers
from compress.edits.ranges import RANGES
from compress.losses import KD, LOSSES, Batch, CrossEntropy, Loss, Outputs
from compress.losses.base import Lesson
from compress.losses.layers import EMBEDDING, key
from compress.models import MODELS
from compress.models.mobilenet_blocks import MobileNetBlocks
from compress.models.torchvision import TORCHVISION
from compress.net import Net, Spec, build, load, save
from compress.pruning.channels import prune_channels
from compress.recipe import Training
from compress.stages import STAGES, Env

TABLES = {"models": MODELS, "data": DATASETS, "losses": LOSSES, "edits": EDITS, "ranges": RANGES, "stages": STAGES}
MEMBERS = [(kind, name) for kind, table in TABLES.items() for name in table if name != "timm" or timm.installed()]
OURS = [(kind, name) for kind, name in MEMBERS if name not in TORCHVISION]
# Fields that a member cannot do without, with values as they would stand in a file.
NEEDED = {
    "npz": {"path": "data.npz"},
    "timm": {"model": "resnet18"},
    "image_folder": {"path": "pictures"},
    "prune": {"keep_macs": 0.5},
    "sparsify": {"sparsity": 0.5},
    "sparse": {"layers": {"classifier": 10}},
    "search": {
        "keep_macs": 0.8,
        "method": {"evolution": {"population": 2, "generations": 1}},
        "space": {"widths": [0.5], "depths": [], "kernels": [5], "expansions": []},
        "align": 8,
    },
    "channels": {"sizes": {"conv": [3, 8, 1]}},
    "factorized": {"ranks": {"features.14.0": 24}},
}
CPU = torch.device("cpu")
# A stage that only measures has no such key.
TRAINING = [name for name, stage in STAGES.items() if "training" in stage.model_fields]


def made(kind: str, name: str) -> Config:
    return OneOf(TABLES[kind]).parse({name: NEEDED.get(name, {})})


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_a_member_is_called_what_the_table_calls_it(kind, name):
    assert TABLES[kind][name].name == name


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_a_member_goes_to_yaml_and_back(kind, name):
    member = made(kind, name)
    text = yaml.safe_dump(as_named(member))
    assert OneOf(TABLES[kind]).parse(yaml.safe_load(text)) == member
    with pytest.raises(ValueError, match="frozen"):
        member.anything = 1


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_a_member_refuses_keys_that_it_does_not_know(kind, name):
    with pytest.raises(ValueError, match=r"no such key"):
        OneOf(TABLES[kind]).parse({name: NEEDED.get(name, {}) | {"surprise": 1}})


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_a_member_says_where_it_comes_from(kind, name):
    member = TABLES[kind][name]
    said = member.__doc__ or ""
    if kind == "data" and name in ("npz", "image_folder", "cifar10", "cifar100"):
        said += sys.modules[member.__module__].__doc__ or ""
    assert len(said) > 40
    source = r"arXiv:\d{4}\.\d{4,5}|doi:10\.|\b(19|20)\d\d\b|https?://"
    own = kind in ("edits",) or name in ("npz", "image_folder")
    assert re.search(source, said) or own, f"{kind}/{name}: the docstring should cite a paper or a source"


def test_every_torchvision_model_says_where_it_comes_from():
    assert all("paper" in (model.__doc__ or "") or "arXiv" in (model.__doc__ or "") for model in TORCHVISION.values())


@pytest.mark.parametrize("kind", sorted(TABLES.keys() - {"ranges"}))
def test_no_member_is_forgotten_in_its_table(kind):
    folder = Path(compress.__file__).parent / kind
    named = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for line in node.body:
                annotated = isinstance(line, ast.AnnAssign) and getattr(line.target, "id", "") == "name"
                if annotated and isinstance(line.value, ast.Constant):
                    named[line.value.value] = f"{path.name}: {node.name}"
    for inner in ("torchvision", "layer", "phase"):  # torchvision's common adapter, parts of a loss and of a stage
        named.pop(inner, None)
    known = TABLES[kind] | (RANGES if kind == "edits" else {})  # ranges.py stands in the folder of the edits
    forgotten = {where for name, where in named.items() if name not in known}
    assert named
    assert not forgotten, f"{forgotten} should stand in the table of compress/{kind}/__init__.py"


# Losses

SAMPLES, CLASSES = 40, 5
TAUGHT = [name for name, loss in LOSSES.items() if loss.needs_teacher]
# Losses whose value for a batch is not the mean of its values for the parts, and why.
NOT_A_MEAN = {
    "dist": "correlates each class over the batch",
    "multi_level": "Gram matrices of the batch",
    "sp": "similarities between the images",
    "cc": "correlations between the images",
    "rkd": "distances and angles between the images",
    "pkt": "probabilities of the images being neighbours",
    "crd": "draws its negatives, and remembers",
}


def a_batch(loss: object, count: int = 6, seed: int = 0) -> Batch:
    """A student, two teachers with more channels and larger maps than it has, and labels."""
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return (3 * torch.randn(count, *shape, generator=random)).requires_grad_()

    def outputs(width: int, size: int) -> Outputs:
        features = {}
        for i, where in enumerate(getattr(loss, "layers", None) or ()):
            side = max(size >> i, 1)
            shape = (width,) if where == EMBEDDING else (width + 2 * i, side, side)
            features[key(where)] = (drawn(*shape),)
        return Outputs(drawn(CLASSES), features)

    labels = torch.randint(0, CLASSES, (count,), generator=random)
    return Batch(outputs(4, 8), (outputs(6, 16), outputs(6, 16)), labels, torch.arange(count), epoch=0)


def part(batch: Batch, rows: range) -> Batch:
    which = torch.tensor(rows)
    teachers = tuple(teacher.rows(which) for teacher in batch.teachers)
    labels = None if batch.labels is None else batch.labels[which]
    indices = batch.indices[which]
    return replace(batch, student=batch.student.rows(which), teachers=teachers, labels=labels, indices=indices)


def built(loss: Loss, batch: Batch) -> Callable[[Batch], torch.Tensor]:
    """The loss, or what it builds for such batches; its parameters and draws are the same each time."""
    torch.manual_seed(0)
    if not hasattr(loss, "build"):
        return loss
    labels = torch.randint(0, CLASSES, (SAMPLES,))
    if batch.labels is not None:
        labels[batch.indices] = batch.labels
    lesson = Lesson(part(batch, range(2)), SAMPLES, CLASSES, labels)
    assert not hasattr(loss, "objection") or loss.objection(lesson) is None
    return loss.build(lesson)


def tensors(outputs: Outputs) -> list[torch.Tensor]:
    return [outputs.logits, *(each for found in outputs.features.values() for each in found)]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_finite_number_that_trains_the_student_alone(name):
    batch = a_batch(LOSSES[name]())
    value = built(LOSSES[name](), batch)(batch)
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    reached = [each.grad for each in tensors(batch.student) if each.grad is not None]
    assert all(torch.isfinite(each).all() for each in reached)
    assert sum(each.abs().sum() for each in reached) > 0
    assert all(each.grad is None for teacher in batch.teachers for each in tensors(teacher))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_mean_over_the_batch_unless_it_relates_its_images(name):
    loss = LOSSES[name]()
    batch = a_batch(loss)
    term = built(loss, batch)
    if isinstance(term, nn.Module):
        term.eval()  # an adapter's batch-norm would relate the images
    halves = [term(part(batch, rows)) for rows in (range(3), range(3, 6))]
    if name in NOT_A_MEAN:
        assert not torch.isclose(term(batch), sum(halves) / 2)
    else:
        torch.testing.assert_close(term(batch), sum(halves) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_leaves_its_weight_to_the_training(name):
    schedule = {"warm_up": {"to": 2.0, "epochs": 3.0}}
    loss = OneOf(LOSSES).parse({name: {"weight": schedule}})
    assert as_named(loss)[name]["weight"] == schedule
    batch = a_batch(loss)
    torch.testing.assert_close(built(loss, batch)(batch), built(LOSSES[name](weight=7), batch)(batch))
    with pytest.raises(ValueError, match="weight"):
        LOSSES[name](weight=-1)


@pytest.mark.parametrize("name", [name for name in TAUGHT if not hasattr(LOSSES[name], "build")])
def test_a_distillation_loss_is_smallest_where_the_student_says_what_the_teacher_says(name):
    loss = LOSSES[name]()
    batch = a_batch(loss)
    teacher = batch.teachers[0]

    def at(distance: float) -> float:
        random = torch.Generator().manual_seed(1)

        def away(x: torch.Tensor) -> torch.Tensor:
            return x.detach() + distance * torch.randn(x.shape, generator=random)

        features = {place: tuple(map(away, found)) for place, found in teacher.features.items()}
        return loss(replace(batch, student=Outputs(away(teacher.logits), features), teachers=(teacher,))).item()

    values = [at(distance) for distance in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values)
    assert values[0] < values[1]


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_counts_by_its_share(name):
    loss = LOSSES[name]()
    batch, other = a_batch(loss), a_batch(loss, seed=1)
    first, second = torch.eye(2)[:, :, None].expand(2, 2, 6)
    both = built(loss, batch)(batch)
    torch.testing.assert_close(built(loss, batch)(replace(batch, shares=(first + second) / 2)), both)
    alone = [built(loss, batch)(replace(batch, shares=shares)) for shares in (first, second)]
    torch.testing.assert_close(sum(alone) / 2, both)
    changed = replace(batch, teachers=(batch.teachers[0], other.teachers[1]), shares=first)
    torch.testing.assert_close(built(loss, batch)(changed), alone[0])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_what_it_needs(name):
    loss = LOSSES[name]()
    batch = a_batch(loss)
    less = replace(
        batch,
        teachers=batch.teachers if loss.needs_teacher else (),
        labels=batch.labels if loss.needs_labels else None,
    )
    torch.testing.assert_close(built(loss, less)(less), built(loss, batch)(batch))


# Edits


def edited(name: str, net: Net) -> Net:
    """The net after an edit of this kind, with values as a stage would leave them."""
    if name == "channels":
        pruned = prune_channels(net.module, net.example(1), keep_macs=0.6).module
        return Net(net.spec.edited(Channels.of(pruned, net.module)), pruned)
    edit = made("edits", name)
    result = Net(net.spec.edited(edit), edit(copy.deepcopy(net.module)))
    if any(True for _ in activation_quantizers(result.module)):
        calibrate(result.module, lambda: [torch.randn(8, *net.spec.image, generator=torch.Generator().manual_seed(0))])
    return result


def outputs(net: Net) -> torch.Tensor:
    x = torch.randn(4, *net.spec.image, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return net.module.eval()(x)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_made_again_from_its_description(name, small_net, tmp_path):
    net = edited(name, small_net())
    first, again = (build(type(net.spec).model_validate(net.spec.model_dump(mode="json"))) for _ in range(2))
    shapes = {key: value.shape for key, value in net.module.state_dict().items()}
    assert shapes == {key: value.shape for key, value in first.module.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.module.state_dict().items()}
    save(net, tmp_path)
    assert torch.equal(outputs(load(tmp_path)), outputs(net))


# Data sets


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> dict[str, dict[str, object]]:
    """Small data of every kind that needs no network, by the fields that read them."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(
        folder / "x.npz",
        train_images=pixels[:40],
        train_labels=labels[:40],
        test_images=pixels[40:],
        test_labels=labels[40:],
    )
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / "pictures" / "train" / f"class{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return {
        "digits": {"size": 8},
        "synthetic": {"size": 8, "classes": 3, "samples": 30},
        "npz": {"path": folder / "x.npz", "size": 16},
        "image_folder": {"path": folder / "pictures", "size": 16},
    }


HERE = sorted(set(DATASETS) - {"cifar10", "cifar100"})  # these two are downloaded, see test_data_cifar.py


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", HERE)
def test_a_data_set_keeps_its_word(name, channels, on_disk):
    dataset = DATASETS[name](**on_disk[name], channels=channels)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, again = dataset(3), dataset(3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    size = on_disk[name]["size"]
    assert first.image == (channels, size, size)
    assert len(first.mean) == len(first.std) == channels
    assert first.fingerprint == again.fingerprint
    seen = []
    for split, same in zip((first.train, first.val, first.test), (again.train, again.val, again.test), strict=True):
        images = split.images[np.arange(len(split))]
        assert (images.dtype, tuple(images.shape[1:])) == (torch.uint8, first.image)
        assert len(images) == len(split.images) == len(split) > 0
        assert split.labels.dtype == np.int64
        assert set(split.labels.tolist()) <= set(range(first.classes))
        assert torch.equal(images, same.images[np.arange(len(same))])
        np.testing.assert_array_equal(split.labels, same.labels)
        seen.append({image.numpy().tobytes() for image in images})
    if name != "digits":  # of which a few are drawn alike
        assert len(seen[0] | seen[1] | seen[2]) == sum(map(len, seen))
    assert set(first.train.labels.tolist()) == set(range(first.classes))


@pytest.mark.parametrize("name", HERE)
def test_the_seed_decides_what_is_drawn(name, on_disk):
    one, other = (DATASETS[name](**on_disk[name])(seed) for seed in (0, 1))
    drawn = [data.val.images[np.arange(len(data.val))].numpy().tobytes() for data in (one, other)]
    assert drawn[0] != drawn[1]
    assert one.fingerprint != other.fingerprint


# Stages


@pytest.fixture(scope="session")
def given(small_net) -> Callable:
    """Makes the net that a stage is given, by the stage's name: a search varies one architecture alone."""
    architecture = MobileNetBlocks(
        stem=16, widths=(16, 32), depths=(1, 1), kernels=(3, 3), expansions=(1, 2), strides=(1, 2), head=32
    )
    searchable = Spec(architecture=architecture, classes=4, image=(3, 16, 16))
    return lambda name, seed=0: build(searchable, seed) if name == "search" else small_net(seed)


@pytest.fixture(scope="module")
def env(images, small_net) -> Env:
    return Env(images, (small_net(seed=9),), CPU, seed=5, stage="contract")


@pytest.fixture(scope="module", params=STAGES)
def staged(request, env, given) -> tuple[str, Net, Net]:
    """A stage's name, its net before and after one epoch, teacher and labels beside it."""
    net = given(request.param, seed=1)
    return request.param, net, ready(request.param)(net, env)


def ready(name: str):
    stage = made("stages", name)
    training = stage.training.model_copy(update={"epochs": 1})
    return stage.model_copy(update={"training": training, "losses": (CrossEntropy(weight=0.1), KD())})


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stage_leaves_its_net_and_its_teacher_as_they_were(staged, env, given, small_net):
    name, net, result = staged
    assert same(net.module, given(name, seed=1).module)
    assert net.spec == given(name).spec
    assert same(env.teachers[0].module, small_net(seed=9).module)
    assert all(p.grad is None for p in [*net.module.parameters(), *env.teachers[0].module.parameters()])
    assert result.module is not net.module
    assert not result.module.training


def test_a_stage_trains(staged):
    name, net, result = staged
    assert torch.equal(outputs(net), outputs(result)) == (name not in TRAINING)


def test_a_stage_with_the_same_seed_gives_the_same_bits(staged, env):
    name, net, result = staged
    torch.manual_seed(123)
    again = ready(name)(net, env)
    assert again.spec == result.spec
    assert same(again.module, result.module)


def test_what_a_stage_made_is_rebuilt_from_its_files(staged, tmp_path):
    _, _, result = staged
    save(result, tmp_path)
    found = load(tmp_path)
    assert found.spec == result.spec
    assert torch.equal(outputs(found), outputs(result))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_can_train_nothing(name, env, given):
    stage = ready(name)
    idle = stage.model_copy(update={"training": Training(epochs=0)})
    result = idle(given(name), env)
    assert not result.module.training
    assert outputs(result).shape == (4, 4)


@pytest.mark.parametrize("name", TRAINING)
def test_a_stage_fills_in_its_own_defaults_where_a_file_gives_some_keys(name):
    stage = OneOf(STAGES).parse({name: NEEDED.get(name, {}) | {"training": {"batch_size": 8}}})
    assert stage.training == made("stages", name).training.model_copy(update={"batch_size": 8})
    given = OneOf(STAGES).parse(
        {name: NEEDED.get(name, {}) | {"losses": [{"kd": {"temperature": 2}}, "cross_entropy"]}}
    )
    assert given.losses == (KD(temperature=2), CrossEntropy())


REBUILD = """
import sys, torch
from pathlib import Path
from compress.net import load
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    net = load(Path(folder))
    x = torch.randn(4, *net.spec.image, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.save(net.module.eval()(x), Path(folder) / "outputs.pt")
"""


def test_what_a_stage_made_is_rebuilt_in_another_process(env, small_net, tmp_path):
    before, made_here = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        net = small_net(seed=1)
        for name in ("prune", "quantize"):  # one after the other: both edits in one net
            net = ready(name)(net, env)
            (tmp_path / name).mkdir()
            save(net, tmp_path / name)
            made_here[name] = outputs(net)
    finally:
        torch.set_num_threads(before)
    command = [sys.executable, "-c", REBUILD, *(str(tmp_path / name) for name in made_here)]
    subprocess.run(command, check=True, cwd=Path(compress.__file__).parents[1])
    for name, expected in made_here.items():
        assert torch.equal(torch.load(tmp_path / name / "outputs.pt", weights_only=True), expected)
