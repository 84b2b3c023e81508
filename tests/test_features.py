"""Where in a net a loss looks: stages, the embedding and patterns, found on an example and seen as the net runs."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Tiny
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.models import MODELS
from compress.training.features import Place, Watch, find, watching

# Of shipped nets at 32 pixels: the layer into which each stage goes, the last one before the pooling, with the map that
# is seen there. Sides and channels are those of the papers' tables, for as many halvings as each stem leaves.
STAGES = {
    "resnet18": [("layer2", 64, 32), ("layer3", 128, 16), ("layer4", 256, 8), ("avgpool", 512, 4)],
    "resnet50_cifar": [("layer2", 256, 32), ("layer3", 512, 16), ("layer4", 1024, 8), ("avgpool", 2048, 4)],
    "mobilenet_v1": [
        ("features.3", 64, 32), ("features.7", 128, 16), ("features.11", 256, 8), ("features.23", 512, 4),
        ("pool", 1024, 2),
    ],
    "mobilenet_v2": [
        ("features.2", 16, 32), ("features.4", 24, 16), ("features.7", 32, 8), ("features.14", 96, 4),
        ("features", 1280, 2),
    ],
    "mobilenet_v2_cifar": [("blocks.3", 12, 16), ("blocks.6", 16, 8), ("blocks.13", 48, 4), ("pool", 1280, 2)],
    "mobilenet_v3_small": [
        ("features.1", 16, 32), ("features.2", 16, 16), ("features.4", 24, 8), ("features.9", 48, 4),
        ("avgpool", 576, 2),
    ],
    "vgg11": [
        ("features.2", 64, 32), ("features.5", 128, 16), ("features.10", 256, 8), ("features.15", 512, 4),
        ("features.20", 512, 2),
    ],
    "densenet121": [
        ("features.pool0", 64, 32), ("features.transition1", 256, 16), ("features.transition2", 512, 8),
        ("features.transition3", 1024, 4), ("features", 1024, 2),
    ],
    "efficientnet_b0": [
        ("features.2", 16, 32), ("features.3", 24, 16), ("features.4", 40, 8), ("features.6", 112, 4),
        ("avgpool", 1280, 2),
    ],
}  # fmt: skip
WIDTHS = {"resnet18": 512, "mobilenet_v1": 1024, "mobilenet_v3_small": 1024, "vgg11": 4096, "densenet121": 1024}


@cache
def shipped(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]()(10, (3, 32, 32)).eval()


def tiny(width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(width=width)(4, (3, 16, 16)).eval()


def an_image(size: int = 16, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def seen(module: nn.Module, places: list[Place], images: Tensor) -> tuple[Tensor, ...]:
    """What a watch sees at the places."""
    watch = watching(module, {"here": places}, images)
    with watch.open():
        return watch.outputs(module(images)).features["here"]


def hooks(module: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in module.modules())


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", STAGES)
def test_stages_of_shipped_nets_end_where_the_map_is_halved(name: str, size: int) -> None:
    module, image = shipped(name), torch.zeros(1, 3, size, size)
    expected = STAGES[name]
    places = [find(module, number, image)[0] for number in range(1, len(expected) + 1)]
    assert [place.layer for place in places] == [layer for layer, _, _ in expected]
    with torch.no_grad():
        maps = seen(module, places, image)
    scale = size // 32
    assert [tuple(each.shape[1:]) for each in maps] == [(c, s * scale, s * scale) for _, c, s in expected]
    assert [find(module, number - 1 - len(expected), image)[0] for number in range(1, len(expected) + 1)] == places
    assert hooks(module) == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0"])
def test_what_goes_into_a_stage_is_all_that_the_net_knows_there(name: str) -> None:
    """Blind at that place, it says the same of any image."""
    module, image = shipped(name), an_image(32)
    place = find(module, -2, image)[0]
    assert place.input
    with torch.no_grad():
        before = seen(module, [place], image)[0]
        layer = module.get_submodule(place.layer)
        handle = layer.register_forward_pre_hook(lambda _, taken: (torch.zeros_like(taken[0]),))
        blind = [module(image), module(an_image(32) + 1)]
        handle.remove()
    assert before.shape[2] == 2 * find_side(module, -1, image)
    assert torch.equal(*blind)


def find_side(module: nn.Module, stage: int, image: Tensor) -> int:
    with torch.no_grad():
        return seen(module, find(module, stage, image), image)[0].shape[2]


@pytest.mark.parametrize("name", WIDTHS)
def test_the_embedding_is_what_the_last_linear_layer_multiplies(name: str) -> None:
    module, image = shipped(name), an_image(32)
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        logits = module(image).numpy()
        (found,) = seen(module, find(module, "embedding", image), image)
    assert found.shape == (2, WIDTHS[name])
    weight, bias = last.weight.detach().numpy(), last.bias.detach().numpy()
    assert np.abs(found.numpy() @ weight.T + bias - logits).max() < 1e-4 * max(np.abs(logits).max(), 1)


def test_a_net_without_a_linear_layer_has_no_embedding() -> None:
    with pytest.raises(ConfigError, match=r"it has no linear layer, so nothing is its embedding"):
        find(nn.Sequential(nn.Conv2d(3, 4, 1)), "embedding", an_image())


def test_a_pattern_means_all_layers_that_fit_in_the_order_of_computing() -> None:
    module = shipped("resnet18")
    image = torch.zeros(1, 3, 32, 32)
    names = [place.layer for place in find(module, "layer*.1.conv2", image)]
    assert names == [f"layer{i}.1.conv2" for i in (1, 2, 3, 4)]
    assert find(module, "layer3", image) == [Place("layer3")]
    # A star stands for no dot.
    assert [place.layer for place in find(module, "layer?", image)] == ["layer1", "layer2", "layer3", "layer4"]
    assert [place.layer for place in find(module, "layer1.*", image)] == ["layer1.0", "layer1.1"]


def test_a_layer_that_is_not_there_is_told_with_those_near() -> None:
    with pytest.raises(ConfigError, match=r"no layer 'layr2\.0\.conv1'\. Near: .*layer2\.0\.conv1"):
        find(shipped("resnet18"), "layr2.0.conv1", torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"no layer 'Ω'\. Near: stem\.0, stem\.1, stem\.2"):
        find(tiny(), "Ω", an_image())


@pytest.mark.parametrize("stage", [0, 5, -5])
def test_a_stage_out_of_range_is_told_with_those_there_are(stage: int) -> None:
    with pytest.raises(ConfigError, match=rf"no stage {stage}: it has 4 \(of 32, 16, 8, 4 pixels\)"):
        find(shipped("resnet18"), stage, torch.zeros(1, 3, 32, 32))


def test_a_net_without_maps_has_no_stage() -> None:
    with pytest.raises(ConfigError, match=r"no stage 1: none of its layers gives a map"):
        find(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), 1, an_image())


def test_stages_do_not_depend_on_how_layers_are_wrapped() -> None:
    """A block of convolution and pooling that takes the image knows its full-size map as the same layers alone do."""
    convs = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)]
    flat = nn.Sequential(convs[0], nn.MaxPool2d(2), convs[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wrapped = nn.Sequential(nn.Sequential(convs[0], nn.MaxPool2d(2)), convs[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = an_image()
    for module in (flat, wrapped):
        maps = seen(module, [find(module, stage, image)[0] for stage in (1, 2)], image)
        assert [tuple(each.shape[1:]) for each in maps] == [(4, 16, 16), (6, 8, 8)]
        with pytest.raises(ConfigError, match="it has 2"):
            find(module, 3, image)


def test_a_stem_that_halves_the_image_is_no_stage() -> None:
    assert find(tiny(), 1, an_image()) == [Place("pool", input=True)]
    with pytest.raises(ConfigError, match=r"it has 1 \(of 8 pixels\)"):
        find(tiny(), 2, an_image())


class Overwriting(nn.Module):
    """What comes out of `conv` is overwritten by an activation, what comes out of `norm` by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        y = self.norm(x)
        y += x
        return self.head(F.relu_(y).mean((2, 3)))  # type: ignore[no-any-return]


def test_features_are_seen_as_they_were_before_the_net_overwrote_them() -> None:
    module, image = Overwriting().eval(), an_image()
    conv, norm, act = seen(module, [Place("conv"), Place("norm"), Place("act")], image)
    before = F.conv2d(image, module.conv.weight, module.conv.bias, padding=1)
    assert torch.equal(conv, before)
    assert before.min() < 0
    assert torch.equal(act, before.relu())
    expected = before.relu().detach().numpy() / np.sqrt(1 + 1e-5)
    assert np.abs(norm.detach().numpy() - expected).max() < 1e-6
    # Gradients pass through what was copied.
    conv.sum().backward()
    assert torch.isfinite(module.conv.weight.grad).all()
    assert module.conv.weight.grad.abs().sum() > 0
    assert watching(module, {"": [Place("act"), Place("norm", input=True)]}, image).overwritten == frozenset()


def test_a_residual_blocks_last_norm_is_seen_before_the_sum() -> None:
    module, image = shipped("resnet18"), an_image(32)
    block = module.layer1[0]
    with torch.no_grad():
        taken, given = seen(module, [Place("layer1.0", input=True), Place("layer1.0.bn2")], image)
        expected = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(taken)))))
    assert (given - expected).abs().max() < 1e-5


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_of_a_layer_called_twice_the_last_call_counts() -> None:
    module, image = Twice(), an_image()
    assert find(module, "conv", image) == [Place("conv")]
    taken, given = seen(module, [Place("conv", input=True), Place("conv")], image)
    assert torch.equal(taken, module.conv(image))
    assert torch.equal(given, module.conv(module.conv(image)))


def test_a_watch_sees_only_while_it_is_open_and_holds_nothing_after() -> None:
    module, image = tiny(), an_image()
    watch = Watch(module, {"a": [Place("stem"), Place("back")], "b": [Place("stem")]})
    with watch.open():
        assert hooks(module) == 2  # a place that two losses name is hooked once
        outputs = watch.outputs(module(image))
        assert [len(outputs.features[name]) for name in ("a", "b")] == [2, 1]
        assert outputs.features["a"][0] is outputs.features["b"][0]
        assert watch.seen == {}
        module(image)
        assert watch.seen
    assert (hooks(module), watch.seen) == (0, {})


def test_hooks_go_when_the_net_fails() -> None:
    module = tiny()
    with pytest.raises(RuntimeError):
        find(module, 1, torch.zeros(2, 5, 16, 16))
    assert hooks(module) == 0
    with pytest.raises(RuntimeError):
        watching(module, {"": [Place("stem")]}, torch.zeros(2, 5, 16, 16))
    assert hooks(module) == 0
    with pytest.raises(KeyError), Watch(module, {"": [Place("stem"), Place("gone")]}).open():
        pass
    assert hooks(module) == 0


def test_looking_changes_neither_modes_nor_statistics() -> None:
    module = tiny().train()
    module.back.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    place = find(module, -1, an_image())[0]
    watching(module, {"": [place]}, an_image())
    assert [layer.training for layer in (module, module.stem, module.back)] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_features_of_half_precision_are_given_as_float32() -> None:
    module, image = tiny(), an_image()
    watch = watching(module, {"": [Place("stem")]}, image)
    with watch.open(), torch.autocast("cpu", torch.bfloat16):
        features = watch.outputs(module(image)).features[""][0]
    assert features.dtype == torch.float32
