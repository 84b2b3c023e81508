"""Unstructured sparsity: which weights go and when, that they stay zero, and what the report says of it."""

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import drawn, exported, quantized, run, said
from onnx import numpy_helper
from pydantic import ValidationError
from tiny import Tiny
from torch import nn

from compress.edits import Sparse
from compress.errors import ArtifactError, ConfigError
from compress.net import Net, Spec, build, load, save
from compress.pruning.magnitude import (
    MagnitudePruning,
    after_each_step,
    chosen_layers,
    cubic,
    kept_zero,
    smallest,
    sparse_layers,
)
from compress.recipe import Training
from compress.stages import Env, Prune, Quantize, Sparsify, Train, untrained
from compress.stages.base import teach
from compress.stages.sparsify import Growing

CPU = torch.device("cpu")
HARD = Training(  # all that moves weights besides their gradient
    epochs=3, batch_size=16, lr=0.05, optimizer="sgd", momentum=0.9, weight_decay=0.01, ema=0.9, l1=1e-4, clip=5.0
)
LAYERS = ("stem.0", "middle.0", "back.0", "head")


@dataclass
class Said:
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@pytest.fixture
def net() -> Net:
    return build(Spec(architecture=Tiny(width=16), classes=4, image=(3, 16, 16)), 0)


def ran(stage: Sparsify, net: Net, data, out: Path | None = None) -> tuple[Net, Said]:
    told = Said()
    env = Env(data, (), CPU, 5, "sparsify", note=told.notes.append, warn=told.warnings.append, out=out)
    return stage(net, env), told


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {path: module.get_submodule(path).weight.detach().numpy().copy() for path in LAYERS}


def zeros(module: nn.Module) -> dict[str, int]:
    return {path: int((weight == 0).sum()) for path, weight in arrays(module).items()}


def pruned_by_hand(weights: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The `count` smallest |w| of all arrays together set to zero."""
    magnitudes = np.concatenate([np.abs(weight).ravel() for weight in weights.values()])
    flat = np.concatenate([weight.ravel() for weight in weights.values()])
    flat[np.argsort(magnitudes, kind="stable")[:count]] = 0
    ends = np.cumsum([weight.size for weight in weights.values()])
    parts = np.split(flat, ends[:-1])
    return {path: part.reshape(weight.shape) for (path, weight), part in zip(weights.items(), parts, strict=True)}


# Which weights


def test_the_smallest_of_all_layers_go(net: Net) -> None:
    before = arrays(net.module)
    total = sum(weight.size for weight in before.values())
    MagnitudePruning(chosen_layers(net.module), sparsity=0.7).remove(1.0)
    for path, expected in pruned_by_hand(before, int(0.7 * total)).items():
        np.testing.assert_array_equal(arrays(net.module)[path], expected)


def test_the_smallest_of_each_layer_go(net: Net) -> None:
    before = arrays(net.module)
    MagnitudePruning(chosen_layers(net.module), sparsity=0.7, scope="layer").remove(1.0)
    for path, weight in before.items():
        expected = pruned_by_hand({path: weight}, int(0.7 * weight.size))[path]
        np.testing.assert_array_equal(arrays(net.module)[path], expected)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_all_below_a_threshold_go(net: Net, scope) -> None:
    before = arrays(net.module)
    MagnitudePruning(chosen_layers(net.module), threshold=0.05, scope=scope).remove(1.0)
    for path, weight in before.items():
        np.testing.assert_array_equal(arrays(net.module)[path], np.where(np.abs(weight) < 0.05, 0, weight))


def test_no_layer_is_emptied(net: Net) -> None:
    """Of each layer the largest hundredth stays, even of one whose weights are all smaller than the others'."""
    with torch.no_grad():
        net.module.middle[0].weight *= 1e-3
    before = np.sort(np.abs(arrays(net.module)["middle.0"]).ravel())
    MagnitudePruning(chosen_layers(net.module), sparsity=0.9).remove(1.0)
    left = arrays(net.module)["middle.0"]
    np.testing.assert_array_equal(np.sort(np.abs(left[left != 0])), before[-3:])  # of 256
    assert sum(zeros(net.module).values()) == int(0.9 * sum(w.size for w in arrays(net.module).values()))


def test_the_smallest_among_equals_are_the_first() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0])
    assert smallest(values, 2).tolist() == [False, True, True, False, False]
    assert smallest(values, 4).tolist() == [True, True, True, False, True]
    assert not smallest(values, 0).any()
    drawn_ = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0)).float()
    for count in (1, 50, 133, 200):
        expected = np.zeros(200, bool)
        expected[np.argsort(drawn_.numpy(), kind="stable")[:count]] = True
        np.testing.assert_array_equal(smallest(drawn_, count).numpy(), expected)


def test_a_share_is_met_to_the_weight() -> None:
    layer = nn.Linear(10, 10, bias=False)
    MagnitudePruning({"0": layer}, sparsity=0.29).remove(1.0)
    assert int((layer.weight == 0).sum()) == 29  # and not 28, as 0.29·100 is in floating point


# When


def test_zeros_grow_by_the_cubic_schedule() -> None:
    """s_t = s_f + (s_i - s_f)·(1 - t/T)³, from 10 % that are zero at the start to 80 %."""
    torch.manual_seed(0)
    layer = nn.Linear(100, 10, bias=False)
    with torch.no_grad():
        layer.weight.view(-1)[:100] = 0
    pruning = MagnitudePruning({"0": layer}, sparsity=0.8)
    after = Growing(pruning, steps=24, epochs=3)  # every third step, in the first 48 of 72
    counts = []
    for _ in range(72):
        with torch.no_grad():
            layer.weight += 0.01 * torch.randn_like(layer.weight)  # also those that are zero
        after()
        counts.append(int((layer.weight == 0).sum()))
    times = np.minimum(np.arange(1, 73) // 3 * 3 / 48, 1)
    expected = 1000 * (0.8 + (0.1 - 0.8) * (1 - times) ** 3)
    np.testing.assert_array_equal(counts, np.floor(expected + 1e-6))
    assert cubic(0) == 0
    assert cubic(1) == 1


def test_nothing_removed_comes_back_while_an_optimiser_runs(net: Net) -> None:
    module, pruning = net.module, MagnitudePruning(chosen_layers(net.module), sparsity=0.9)
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    gone = {path: weight == 0 for path, weight in arrays(module).items()}
    with after_each_step(Growing(pruning, steps=8, epochs=3)):
        for _ in range(24):
            module(drawn(8, 3, 16, 16)).square().sum().backward()
            optimizer.step()
            now = {path: weight == 0 for path, weight in arrays(module).items()}
            assert all((now[path] >= gone[path]).all() for path in now)
            gone = now
    assert sum(each.sum() for each in gone.values()) == int(0.9 * sum(each.size for each in gone.values()))
    optimizer.step()
    assert sum(zeros(module).values()) < 100  # outside, nothing holds them


# The stage


@pytest.mark.parametrize("schedule", ["cubic", "one_shot"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_stage_ends_with_exact_zeros_and_keeps_training_the_rest(net: Net, images, schedule, optimizer) -> None:
    training = HARD.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    sparse, told = ran(Sparsify(sparsity=0.8, schedule=schedule, training=training), net, images)
    total = sum(weight.size for weight in arrays(net.module).values())
    assert sum(zeros(sparse.module).values()) == int(0.8 * total)
    (edit,) = sparse.spec.edits
    assert edit == Sparse(layers=zeros(sparse.module))
    before, after = arrays(net.module), arrays(sparse.module)
    assert all((after[path] != before[path]).all() for path in LAYERS)
    assert told.warnings == []


def test_one_shot_takes_the_weights_that_are_small_before_the_training(net: Net, images) -> None:
    sparse, _ = ran(Sparsify(sparsity=0.5, schedule="one_shot", training=HARD), net, images)
    before = arrays(net.module)
    expected = pruned_by_hand(before, int(0.5 * sum(weight.size for weight in before.values())))
    for path, weight in arrays(sparse.module).items():
        np.testing.assert_array_equal(weight == 0, expected[path] == 0)


def test_without_epochs_the_weights_are_only_removed(net: Net, images) -> None:
    sparse, _ = ran(Sparsify(threshold=0.05, training=Training(epochs=0)), net, images)
    for path, weight in arrays(net.module).items():
        np.testing.assert_array_equal(arrays(sparse.module)[path], np.where(np.abs(weight) < 0.05, 0, weight))


def test_patterns_choose_layers(net: Net, images) -> None:
    stage = Sparsify(sparsity=0.5, exclude=("stem.*", "head"), training=Training(epochs=1))
    sparse, told = ran(stage, net, images)
    assert sparse.spec.edits[0].layers == {path: zeros(sparse.module)[path] for path in ("middle.0", "back.0")}
    assert zeros(sparse.module)["stem.0"] == zeros(sparse.module)["head"] == 0
    stage = Sparsify(sparsity=0.5, include=("back.*",), training=Training(epochs=0))
    assert [*ran(stage, net, images)[0].spec.edits[0].layers] == ["back.0"]
    assert told.notes[0].startswith("1,280 of 2,560 weights in 2 layers are zero, 50.0 %")


def test_what_the_report_is_told(net: Net, images, tmp_path: Path) -> None:
    sparse, told = ran(Sparsify(sparsity=0.9, training=Training(epochs=0)), net, images, tmp_path)
    left = {path: (weight.size, int((weight == 0).sum())) for path, weight in arrays(sparse.module).items()}
    total, removed = np.sum([*left.values()], axis=0)
    shares = sorted((100 * zero / size, path) for path, (size, zero) in left.items())
    parameters = sum(p.numel() for p in sparse.module.parameters())
    assert told.notes[0] == (
        f"{removed:,} of {total:,} weights in 4 layers are zero, {100 * removed / total:.1f} % "
        f"({100 * removed / parameters:.1f} % of all parameters): from {shares[0][0]:.1f} % of {shares[0][1]} "
        f"to {shares[-1][0]:.1f} % of {shares[-1][1]}"
    )
    assert "dense runtimes such as ONNX Runtime" in told.notes[1]
    assert "no time is saved" in told.notes[1]
    sizes = []
    for each, name in ((sparse, "sparse"), (net, "dense")):
        (tmp_path / name).mkdir()
        save(each, tmp_path / name)
        content = (tmp_path / name / "weights.safetensors").read_bytes()
        sizes += [len(content), len(zlib.compress(content, 9))]
    assert told.notes[2] == (
        f"its weights take {sizes[0]:,} bytes as float32 (weights.safetensors) and {sizes[1]:,} bytes compressed with "
        f"zlib at level 9; before, {sizes[3]:,}"
    )
    assert sizes[1] < 0.4 * sizes[3]


def test_a_rehearsal_has_no_threshold_to_fail_by(net: Net, images) -> None:
    stage = Sparsify(threshold=100.0)
    with pytest.raises(ConfigError, match=r"threshold: 100 is more than every weight of stem\.0"):
        ran(stage, net, images)
    sparse, told = ran(untrained(stage), net, images)
    assert sum(zeros(sparse.module).values()) > 0
    assert not any("bytes" in note for note in told.notes)


# What comes later


def test_zeros_stay_in_a_net_that_is_trained_again(net: Net, images) -> None:
    sparse, _ = ran(Sparsify(sparsity=0.7, training=Training(epochs=0)), net, images)
    again = load_of(sparse)
    assert [*sparse_layers(again)] == [*LAYERS]
    with kept_zero(sparse_layers(again)):
        teach(again, Env(images, (), CPU, 0, "train"), HARD, losses())
    for path, weight in arrays(again.module).items():
        np.testing.assert_array_equal(weight == 0, arrays(sparse.module)[path] == 0)
        assert (weight[weight != 0] != arrays(sparse.module)[path][weight != 0]).all()


def test_a_net_without_sparsity_is_trained_as_it_was(net: Net, images) -> None:
    with torch.no_grad():
        net.module.head.weight[0] = 0  # by chance, not by an edit
    assert sparse_layers(net) == {}
    other = build(net.spec, 0)
    other.module.load_state_dict(net.module.state_dict())
    teach(other, Env(images, (), CPU, 0, "train"), HARD, losses())
    with kept_zero(sparse_layers(net)):
        teach(net, Env(images, (), CPU, 0, "train"), HARD, losses())
    assert all(torch.equal(a, b) for a, b in zip(net.module.parameters(), other.module.parameters(), strict=True))
    assert (net.module.head.weight[0] != 0).all()


def test_pruning_channels_afterwards_leaves_a_sparse_net(net: Net, images) -> None:
    sparse, _ = ran(Sparsify(sparsity=0.7, training=Training(epochs=0)), net, images)
    pruned = Prune(keep_macs=0.6, align=1, training=Training(epochs=0))(sparse, Env(images, (), CPU, 0, "prune"))
    assert [type(edit).name for edit in pruned.spec.edits] == ["sparse", "channels"]
    assert set(sparse_layers(pruned)) == set(LAYERS)
    assert sum(zeros(pruned.module).values()) > 100
    assert load_of(pruned).spec == pruned.spec


def test_zeros_are_zeros_in_the_files(net: Net, images) -> None:
    """In ONNX Runtime as well, float and int8: batch-norms scale zeros, and grids hold 0 exactly."""
    sparse, _ = ran(Sparsify(sparsity=0.8, training=Training(epochs=1)), net, images)
    x = drawn(4, 3, 16, 16, seed=3)
    wanted = sorted(zeros(sparse.module).values())
    model = exported(sparse)
    np.testing.assert_allclose(run(model, x), said(sparse, x), rtol=1e-3, atol=1e-4)
    assert zeros_of(model, onnx.TensorProto.FLOAT) == wanted
    rounded = quantized(sparse)
    assert set(sparse_layers(rounded)) == set(LAYERS)
    counts = zeros_of(exported(rounded), onnx.TensorProto.INT8)
    assert all(found >= expected for found, expected in zip(counts, wanted, strict=True))


def zeros_of(model: onnx.ModelProto, kind: int) -> list[int]:
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == kind and len(t.dims) > 1]
    return sorted(int((weight == 0).sum()) for weight in weights)


def losses():
    from compress.losses import CrossEntropy

    return (CrossEntropy(),)


def load_of(net: Net) -> Net:
    again = build(type(net.spec).model_validate(net.spec.model_dump(mode="json")))
    again.module.load_state_dict(net.module.state_dict())
    return again


# Bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either sparsity, .* or threshold, .* neither is given"),
        ({"sparsity": 0.5, "threshold": 0.1}, "both is given"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.0}, "greater than 0"),
        ({"threshold": 0.0}, "greater than 0"),
        ({"sparsity": 0.5, "schedule": "linear"}, "cubic"),
    ],
)
def test_a_stage_refuses(fields, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sparsify(**fields)


def test_patterns_without_a_match_list_near_names(net: Net, images) -> None:
    stage = Sparsify(sparsity=0.5, include=("midle.0",), exclude=("xyz",))
    with pytest.raises(ConfigError) as error:
        ran(stage, net, images)
    first, second = str(error.value).splitlines()
    assert first == "include: no layer matches 'midle.0'. Near: middle.0, stem.0."
    assert second == "exclude: no layer matches 'xyz'. There are stem.0, middle.0, back.0, head."


def test_no_layer_is_left(net: Net, images) -> None:
    with pytest.raises(ConfigError, match="include, exclude: no layer is left to remove weights from"):
        ran(Sparsify(sparsity=0.5, exclude=("*",)), net, images)
    with pytest.raises(ConfigError, match="Sequential has no layer to remove weights from"):
        chosen_layers(nn.Sequential(nn.ReLU()))


def test_a_quantized_net_is_refused_before_anything_is_trained(net: Net, images) -> None:
    with pytest.raises(ConfigError, match="stage sparsify: sparsify comes after quantize"):
        ran(untrained(Sparsify(sparsity=0.5)), quantized(net), images)


def test_a_threshold_that_removes_nothing_is_warned_of(net: Net, images) -> None:
    _, told = ran(Sparsify(threshold=1e-12, training=Training(epochs=0)), net, images)
    assert told.warnings == ["no weight was removed: all are larger than the threshold, or the sparsity is too small"]


def test_a_saved_net_that_does_not_fit_its_sparsity(net: Net, tmp_path: Path) -> None:
    for layers, message in (
        ({"midle.0": 3}, r"names 3 weights of the layer 'midle.0' of _Tiny, which has no such layer\. Did you mean"),
        ({"head": 65}, "names 65 weights of the layer 'head' of _Tiny, which has 64"),
    ):
        save(replace(net, spec=net.spec.edited(Sparse(layers=layers))), tmp_path)
        with pytest.raises(ArtifactError, match=message):
            load(tmp_path)


@pytest.mark.parametrize("learn", ["none", "lsq"])
def test_zeros_stay_in_stages_that_train_later(net: Net, images, learn) -> None:
    env = Env(images, (), CPU, 0, "later")
    sparse, _ = ran(Sparsify(sparsity=0.7, training=Training(epochs=0)), net, images)
    trained = Train(training=HARD)(sparse, env)
    assert zeros(trained.module) == zeros(sparse.module)
    rounded = Quantize(learn=learn, training=Training(epochs=2, lr=0.01, batch_size=16))(trained, env)
    assert zeros(rounded.module) == zeros(sparse.module)
    assert all(
        (arrays(rounded.module)[path][weight != 0] != weight[weight != 0]).any()
        for path, weight in arrays(trained.module).items()
    )
