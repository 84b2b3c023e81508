"""Channel pruning, its rebuilding from JSON, and the MACs it is measured by."""

import copy
import re

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from compress.edits.channels import Channels
from compress.edits.macs import count_macs
from compress.errors import ArtifactError, ConfigError, ModelError
from compress.models.cifar import MobileNetV2Cifar
from compress.pruning.channels import Prunable, Pruned, prune_channels
from compress.pruning.plan import Limit, ladder, plan_widths

FAMILIES = {
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "resnet18": "fc",
    "resnet50": "fc",
    "vgg11_bn": "classifier.6",
    "efficientnet_b0": "classifier.1",
    "regnet_y_400mf": "fc",
    "densenet121": "classifier",
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Tiny(nn.Module):
    """One group that can be cut: the 32 outputs of `first`."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3))


def build(name: str) -> nn.Module:
    fast = {"init_weights": False} if name.startswith("vgg") else {}
    return torchvision.models.get_model(name, num_classes=10, **fast)


def image(size: int = 32) -> Tensor:
    return torch.zeros(1, 3, size, size)


def in_window(pruned: Pruned, keep_macs: float) -> bool:
    return 0.98 * keep_macs <= pruned.macs / pruned.dense_macs <= keep_macs


def widths(module: nn.Module) -> dict[str, int]:
    layers = module.named_modules()
    return {path: layer.weight.shape[0] for path, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_meet_the_target_aligned_and_rebuild_bit_identically(name: str) -> None:
    dense = build(name)
    before = copy.deepcopy(dense.state_dict())
    pruned = prune_channels(dense, image(), keep_macs=0.5)

    assert in_window(pruned, 0.5)
    assert pruned.macs == count_macs(pruned.module, image())
    assert pruned.dense_macs == count_macs(dense, image())
    old, new = widths(dense), widths(pruned.module)
    cut = {path for path in old if new[path] != old[path]}
    assert cut
    assert all(new[path] % pruned.align == 0 for path in cut)
    assert all(new[path] >= old[path] / 10 for path in cut)
    assert FAMILIES[name] not in cut
    after = dense.state_dict()
    assert all(torch.equal(before[path], after[path]) for path in before)

    edit = Channels.model_validate_json(Channels.of(pruned.module, dense).model_dump_json())
    rebuilt = edit(build(name))
    rebuilt.load_state_dict(pruned.module.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), pruned.module.eval()(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_edit_is_known_before_the_cut(name: str) -> None:
    dense = build(name)
    prunable = Prunable(copy.deepcopy(dense), image())
    limit = Limit("keep_macs", 0.5, count_macs(dense, image()))
    widths = [int(width) for width in plan_widths(prunable.macs, prunable.scored, limit, None).widths]
    planned = prunable.narrowed(widths)
    assert planned.sizes
    # In its order as well: the description of a net that is planned is, to the letter, that of the one that was cut.
    assert planned.model_dump_json() == Channels.of(prunable.cut(widths), dense).model_dump_json()


@pytest.mark.parametrize("keep_macs", [0.9, 0.75, 0.3, 0.15])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "mobilenet_v3_small"])
def test_other_targets_are_met_too(name: str, keep_macs: float) -> None:
    assert in_window(prune_channels(build(name), image(), keep_macs=keep_macs), keep_macs)


@pytest.mark.parametrize("keep_macs", [0.75, 0.5, 0.1])
def test_narrow_network_says_what_its_widths_allow(keep_macs: float) -> None:
    dense = MobileNetV2Cifar()(100, (3, 32, 32))
    pruned = prune_channels(dense, image(), keep_macs=keep_macs)
    assert in_window(pruned, keep_macs)
    old, new = widths(dense), widths(pruned.module)
    assert all(new[path] % pruned.align == 0 for path in old if new[path] != old[path])
    assert any("blocks.0.project.0 (8)" in note for note in pruned.notes)


def test_falls_back_to_a_smaller_alignment_and_says_so() -> None:
    pruned = prune_channels(Tiny(width=24), image(), keep_macs=0.335)
    assert pruned.align == 8
    assert pruned.notes[0] == (
        "The widths of pruned layers are multiples of 8: keep_macs 0.335 cannot be met in multiples of 16."
    )


@pytest.mark.parametrize("align", [1, 4, 8])
def test_alignment_can_be_chosen(align: int) -> None:
    pruned = prune_channels(build("resnet18"), image(), keep_macs=0.6, align=align)
    assert pruned.align == align
    assert in_window(pruned, 0.6)


@pytest.mark.parametrize(
    ("width", "align", "bundle", "expected"),
    [
        (24, 16, 1, [24, 16]),
        (16, 16, 1, [16]),
        (12, 8, 1, [12, 8]),
        (48, 16, 6, [48]),  # the only common multiple is the width itself
        (104, 8, 26, [104]),
        (128, 16, 32, [128, 96, 64, 32]),
        (40, 1, 10, [40, 30, 20, 10]),
        (30, 1, 1, list(range(30, 2, -1))),  # a tenth stays
    ],
)
def test_ladder(width: int, align: int, bundle: int, expected: list[int]) -> None:
    assert ladder(width, align, bundle) == expected


def l2_by_hand(net: Tiny) -> np.ndarray:
    first, gamma, second = (p.detach().numpy() for p in (net.first.weight, net.norm.weight, net.second.weight))
    return ((first**2).sum((1, 2, 3)) + gamma**2 + (second**2).sum((0, 2, 3))) / 3


def l1_by_hand(net: Tiny) -> np.ndarray:
    first, gamma, second = (p.detach().numpy() for p in (net.first.weight, net.norm.weight, net.second.weight))
    return (np.abs(first).sum((1, 2, 3)) + np.abs(gamma) + np.abs(second).sum((0, 2, 3))) / 3


def bn_scale_by_hand(net: Tiny) -> np.ndarray:
    return np.abs(net.norm.weight.detach().numpy())


def fpgm_by_hand(net: Tiny) -> np.ndarray:
    filters = net.first.weight.detach().numpy().reshape(net.first.out_channels, -1)
    return np.sqrt(((filters[:, None] - filters[None]) ** 2).sum(2)).sum(1)


@pytest.mark.parametrize(
    ("importance", "by_hand"),
    [("l2", l2_by_hand), ("l1", l1_by_hand), ("bn_scale", bn_scale_by_hand), ("fpgm", fpgm_by_hand)],
)
def test_the_least_important_channels_go(importance: str, by_hand) -> None:
    net = Tiny()
    nn.init.normal_(net.norm.weight)
    pruned = prune_channels(net, image(), keep_macs=0.5, importance=importance, align=8).module
    kept = np.sort(np.argsort(by_hand(net))[16:])
    assert isinstance(pruned, Tiny)
    assert torch.equal(pruned.first.weight, net.first.weight[kept])
    assert torch.equal(pruned.norm.weight, net.norm.weight[kept])
    assert torch.equal(pruned.second.weight, net.second.weight[:, kept])


def test_removing_dead_channels_changes_nothing() -> None:
    net = Tiny().eval()
    with torch.no_grad():
        for parameter in (net.first.weight, net.norm.weight, net.norm.bias):
            parameter[::2] = 0
        net.second.weight[:, ::2] = 0
    pruned = prune_channels(net, image(), keep_macs=0.5).module
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(pruned(x), net(x), atol=1e-6)


def test_same_network_same_cut() -> None:
    net = build("mobilenet_v2")
    one, two = (prune_channels(net, image(), keep_macs=0.5).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[path], two[path]) for path in one)


def test_random_importance_follows_from_the_seed() -> None:
    net = Tiny()
    one, same, other = (
        prune_channels(net, image(), keep_macs=0.5, importance="random", seed=seed).module.first.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_grouped_convolutions_lose_the_same_channels_of_each_part() -> None:
    net = nn.Sequential(
        conv_bn(3, 32), conv_bn(32, 32, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    )
    pruned = prune_channels(net, image(), keep_macs=0.4)
    grouped = pruned.module.get_submodule("1.0")
    assert isinstance(grouped, nn.Conv2d)
    assert grouped.groups == 4
    assert in_window(pruned, 0.4)


def test_modes_and_frozen_parameters_are_kept() -> None:
    net = Tiny()
    net.norm.eval()
    net.first.weight.requires_grad_(False)
    with torch.no_grad():
        pruned = prune_channels(net, image(), keep_macs=0.5).module
    assert isinstance(pruned, Tiny)
    assert (pruned.training, pruned.norm.training) == (True, False)
    assert (pruned.first.weight.requires_grad, pruned.second.weight.requires_grad) == (False, True)


def test_pruning_twice_counts_from_the_unpruned_network() -> None:
    net = build("resnet18")
    once = prune_channels(net, image(), keep_macs=0.7)
    twice = prune_channels(once.module, image(), keep_macs=0.5, reference=net)
    assert in_window(twice, 0.5)
    assert twice.dense_macs == count_macs(net, image())


def test_include_and_exclude_choose_groups() -> None:
    net = build("resnet18")
    old = widths(net)
    included = widths(prune_channels(net, image(), keep_macs=0.9, include=["layer3.*.conv1"]).module)
    assert {path for path in old if included[path] != old[path]} == {"layer3.0.conv1", "layer3.1.conv1"}
    excluded = widths(prune_channels(net, image(), keep_macs=0.9, exclude=["layer1.*", "fc"]).module)
    # layer1.*.conv2 is added to conv1's output, so that stays as well
    assert all(excluded[path] == old[path] for path in old if path.startswith("layer1") or path == "conv1")


def test_pattern_without_a_match_lists_near_names() -> None:
    with pytest.raises(ConfigError, match=r"include: no layer matches 'layer3\.0\.konv1'\. Near: layer3\.0\.conv1"):
        prune_channels(build("resnet18"), image(), keep_macs=0.5, include=["layer3.0.konv1"])


def test_pattern_far_from_any_layer_lists_some() -> None:
    with pytest.raises(ConfigError, match=r"exclude: no layer matches 'xyz'\. There are first, second"):
        prune_channels(Tiny(), image(), keep_macs=0.5, exclude=["xyz"])


def test_classifier_cannot_be_included() -> None:
    with pytest.raises(ConfigError, match="matches only what cannot be pruned: fc, its outputs are the network's"):
        prune_channels(build("resnet18"), image(), keep_macs=0.5, include=["fc"])


def test_everything_excluded() -> None:
    with pytest.raises(ConfigError, match="nothing is left to prune"):
        prune_channels(Tiny(), image(), keep_macs=0.5, exclude=["*"])


@pytest.mark.parametrize("keep_macs", [0.0, 1.0, -0.5, float("nan")])
def test_fraction_out_of_range(keep_macs: float) -> None:
    with pytest.raises(ConfigError, match="more than 0 and less than 1"):
        prune_channels(Tiny(), image(), keep_macs=keep_macs)


def test_unknown_importance() -> None:
    with pytest.raises(ConfigError, match=r"importance: no 'bnscale' here\. Did you mean 'bn_scale'\?"):
        prune_channels(Tiny(), image(), keep_macs=0.5, importance="bnscale")


def test_alignment_out_of_range() -> None:
    with pytest.raises(ConfigError, match="it is 1 or more, not 0"):
        prune_channels(Tiny(), image(), keep_macs=0.5, align=0)


def test_target_between_two_widths_names_the_nearest_that_can_be_met() -> None:
    with pytest.raises(ConfigError, match=r"0\.6 cannot be met with widths in multiples of 8") as error:
        prune_channels(Tiny(), image(), keep_macs=0.6, align=8)
    nearest = [float(share) for share in re.findall(r"\d\.\d{4}", str(error.value))]
    assert nearest == [0.5, 0.75]  # 16 and 24 of 32 channels
    for keep_macs in nearest:
        assert in_window(prune_channels(Tiny(), image(), keep_macs=keep_macs, align=8), keep_macs)


def test_target_below_the_floor() -> None:
    with pytest.raises(ConfigError, match=r"0\.01 cannot be met; the nearest that can: 0\.1250"):
        prune_channels(Tiny(), image(), keep_macs=0.01)  # a tenth of 32 channels is 3.2, so 4 stay


def test_nothing_aligned_to_cut() -> None:
    with pytest.raises(ConfigError, match=r"cannot be met with widths in multiples of 64\. Let more layers"):
        prune_channels(Tiny(), image(), keep_macs=0.5, align=64)


def test_network_already_below_the_target() -> None:
    with pytest.raises(ConfigError, match=r"has only 0\.2500 of the unpruned network's already"):
        prune_channels(Tiny(), image(), keep_macs=0.5, reference=Tiny(width=128))


def test_weights_that_are_not_finite() -> None:
    net = Tiny()
    with torch.no_grad():
        net.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match=r"norm\.weight of Tiny holds values that are not finite"):
        prune_channels(net, image(), keep_macs=0.5)


def test_layers_that_are_never_called() -> None:
    net = Tiny()
    net.auxiliary = nn.Linear(32, 10)
    with pytest.raises(ModelError, match="forward pass of Tiny does not call auxiliary"):
        prune_channels(net, image(), keep_macs=0.5)


def test_batchnorm_importance_without_batchnorm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match="'bn_scale' has nothing to go by"):
        prune_channels(net, image(), keep_macs=0.5, importance="bn_scale")


def test_shuffled_channels_name_the_family() -> None:
    with pytest.raises(ModelError, match="The channels of ShuffleNetV2 cannot be pruned"):
        prune_channels(build("shufflenet_v2_x0_5"), image(64), keep_macs=0.5)


class Attention(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.first(x)).flatten(2)
        return super().forward(x) + torch.bmm(tokens.transpose(1, 2), tokens).mean((1, 2))[:, None]


def test_attention_is_refused() -> None:
    with pytest.raises(ModelError, match="Attention cannot be pruned: it multiplies activations"):
        prune_channels(Attention(), image(8), keep_macs=0.5)


class FixedReshape(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.second(x * torch.ones(1, 32, 1, 1)).mean((2, 3))


def test_channels_that_are_fixed_in_the_code() -> None:
    with pytest.raises(ModelError, match="The channels of FixedReshape are tied"):
        prune_channels(FixedReshape(), image(), keep_macs=0.5)


class OwnConv(nn.Conv2d):
    pass


def test_layers_of_other_kinds_stay_and_are_named() -> None:
    net = nn.Sequential(conv_bn(3, 32), conv_bn(32, 64), OwnConv(64, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pruned = prune_channels(net, image(), keep_macs=0.8)
    assert widths(pruned.module)["1.0"] == 64
    assert "Not pruned: 1.0, it is tied to 2, a OwnConv, which cannot be resized." in pruned.notes


def test_macs_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 16 x 16 positions of 3·3·3 products for 8 channels
        nn.Conv2d(8, 8, 5, padding=2, groups=8),  # depthwise
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    expected = 256 * 8 * 27 + 256 * 8 * 25 + 256 * 16 * 8 + 160
    assert count_macs(net, image()) == expected
    assert count_macs(net, torch.zeros(5, 3, 32, 32)) == expected
    assert net.training


def test_macs_of_published_networks() -> None:
    with torch.device("meta"):
        x = torch.zeros(1, 3, 224, 224)
        assert round(count_macs(torchvision.models.mobilenet_v2(), x) / 1e6) == 301
        assert round(count_macs(torchvision.models.resnet50(), x) / 1e6) == 4089


def test_macs_of_an_input_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match=r"Tiny does not accept an input of shape \(1, 1, 8, 8\)"):
        count_macs(Tiny(), torch.zeros(1, 1, 8, 8))


def mixed() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, dilation=2, padding_mode="reflect"),
        nn.BatchNorm2d(16, eps=0.1, momentum=0.3, track_running_stats=False),
        nn.PReLU(16),
        nn.GroupNorm(4, 16),
        nn.BatchNorm2d(16, affine=False),
        nn.Flatten(2),
        nn.Linear(225, 8, bias=False),
        nn.LayerNorm(8),
    )


def test_every_resizable_layer_keeps_its_settings() -> None:
    sizes = {"0": (3, 8, 1), "6": (225, 4, 1), "7": (4, 4, 1), "3": (8, 8, 4)}
    sizes |= dict.fromkeys(("1", "2", "4"), (8, 8, 1))
    net = mixed()
    state = torch.get_rng_state()
    net = Channels(sizes=sizes)(net)
    assert torch.equal(state, torch.get_rng_state())
    assert net(torch.randn(2, 3, 32, 32)).shape[1:] == (8, 4)
    assert Channels.of(net).sizes == sizes
    conv, norm = net[0], net[1]
    assert isinstance(conv, nn.Conv2d)
    assert (conv.padding_mode, conv.stride, conv.dilation) == ("reflect", (2, 2), (2, 2))
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.eps, norm.momentum, norm.running_mean) == (0.1, 0.3, None)


def test_only_layers_that_differ_are_kept() -> None:
    net, other = Tiny(), Tiny(16)
    assert set(Channels.of(other, net).sizes) == {"first", "norm", "second"}
    assert Channels.of(net, net).sizes == {}


def test_saved_channels_of_an_unknown_layer() -> None:
    with pytest.raises(ArtifactError, match=r"'frist' of Tiny, which has no such layer\. Did you mean"):
        Channels(sizes={"frist": (3, 8, 1)})(Tiny())


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        ("first", (3, 10**12, 1)),
        ("first", (3, 0, 1)),
        ("first", (3, -8, 1)),
        ("first", (3, 8, 3)),
        ("norm", (8, 16, 1)),
        ("second", (64, 10, 1)),
    ],
)
def test_saved_channels_of_impossible_size(layer: str, size: tuple[int, int, int]) -> None:
    net = Tiny()
    with pytest.raises(ArtifactError, match="belongs to another network or is damaged"):
        Channels(sizes={"first": (3, 8, 1), layer: size})(net)
    assert net.first.out_channels == 32


def test_saved_channels_of_a_layer_that_cannot_be_resized() -> None:
    with pytest.raises(ArtifactError, match="a OwnConv, whose channels cannot be set"):
        Channels(sizes={"0": (3, 4, 1)})(nn.Sequential(OwnConv(3, 8, 1)))
