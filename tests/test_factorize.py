"""Low-rank factorisation: the best approximation, the ranks, the target, and the way to an int8 file."""

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from exporting import exported, quantized
from torch import Tensor, nn

import compress
from compress.edits import Channels, Factorized
from compress.edits.macs import count_macs
from compress.edits.sparse import Sparse
from compress.errors import ArtifactError, ConfigError, ModelError
from compress.measure.coverage import coverage
from compress.models import MODELS
from compress.net import Net, Spec, build, save
from compress.pruning.channels import prune_channels
from compress.pruning.groups import channel_groups
from compress.pruning.low_rank import LowRank, Spectrum, factorize
from compress.pruning.plan import Limit
from compress.pruning.ranks import Options, RankSearch, rank_options
from compress.recipe import Training
from compress.stages import Env, Factorize, Prune


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def image(size: int = 32) -> Tensor:
    return torch.zeros(1, 3, size, size)


class Vgg(nn.Module):
    """Convolutions of several kinds and two linear layers, as a VGG has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden, self.head = nn.Linear(256, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.point(self.wide(self.stem(x)))).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def in_window(found: LowRank, keep_macs: float) -> bool:
    return 0.98 * keep_macs <= found.macs / found.dense_macs <= keep_macs


def matrix(layer: nn.Module) -> np.ndarray:
    return layer.weight.detach().double().numpy().reshape(len(layer.weight), -1)


# The edit


def test_a_layer_becomes_two_with_its_geometry() -> None:
    conv = nn.Conv2d(6, 8, (3, 5), (2, 1), (1, 2), (1, 2), padding_mode="reflect")
    net = nn.Sequential(conv, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(64, 9, bias=False)).eval()
    conv.weight.requires_grad_(False)
    names = {name for name, _ in net.named_modules()}
    edit = Factorized.model_validate_json(Factorized(ranks={"0": 3, "3": 2}).model_dump_json())
    result = edit(net)
    assert {name for name, _ in result.named_modules()} - names == {"0.0", "0.1", "3.0", "3.1"}
    first, second = result[0]
    assert (first.kernel_size, first.stride, first.padding, first.dilation) == ((3, 5), (2, 1), (1, 2), (1, 2))
    assert (first.padding_mode, first.out_channels, first.bias) == ("reflect", 3, None)
    assert (second.kernel_size, second.in_channels, second.out_channels) == ((1, 1), 3, 8)
    assert second.bias is not None
    assert [tuple(layer.weight.shape) for layer in result[3]] == [(2, 64), (9, 2)]
    assert result[3][1].bias is None
    assert not result[0].training
    assert not first.weight.requires_grad
    assert result[3][0].weight.requires_grad


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({"hiden": 4}, r"'hiden' of Vgg, which has no such layer\. Did you mean 'hidden'\?"),
        ({"": 4}, "no such layer"),
        ({"pool": 4}, r"'pool' of Vgg, which cannot be factorised: it is a AdaptiveAvgPool2d"),
        ({"hidden": 0}, r"with rank 0, where its 64×256 weights have ranks from 1 to 64"),
        ({"head": 10**12}, r"with rank 1000000000000, where its 10×64 weights have ranks from 1 to 10"),
    ],
)
def test_saved_ranks_that_cannot_be(ranks: dict[str, int], said: str) -> None:
    net = Vgg()
    with pytest.raises(ArtifactError, match=said):
        Factorized(ranks={"stem.0": 8, **ranks})(net)
    assert isinstance(net.stem[0], nn.Conv2d)


def test_saved_ranks_of_a_grouped_convolution() -> None:
    with pytest.raises(ArtifactError, match="cannot be factorised: it has 2 groups"):
        Factorized(ranks={"0": 2})(nn.Sequential(nn.Conv2d(4, 8, 1, groups=2)))


# The approximation


@pytest.mark.parametrize("layer", [nn.Linear(40, 24), nn.Linear(24, 40), nn.Conv2d(5, 24, 3), nn.Conv2d(16, 40, 1)])
def test_the_factors_are_the_nearest_of_their_rank(layer: nn.Module) -> None:
    weight = matrix(layer)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    spectrum = Spectrum("layer", layer, 1)
    np.testing.assert_allclose(spectrum.energy, s**2, rtol=1e-9, atol=1e-12)
    for rank in (1, 7, min(weight.shape)):
        first, second = (factor.numpy() for factor in spectrum.factors(rank))
        assert (first.shape, second.shape) == ((rank, weight.shape[1]), (len(weight), rank))
        np.testing.assert_allclose(second @ first, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-9)
        # Eckart and Young: what is lost are the singular values left out
        np.testing.assert_allclose(np.linalg.norm(weight - second @ first) ** 2, (s[rank:] ** 2).sum(), atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), np.sqrt(s[:rank]), rtol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(second, axis=0), np.sqrt(s[:rank]), rtol=1e-6)


def test_the_network_gets_the_nearest_weights_and_keeps_the_rest() -> None:
    net = Vgg()
    before = copy.deepcopy(net.state_dict())
    found = factorize(net, image(), keep_macs=0.5)
    assert in_window(found, 0.5)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert found.edit.ranks
    for path, rank in found.edit.ranks.items():
        whole, (first, second) = net.get_submodule(path), found.module.get_submodule(path)
        lost = np.linalg.svd(matrix(whole), compute_uv=False)[rank:]
        error = np.linalg.norm(matrix(whole) - matrix(second) @ matrix(first))
        np.testing.assert_allclose(error, np.sqrt((lost**2).sum()), rtol=1e-4)
        if whole.bias is not None:
            assert torch.equal(second.bias, whole.bias)
    rest = [n for n, _ in net.named_parameters() if not any(n.startswith(f"{path}.") for path in found.edit.ranks)]
    assert rest
    assert all(torch.equal(found.module.get_parameter(name), net.get_parameter(name)) for name in rest)


def test_weights_that_are_of_low_rank_lose_nothing() -> None:
    net = Vgg().eval()
    with torch.no_grad():
        for layer in (net.stem[0], net.wide[0], net.point[0], net.hidden, net.head):
            rows, columns = len(layer.weight), layer.weight[0].numel()
            product = torch.randn(rows, 6) @ torch.randn(6, columns) / columns**0.5
            layer.weight.copy_(product.reshape(layer.weight.shape))
    found = factorize(net, image(), keep_macs=0.4, align=8)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), net(x), rtol=1e-3, atol=1e-4)


def test_weights_that_are_all_zero_are_factors_of_zero() -> None:
    layer = nn.Linear(64, 64)
    nn.init.zeros_(layer.weight)
    assert all(not factor.any() for factor in Spectrum("layer", layer, 1).factors(8))
    assert not rank_options(64, 64, 1, np.zeros(64), 8).lost.any()


# The ranks


def test_ranks_to_choose_from_by_hand() -> None:
    energy = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    found = rank_options(8, 24, 10, energy, 2)  # 8·24 = 192 products; at rank 6 they are 6·32 = 192 again
    assert found.ranks == (0, 2, 4)
    np.testing.assert_array_equal(found.macs, [1920, 640, 1280])
    np.testing.assert_allclose(found.lost, [0, -np.log(12 / 16), -np.log(15 / 16)])


def test_a_tenth_of_the_rank_stays() -> None:
    assert min(rank_options(200, 200, 1, np.ones(200), 1).ranks[1:]) == 20
    assert min(rank_options(200, 200, 1, np.ones(200), 16).ranks[1:]) == 32


def test_a_small_matrix_has_no_rank_that_pays() -> None:
    assert rank_options(10, 64, 1, np.ones(10), 16).ranks == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_what_trying_everything_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = []
    for _ in range(4):
        macs = np.concatenate([[1000.0], np.sort(random.choice(np.arange(100, 900), 5, replace=False))])
        layers.append(Options((0, 1, 2, 3, 4, 5), macs, np.concatenate([[0], np.sort(random.random(5))[::-1]])))
    limit = Limit("keep_macs", 0.6, 4500)
    every = list(itertools.product(range(6), repeat=4))
    cost = [500 + sum(layer.macs[i] for layer, i in zip(layers, plan, strict=True)) for plan in every]
    loss = [sum(layer.lost[i] for layer, i in zip(layers, plan, strict=True)) for plan in every]
    expected = min(lost for here, lost in zip(cost, loss, strict=True) if limit.low <= here <= limit.high)
    ranks = RankSearch(layers, 500).best(limit)
    assert ranks is not None
    assert limit.low <= cost[every.index(tuple(ranks))] <= limit.high
    # A bucket is a 5,000th of the cost; two plans in one are the same to it, and the window is 100 of them.
    assert loss[every.index(tuple(ranks))] == pytest.approx(expected, abs=0.02)


# Families


@pytest.mark.parametrize(("name", "keep_macs"), [("resnet18", 0.5), ("mobilenet_v2", 0.5), ("vgg11_bn", 0.7)])
def test_families_meet_the_target_and_rebuild_bit_identically(name: str, keep_macs: float) -> None:
    fast = {"init_weights": False} if name.startswith("vgg") else {}

    def made() -> nn.Module:
        net: nn.Module = torchvision.models.get_model(name, num_classes=10, **fast)
        if name.startswith("vgg"):
            net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
        return net

    dense = made()
    found = factorize(dense, image(), keep_macs=keep_macs)
    assert in_window(found, keep_macs)
    assert found.align == 16
    assert found.macs == count_macs(found.module, image())
    assert found.dense_macs == count_macs(dense, image())
    assert all(rank % 16 == 0 for rank in found.edit.ranks.values())
    assert all(len(found.module.get_submodule(path)) == 2 for path in found.edit.ranks)
    rebuilt = Factorized.model_validate_json(found.edit.model_dump_json())(made())
    rebuilt.load_state_dict(found.module.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), found.module.eval()(x))


def test_notes_name_ranks_and_what_stays() -> None:
    found = factorize(torchvision.models.mobilenet_v2(num_classes=10), image(), keep_macs=0.8)
    aligned, ranks, left = found.notes
    assert aligned == "Ranks are multiples of 16."
    assert all(f"{path} {rank} of " in ranks for path, rank in found.edit.ranks.items())
    assert left.startswith("Not factorised: ")
    assert "features.0.0, features.1.conv.1, features.2.conv.0.0, classifier.1 (no multiple of 16" in left
    assert "features.18.0" not in left
    assert "features.17.conv.1.0 (it is depthwise)" in left


def test_narrow_networks_fall_back_to_a_smaller_alignment_and_say_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = factorize(net, image(8), keep_macs=0.71)
    assert found.align == 4
    assert in_window(found, 0.71)
    assert found.notes[0] == "Ranks are multiples of 4: keep_macs 0.71 cannot be met in multiples of 16."


# With other edits


def test_a_factorised_network_can_be_pruned() -> None:
    dense = Vgg()
    thin = factorize(dense, image(), keep_macs=0.7).module
    assert any(name.endswith(".0") for name in (group.name for group in channel_groups(copy.deepcopy(thin), image())))
    pruned = prune_channels(thin, image(), keep_macs=0.4, reference=dense)
    assert 0.98 * 0.4 <= pruned.macs / count_macs(dense, image()) <= 0.4
    edit = Channels.of(pruned.module, thin)
    assert any(path.endswith((".0", ".1")) for path in edit.sizes)


def test_what_was_pruned_can_be_factorised_and_the_target_counts_from_the_dense_network() -> None:
    dense = Vgg()
    pruned = prune_channels(dense, image(), keep_macs=0.7).module
    found = factorize(pruned, image(), keep_macs=0.4, reference=dense)
    assert found.dense_macs == count_macs(dense, image())
    assert in_window(found, 0.4)
    with pytest.raises(ConfigError, match=r"has only 0\.\d+ of the dense network's already, less than the 0\.9"):
        factorize(pruned, image(), keep_macs=0.9, reference=dense)


@pytest.fixture(scope="module")
def net() -> Net:
    """A MobileNetV1 of half the width."""
    spec = Spec(architecture=MODELS["mobilenet_v1"](width=0.5), classes=4, image=(3, 32, 32))
    return build(spec, seed=1)


def factorised(net: Net, keep_macs: float) -> Net:
    found = factorize(net.module, net.example(1), keep_macs=keep_macs)
    return Net(net.spec.edited(found.edit), found.module)


def test_every_part_has_an_integer_kernel(net: Net) -> None:
    spec = Spec(architecture=net.spec.architecture, classes=10, image=(3, 32, 32))  # its name alone is used here
    thin = factorised(Net(spec, Vgg().eval()), 0.4)
    assert {"stem.0", "wide.0", "point.0", "hidden"} & thin.spec.edits[0].ranks.keys()
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in thin.module.modules())
    assert layers == 5 + len(thin.spec.edits[0].ranks)
    found = coverage(exported(quantized(thin)))
    assert (found.float_convs, found.float_layers, found.islands) == (0, (), ())
    assert len(found.layers) == layers
    assert all(kernel.int8 for kernel in found.layers)


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


def test_it_is_rebuilt_in_another_process_after_every_edit(net: Net, tmp_path: Path) -> None:
    thin = factorised(net, 0.7)
    pruned = prune_channels(thin.module, net.example(1), keep_macs=0.5, reference=net.module).module
    narrow = Net(thin.spec.edited(Channels.of(pruned, thin.module)), pruned)
    made = {"factorised": thin, "pruned": narrow, "quantized": quantized(narrow)}
    x = torch.randn(4, *net.spec.image, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {}
        for name, each in made.items():
            (tmp_path / name).mkdir()
            save(each, tmp_path / name)
            with torch.no_grad():
                expected[name] = each.module.eval()(x)
    finally:
        torch.set_num_threads(before)
    assert "factorized" in json.loads((tmp_path / "quantized" / "net.json").read_text())["edits"][0]
    command = [sys.executable, "-c", REBUILD, *(str(tmp_path / name) for name in made)]
    subprocess.run(command, check=True, cwd=Path(compress.__file__).parents[1])
    for name, outputs in expected.items():
        assert torch.equal(torch.load(tmp_path / name / "outputs.pt", weights_only=True), outputs)


# The stage


def test_the_stage_counts_from_the_dense_network_and_says_what_it_did(images, small_net) -> None:
    said: list[str] = []
    env = Env(images, (), torch.device("cpu"), seed=0, stage="factorize", note=said.append)
    whole = small_net()
    idle = Training(epochs=0)
    pruned = Prune(keep_macs=0.8, training=idle)(whole, env)
    result = Factorize(keep_macs=0.5, training=idle)(pruned, env)
    share = count_macs(result.module, whole.example(1)) / count_macs(whole.module, whole.example(1))
    assert 0.98 * 0.5 <= share <= 0.5
    assert [edit.name for edit in result.spec.edits] == ["channels", "factorized"]
    assert any(note.startswith("Ranks of the layers that are two now: features.") for note in said)
    again = Prune(keep_macs=0.4, training=idle)(result, env)
    assert count_macs(again.module, whole.example(1)) <= 0.4 * count_macs(whole.module, whole.example(1))


def test_the_stage_says_that_zeros_are_lost(images, small_net) -> None:
    said: list[str] = []
    env = Env(images, (), torch.device("cpu"), seed=0, stage="factorize", warn=said.append)
    whole, stage = small_net(), Factorize(keep_macs=0.5, training=Training(epochs=0))
    stage(whole, env)
    assert said == []
    stage(Net(whole.spec.edited(Sparse(layers={"features.26.0": 9, "classifier": 9})), whole.module), env)
    assert said == [
        "the zeros that sparsify left in features.26.0 are gone: two factors have none of their product's; put "
        "sparsify behind factorize"
    ]


@pytest.mark.parametrize("fields", [{"keep_macs": 1.0}, {"keep_macs": 0}, {"align": 0}, {"rank": 3}])
def test_the_stage_refuses(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"less than 1|greater than|no such key"):
        Factorize.model_validate(fields)


# Bad input


@pytest.mark.parametrize("keep_macs", [0.0, 1.0, -0.5, float("nan")])
def test_fraction_out_of_range(keep_macs: float) -> None:
    with pytest.raises(ConfigError, match="more than 0 and less than 1"):
        factorize(Vgg(), image(), keep_macs=keep_macs)


def test_alignment_out_of_range() -> None:
    with pytest.raises(ConfigError, match="ranks become multiples of it, so it is 1 or more, not 0"):
        factorize(Vgg(), image(), keep_macs=0.5, align=0)


def test_patterns_choose_layers() -> None:
    assert set(factorize(Vgg(), image(), keep_macs=0.9, include=["wide.*"]).edit.ranks) == {"wide.0"}
    assert "wide.0" not in factorize(Vgg(), image(), keep_macs=0.9, exclude=["wide.*"]).edit.ranks


def test_pattern_without_a_match_lists_near_names() -> None:
    with pytest.raises(ConfigError, match=r"include: no layer matches 'hidde'\. Near: hidden"):
        factorize(Vgg(), image(), keep_macs=0.5, include=["hidde"])
    with pytest.raises(ConfigError, match=r"exclude: no layer matches '###'\. There are stem\.0, wide\.0"):
        factorize(Vgg(), image(), keep_macs=0.5, exclude=["###"])


def test_depthwise_layers_cannot_be_included() -> None:
    with pytest.raises(
        ConfigError, match=r"matches only what cannot be factorised: features\.1\.conv\.0\.0, it is dep"
    ):
        factorize(torchvision.models.mobilenet_v2(), image(), keep_macs=0.5, include=["features.1.conv.0.*"])


def test_everything_excluded_or_nothing_to_factorise() -> None:
    with pytest.raises(ConfigError, match=r"nothing is left to factorise\. What cannot be: nothing, all is excluded"):
        factorize(Vgg(), image(), keep_macs=0.5, exclude=["*"])
    depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"nothing is left to factorise\. What cannot be: 0 \(it is depthwise\)"):
        factorize(depthwise, image(), keep_macs=0.5)
    tiny = nn.Sequential(nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"keep_macs: 0\.5 cannot be met: no rank saves enough\."):
        factorize(tiny, torch.zeros(1, 2, 8, 8), keep_macs=0.5)


@pytest.mark.parametrize("keep_macs", [0.02, 0.55])
def test_target_that_cannot_be_met_names_the_nearest_that_can(keep_macs: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=rf"{keep_macs} cannot be met with ranks in multiples of 16") as error:
        factorize(net, image(), keep_macs=keep_macs, include=["1"], align=16)
    said = str(error.value)
    assert said.endswith("Or choose a smaller align.")
    nearest = [float(word.rstrip(".")) for word in said.split() if word.startswith("0.")][1:]
    first = 64 * 27 * 30 * 30
    expected = [first + rank * (64 + 576) * 28 * 28 for rank in (16, 32, 48)]
    shares = [cost / (first + 64 * 576 * 28 * 28) for cost in expected]
    wanted = shares[:1] if keep_macs < shares[0] else [shares[0], shares[1]]
    np.testing.assert_allclose(nearest, wanted, atol=1e-4)
    for share in nearest:
        assert in_window(factorize(net, image(), keep_macs=share, include=["1"], align=16), share)


def test_weights_that_are_not_finite() -> None:
    net = Vgg()
    net.hidden.weight.data[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"hidden\.weight holds values that are not finite"):
        factorize(net, image(), keep_macs=0.5)


class Reading(Vgg):
    """Calls a layer and reads its weight as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.wide[0].weight.mean()


class Functional(Vgg):
    """Reads the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(super().forward(x), self.other.weight)


def test_weights_that_are_read_apart_from_their_layer() -> None:
    with pytest.raises(ModelError, match="Reading does not only call its layers, it reads their weights"):
        factorize(Reading(), image(), keep_macs=0.5)
    found = factorize(Functional(), image(), keep_macs=0.5)
    assert any("other (the forward pass does not call it)" in note for note in found.notes)
    assert "other" not in found.edit.ranks
