"""Architecture search: the model whose sizes are fields, the space, weight sharing, the stage."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exporting import drawn, exported, quantized, run, said
from pydantic import ValidationError
from torch import nn

from compress.architecture import costs
from compress.architecture.costs import TimeModel
from compress.architecture.judging import Judge, Score
from compress.architecture.methods import METHODS, Annealing, Evolution, Moves, Uniform
from compress.architecture.sharing import InPlace, Shared, part
from compress.architecture.space import Space, choices
from compress.config import OneOf
from compress.data.base import Split
from compress.edits.macs import count_macs
from compress.edits.placement import left_float
from compress.errors import ConfigError, DataError, ModelError
from compress.losses import KD, CrossEntropy
from compress.losses.base import Batch, Outputs
from compress.measure.coverage import coverage, require_int8
from compress.models.mobilenet_blocks import MobileNetBlocks
from compress.net import Net, Spec, build, load, save
from compress.pruning.channels import prune_channels
from compress.recipe import Training
from compress.stages.base import Env, untrained
from compress.stages.search import Search
from compress.training.predicting import accuracy, predict

CPU = torch.device("cpu")
IMAGE = (3, 16, 16)
SMALL = MobileNetBlocks(
    stem=16, widths=(16, 32), depths=(1, 2), kernels=(3, 3), expansions=(1, 2), strides=(1, 2), head=32
)
SPACE = Space(widths=(0.5,), depths=(1, 2), kernels=(3, 5), expansions=(2,), resolutions=(8,))
SHORT = Training(epochs=2, batch_size=16, lr=0.01)


def student(seed: int = 0, **fields) -> Net:
    spec = Spec(architecture=SMALL.model_copy(update=fields), classes=4, image=IMAGE)
    return build(spec, seed)


def around(space: Space = SPACE, align: int = 8):
    return choices(space, SMALL, IMAGE, align)


def macs(net: Net) -> int:
    return count_macs(net.module, net.example(1))


@pytest.fixture
def env(images) -> Env:
    return Env(images, (), CPU, seed=3, stage="search")


# The model


def test_sizes_are_fields():
    net = build(Spec(architecture=MobileNetBlocks(), classes=10, image=(3, 224, 224)))
    layers = [m for m in net.module.modules() if isinstance(m, nn.Conv2d)]
    assert layers[0].stride == (2, 2)
    depthwise = [m for m in layers if m.groups == m.in_channels and m.groups > 1]
    assert len(depthwise) == 1 + 2 + 2 + 3 + 2
    assert [m.out_channels for m in depthwise] == [16, *[64, 128], *[128, 192], *[192, *[384] * 2], *[384, 640]]
    assert net.module.classifier.in_features == 512
    wide = build(Spec(architecture=SMALL.model_copy(update={"kernels": (7, 5)}), classes=4, image=IMAGE))
    sides = [m.kernel_size[0] for m in wide.module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert sides == [7, 5, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernels": [3, 4, 3, 3, 3]}, "odd"),
        ({"widths": [16, 0, 16, 16, 16]}, "greater than or equal to 1"),
        ({"depths": [1, 2]}, "depths has 2 numbers and widths 5"),
        ({"resolution": 4}, "greater than or equal to 8"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        MobileNetBlocks(**fields)


def test_images_too_small_for_the_strides_are_refused():
    message = r"mobilenet_blocks cannot be built for images \(3, 8, 8\): its strides divide a side by 16, and 8 pixels"
    with pytest.raises(ModelError, match=message):
        build(Spec(architecture=MobileNetBlocks(), classes=4, image=(3, 8, 8)))


@pytest.mark.parametrize(("size", "resolution"), [(16, 8), (24, 16), (40, 16), (16, 24)])
def test_the_net_sees_images_scaled_down(size, resolution):
    scaled = build(
        Spec(architecture=SMALL.model_copy(update={"resolution": resolution}), classes=4, image=(3, size, size)), 1
    ).module.eval()
    seen = min(size, resolution)
    plain = build(Spec(architecture=SMALL, classes=4, image=(3, seen, seen)), 1).module.eval()
    x = drawn(2, 3, size, size)
    whole = size // seen  # as far as whole pixels go by their mean, the rest between the nearest pixels
    pooled = x.reshape(2, 3, size // whole, whole, size // whole, whole).mean((3, 5)) if size % whole == 0 else x
    expected = F.interpolate(pooled, (seen, seen), mode="bilinear") if pooled.shape[2] != seen else pooled
    torch.testing.assert_close(scaled(x), plain(expected))


@pytest.mark.parametrize(("size", "resolution", "in_float"), [(16, 8, []), (24, 16, ["scale.0"])])
def test_the_exported_file_is_int8_behind_the_scaling(size, resolution, in_float):
    architecture = SMALL.model_copy(update={"resolution": resolution})
    rounding = quantized(build(Spec(architecture=architecture, classes=4, image=(3, size, size)), 0))
    x = drawn(3, 3, size, size)
    file = exported(rounding)
    np.testing.assert_allclose(run(file, x), said(rounding, x), atol=1e-4)
    found = coverage(file)
    assert [*left_float(rounding.module)] == in_float
    assert all(kernel.int8 for kernel in found.layers)
    assert {kernel.operator for kernel in found.islands} <= {"Resize", "Concat"}
    assert len(require_int8(found, left_float(rounding.module))) == len(in_float)


# The space


def test_a_space_has_the_students_own_values_and_those_given():
    found = around()
    values = {}
    for (field, stage), each in zip(found.places, found.values, strict=True):
        values[f"{field}{'' if stage is None else stage}"] = each
    assert values == {
        "stem": (8, 16), "head": (16, 32), "widths0": (8, 16), "widths1": (16, 32),
        "depths0": (1, 2), "depths1": (1, 2), "kernels0": (3, 5), "kernels1": (3, 5),
        "expansions0": (1, 2), "expansions1": (2,), "resolution": (8, 16),
    }  # fmt: skip
    assert found.size == 2**10
    own = found.architecture(found.own)
    assert own == SMALL.model_copy(update={"resolution": 16})
    assert found.architecture(found.smallest).widths == (8, 16)
    assert found.architecture(found.largest).kernels == (5, 5)


def test_new_widths_are_multiples_of_align_and_odd_own_ones_stay():
    odd = SMALL.model_copy(update={"widths": (20, 50)})
    found = choices(Space(widths=(0.1, 0.5, 0.8)), odd, IMAGE, 16)
    widths = dict(zip(found.places, found.values, strict=True))
    assert widths["widths", 0] == (16, 20)
    assert widths["widths", 1] == (16, 32, 48, 50)  # 5, 25 and 40 to the nearest multiple of 16, at least 16


def test_a_space_without_a_choice_is_refused():
    with pytest.raises(ConfigError, match="the student is the only network in it"):
        around(Space(widths=(), depths=(), kernels=(), expansions=()))


@pytest.mark.parametrize(
    ("side", "message"), [(32, "32 is more than the 16 pixels"), (8, "cannot have 8: its strides")]
)
def test_resolutions_that_images_or_strides_do_not_allow_are_refused(side, message):
    deep = SMALL.model_copy(update={"strides": (4, 4)})
    with pytest.raises(ConfigError, match=message):
        choices(Space(resolutions=(side,)), deep, IMAGE, 8)


def test_multiply_accumulates_are_those_of_the_built_net():
    random, found = np.random.default_rng(0), around()
    for size in (16, 13):
        for rungs in [found.smallest, found.largest, *(found.sampled(random) for _ in range(10))]:
            architecture = found.architecture(rungs)
            net = build(Spec(architecture=architecture, classes=4, image=(3, size, size)))
            assert costs.macs(architecture, 4, (3, size, size)) == macs(net)


def test_the_model_of_times_finds_the_prices_that_made_the_times():
    random, found = np.random.default_rng(1), around()
    networks = [costs.layers(found.architecture(found.sampled(random)), 4, IMAGE) for _ in range(30)]

    def took(network):
        depthwise = sum(layer.macs for layer in network if layer.depthwise)
        return (
            0.02 + 0.004 * len(network) + 3e-7 * (sum(layer.macs for layer in network) - depthwise) + 2e-6 * depthwise
        )

    model = TimeModel.fitted(networks[:20], [took(network) for network in networks[:20]])
    for network in networks[20:]:
        assert model(network) == pytest.approx(took(network), rel=0.02)


# Moves within a limit


def test_moves_keep_within_the_limit_and_change_something():
    random, found = np.random.default_rng(2), around()
    high = 0.4 * costs.macs(SMALL, 4, IMAGE)
    cost = {}

    def fits(rungs):
        cost[rungs] = costs.macs(found.architecture(rungs), 4, IMAGE)
        return cost[rungs] <= high

    moves, rungs = Moves(found, fits), around().smallest
    start = moves.uniform()
    assert fits(start)
    grown = [(*start[:i], r + 1, *start[i + 1 :]) for i, r in enumerate(start) if r < found.largest[i]]
    assert not any(fits(larger) for larger in grown)
    for _ in range(100):
        for move in (moves.mutated(rungs, random), moves.neighbour(rungs, random)):
            assert move != rungs
            assert fits(move)
        child = moves.crossed(move, start, random)
        assert fits(child)
        rungs = move
    assert fits(moves.sampled(random))


@pytest.mark.parametrize(
    "method", [Evolution(population=12, generations=30), Annealing(steps=500, temperature=3.0)], ids=lambda m: m.name
)
def test_methods_find_the_best_of_a_space_where_it_is_known(method):
    found = around()
    wanted = tuple(int(rung) for rung in np.random.default_rng(5).integers([len(v) for v in found.values]))

    def loss(rungs):
        return float(sum(a != b for a, b in zip(rungs, wanted, strict=True)))

    heard = []
    best = [method(Moves(found, lambda _: True), loss, np.random.default_rng(0), heard.append) for _ in range(2)]
    assert best[0].best == best[1].best == wanted
    assert len(best[0].losses) <= method.tries
    assert len(heard) == 2 * len(best[0].losses)


def test_methods_by_name():
    assert OneOf(METHODS).parse({"annealing": {"steps": 3}}) == Annealing(steps=3)
    assert OneOf(METHODS).parse("uniform") == Uniform()


# Weight sharing


def test_a_part_is_the_first_channels_and_the_centre_of_the_kernel():
    whole = torch.arange(4 * 2 * 5 * 5).reshape(4, 2, 5, 5)
    np.testing.assert_array_equal(part(whole, torch.Size((3, 1, 3, 3))), whole.numpy()[:3, :1, 1:4, 1:4])
    assert part(whole, torch.Size((3, 1, 3, 3))).data_ptr() == whole[0, 0, 1, 1:].data_ptr()


def test_a_candidate_runs_on_its_part_of_the_weights_and_normalises_by_the_batch():
    found = around()
    shared, x = Shared(found, 4, IMAGE, seed=1), drawn(8, *IMAGE)
    rungs = found.sampled(np.random.default_rng(4))
    net = shared.net(rungs)
    whole = dict(shared.largest.named_parameters())
    for name, weight in net.module.named_parameters():
        kernel = [(big - small) // 2 for big, small in zip(whole[name].shape, weight.shape, strict=True)][2:]
        at = [slice(0, n) for n in weight.shape[:2]] + [
            slice(s, s + n) for s, n in zip(kernel, weight.shape[2:], strict=True)
        ]
        assert torch.equal(weight, whole[name][tuple(at)])
    torch.testing.assert_close(shared.run(rungs, x), net.module.train()(x))
    assert torch.equal(shared.eval()(x), shared.largest(x))


def test_the_others_learn_what_the_largest_says():
    shared = Shared(around(), 4, IMAGE, seed=1)
    logits = shared.train()(drawn(8, *IMAGE))
    assert len(shared.others) == 4 - 1
    batch = Batch(Outputs(logits), (), torch.zeros(8, dtype=torch.int64), torch.arange(8), 0)
    value = InPlace(shared)(batch)
    p = np.exp(logits.detach().numpy().astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = 0.0
    for other in shared.others:
        z = other.detach().numpy().astype(np.float64)
        expected -= (p * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean()
    assert value.item() == pytest.approx(expected, rel=1e-4)
    logits.retain_grad()
    value.backward()
    assert logits.grad is None
    stem = shared.largest.stem[0].weight.grad
    assert stem[: around().architecture(around().smallest).stem].abs().sum() > 0


def test_batch_norms_get_the_statistics_of_training_images(images, env):
    judge = Judge.of(images, CPU)
    net = student()
    judge.restate(net.module)
    norm = net.module.stem[1]
    x = images.inputs(images.train.images[np.arange(len(images.train))])
    y = F.conv2d(x, net.module.stem[0].weight, stride=1, padding=1).detach().numpy().astype(np.float64)
    np.testing.assert_allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(norm.running_var, y.var((0, 2, 3), ddof=1), rtol=1e-3)
    assert norm.momentum == 0.1
    val = accuracy(predict(net.module, images, images.val, CPU), images.val.labels)
    assert judge.accuracy(net.module) == val


def test_of_networks_as_often_right_the_surer_one_is_better():
    right, sure, unsure, hopeless = Score(98.0, 0.1, 50), Score(96.0, 0.2, 50), Score(96.0, 5.0, 50), Score(96, 1e9, 50)
    assert right.loss < sure.loss < unsure.loss < hopeless.loss < Score(94.0, 0.0, 50).loss
    assert Score(100.0, 0.0, 50).loss == 0


def test_a_score_is_the_accuracy_and_the_cross_entropy_of_the_validation_images(images):
    net = student()
    logits = predict(net.module, images, images.val, CPU).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    score = Judge.of(images, CPU).score(net.module)
    assert score.accuracy == pytest.approx(100 * (logits.argmax(1) == images.val.labels).mean())
    assert score.cross_entropy == pytest.approx(-log_p[np.arange(len(log_p)), images.val.labels].mean(), rel=1e-5)
    with torch.no_grad():
        net.module.classifier.bias.fill_(float("nan"))
    assert Judge.of(images, CPU).score(net.module).cross_entropy == np.inf


# The stage


@pytest.mark.parametrize("scored_by", ["sharing", "training"])
@pytest.mark.parametrize("method", [{"evolution": {"population": 3, "generations": 1}}, {"annealing": {"steps": 4}}])
def test_the_winner_is_the_best_of_those_tried_and_the_same_for_the_same_seed(env, method, scored_by, tmp_path):
    stage = Search(keep_macs=0.6, method=OneOf(METHODS).parse(method), space=SPACE, scored_by=scored_by, align=8,
                   training=SHORT)  # fmt: skip
    events, notes, given = [], [], student()
    before = copy.deepcopy(given.module.state_dict())
    result = stage(given, replace(env, emit=events.append, note=notes.append))
    assert macs(result) <= 0.6 * macs(given)
    tried = [event for event in events if event["event"] == "progress"]
    assert 1 < len(tried) <= stage.method.tries
    assert all(event["macs"] <= 0.6 * macs(given) for event in tried)
    judged = predict(copy.deepcopy(result.module), env.data, env.data.val, CPU)  # which changes the layout of weights
    val = accuracy(judged, env.data.val.labels)
    assert val == pytest.approx(max(event["val_accuracy"] for event in tried)) == tried[-1]["best"]
    assert [event["done"] for event in tried] == [*range(1, len(tried) + 1)]
    assert f"{len(tried)} of the 1.02e+03 networks" in notes[0]
    assert f"the winner {val:.1f} %" in notes[1]
    assert ("epoch" in {event["event"] for event in events}) == (scored_by == "sharing")
    torch.manual_seed(99)
    again = stage(given, env)
    assert again.spec == result.spec
    state = again.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in result.module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in given.module.state_dict().items())
    save(result, tmp_path)
    x = drawn(2, *IMAGE)
    assert not result.module.training
    np.testing.assert_array_equal(said(load(tmp_path), x), said(result, x))


REBUILD = """
import sys, numpy, torch
from pathlib import Path
from compress.net import load
torch.set_num_threads(1)
folder = Path(sys.argv[1])
net = load(folder)
x = torch.randn(2, *net.spec.image, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    numpy.save(folder / "outputs.npy", net.module.eval()(x).numpy())
"""


def test_the_winner_is_rebuilt_in_another_process(env, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = Search(space=SPACE, align=8, method=Annealing(steps=3), training=SHORT)(student(), env)
        expected = said(result, drawn(2, *IMAGE))
    finally:
        torch.set_num_threads(threads)
    save(result, tmp_path)
    subprocess.run([sys.executable, "-c", REBUILD, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), expected)


def test_sharing_ranks_a_crippled_net_behind_a_sound_one(env):
    """What candidates score by shared weights is learnt, and is not all the same."""
    stage = Search(max_macs=1e9, space=SPACE, align=8, training=SHORT.model_copy(update={"epochs": 6}))
    found = stage.choices(student())
    candidates = stage.candidates(found, Judge.of(env.data, CPU), student(), env)
    assert candidates.score(found.largest).accuracy > 60
    assert candidates.score(found.smallest).accuracy > 35


def test_a_rehearsal_gives_a_net_within_the_limit_without_a_search(env):
    events, stage = [], untrained(Search(max_macs=80_000, space=SPACE, align=8))
    result = stage(student(), replace(env, emit=events.append))
    assert macs(result) <= 80_000
    assert isinstance(result.spec.architecture, MobileNetBlocks)
    assert events == []


def test_no_epochs_no_search(env):
    notes = []
    stage = Search(space=SPACE, align=8, training=Training(epochs=0))
    result = stage(student(), replace(env, note=notes.append))
    assert macs(result) <= 0.5 * macs(student())
    assert notes[0].startswith("Not searched")


def test_the_teacher_is_listened_to(env):
    training = SHORT.model_copy(update={"epochs": 1})
    stage = Search(space=SPACE, align=8, method=Evolution(population=2, generations=0), training=training)
    taught = replace(env, teachers=(student(seed=8),))
    alone, with_teacher = (
        stage.model_copy(update={"losses": losses})(student(), taught).module.classifier.weight
        for losses in ((CrossEntropy(),), (CrossEntropy(weight=0.1), KD()))
    )
    assert alone.shape != with_teacher.shape or not torch.equal(alone, with_teacher)


class Clock:
    """Stands for the end of a pipeline: a file takes a microsecond for every thousand MACs, and `slow` times that."""

    int8 = False

    def __init__(self, slow: float = 1.0) -> None:
        self.slow, self.asked = slow, []

    def milliseconds(self, nets):
        self.asked.append([macs(net) for net in nets.values()])
        return {name: self.slow * 1e-6 * macs(net) for name, net in nets.items()}


@pytest.mark.parametrize(
    ("limit", "share"), [({"latency_ratio": 0.5}, 0.5), ({"max_latency_ms": 0.4e-6 * macs(student())}, 0.4)]
)
def test_a_limit_on_time_is_predicted_then_measured(env, limit, share):
    clock, notes = Clock(), []
    stage = Search(**limit, space=SPACE, align=8, method=Annealing(steps=6), training=SHORT)
    result = stage(student(), replace(env, ending=clock, note=notes.append))
    assert macs(result) <= share * macs(student())
    assert macs(result) in clock.asked[-1]
    assert len(clock.asked[0]) <= 12
    assert "model of times" in notes[0]


def test_a_candidate_that_turns_out_slower_than_predicted_is_passed_over(env):
    class Later(Clock):
        def milliseconds(self, nets):
            self.slow = 1.0 if not self.asked else 1.5
            return super().milliseconds(nets)

    high = 0.6e-6 * macs(student())
    stage = Search(
        max_latency_ms=high, space=SPACE, align=8, method=Annealing(steps=12, temperature=50), training=SHORT
    )
    result = stage(student(), replace(env, ending=Later()))
    assert 1.5 * macs(result) <= 0.6 * macs(student())


def test_without_a_search_a_net_is_made_smaller_until_its_file_is_fast_enough(env):
    class Worse(Clock):
        def milliseconds(self, nets):
            first, times = not self.asked, super().milliseconds(nets)
            return {
                name: ms * (1 if first or macs(nets[name]) == macs(student()) else 1.5) for name, ms in times.items()
            }

    clock, stage = Worse(), untrained(Search(latency_ratio=0.6, space=SPACE, align=8))
    result = stage(student(), replace(env, ending=clock))
    assert 1.5 * macs(result) <= 0.6 * macs(student())
    assert clock.asked[-1] == [macs(student()), macs(result)]
    assert len(clock.asked) > 2


def test_time_that_nothing_measures_is_stood_in_for_by_macs(env):
    warnings = []
    stage = untrained(Search(latency_ratio=0.5, space=SPACE, align=8))
    assert macs(stage(student(), replace(env, warn=warnings.append))) <= 0.5 * macs(student())
    assert "multiply-accumulates stood in for time" in warnings[0]


# Bad input


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_macs": 1000}, r"max_macs: 1000 is less than the smallest network of the space takes, \d[\d.e+]* MACs"),
        ({"keep_macs": 0.001}, r"keep_macs: 0.001 is less than .* takes, 0\.\d+ of the student's MACs"),
    ],
)
def test_a_limit_below_the_smallest_net_names_it(env, limit, message):
    for stage in (Search(**limit, space=SPACE, align=8), untrained(Search(**limit, space=SPACE, align=8))):
        with pytest.raises(ConfigError, match=message):
            stage(student(), env)


@pytest.mark.parametrize("limit", [{"max_latency_ms": 1e-6}, {"latency_ratio": 0.01}])
def test_a_time_below_that_of_the_smallest_net_names_it(env, limit):
    stage = Search(**limit, space=SPACE, align=8)
    smallest = macs(Net(student().spec, build(Spec(
        architecture=around().architecture(around().smallest), classes=4, image=IMAGE)).module))  # fmt: skip
    shown = 1e-6 * smallest if "max_latency_ms" in limit else smallest / macs(student())
    with pytest.raises(ConfigError, match=f"takes, {shown:.4g} "):
        stage(student(), replace(env, ending=Clock()))


def test_two_limits_are_refused():
    with pytest.raises(ValidationError, match="max_macs and keep_macs are two ways"):
        Search(max_macs=1e6, keep_macs=0.5)
    assert Search().keep_macs == 0.5


def test_a_net_of_another_kind_is_refused(env, small_net):
    with pytest.raises(
        ConfigError, match="varies the fields of a mobilenet_blocks network, and the student is a mobilen"
    ):
        Search()(small_net(), env)


def test_a_net_that_was_pruned_is_refused(env):
    from compress.edits import Channels

    net = student()
    pruned = prune_channels(net.module, net.example(1), keep_macs=0.6).module
    changed = Net(net.spec.edited(Channels.of(pruned, net.module)), pruned)
    with pytest.raises(ConfigError, match=r"undo what was done to the student before \(channels\); put search first"):
        Search()(changed, env)


def test_no_validation_images(env):
    none = Split(env.data.val.images, env.data.val.labels[:0])
    with pytest.raises(DataError, match="search needs validation images"):
        Search(space=SPACE, align=8, training=SHORT)(student(), replace(env, data=replace(env.data, val=none)))
