"""Importance criteria, against the papers' equations in NumPy and against finite differences."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

from compress.data.base import Data
from compress.errors import ConfigError, ModelError
from compress.losses import CrossEntropy
from compress.pruning.channels import prune_channels
from compress.pruning.groups import ChannelGroup, channel_groups
from compress.pruning.importance import IMPORTANCES, Importance, importances, lamp, written_weights
from compress.recipe import Training
from compress.stages import Prune
from compress.training.train import Progress, fit


class Mixed(nn.Module):
    """A residual addition, a depthwise and a grouped convolution, a linear layer behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 12, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 6, 1, groups=3)
        self.project = nn.Conv2d(6, 8, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(32, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.expand_norm(self.expand(x)))
        y = torch.relu(self.grouped(torch.relu(self.depthwise(y))))
        x = x + self.project_norm(self.project(y))
        x = torch.relu(self.hidden(self.pool(x).flatten(1)))
        return self.head(x)  # type: ignore[no-any-return]


GROUPS = ("depthwise", "grouped", "project", "hidden")  # those that can be cut, by the layer they start at


@pytest.fixture
def net() -> Mixed:
    """Trained-looking: batch-norms that do something."""
    torch.manual_seed(0)
    net = Mixed()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.5)
            nn.init.normal_(layer.bias)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return net


def examples() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 8, 8, generator=random), torch.randint(0, 4, (n,), generator=random)) for n in (5, 5, 3)]


def groups_of(module: nn.Module, size: int = 8) -> list[ChannelGroup]:
    return [group for group in channel_groups(module, torch.zeros(1, 3, size, size)) if not group.reason]


def scores_of(net: nn.Module, importance: str, batches: Iterable | None = None) -> dict[str, np.ndarray]:
    net = copy.deepcopy(net)
    groups = groups_of(net)
    given = None if batches is None else lambda: batches
    found = importances(net, groups, importance, seed=0, examples=given)
    return {group.name: scores for group, scores in zip(groups, found, strict=True)}


def slices(net: Mixed) -> dict[str, list[np.ndarray]]:
    """For each group, the weights of each coupled layer that belong to each channel, (width, n), by hand."""
    w = {path: tensor.numpy() for path, tensor in net.state_dict().items()}

    def rows(path: str) -> np.ndarray:
        return w[f"{path}.weight"].reshape(len(w[f"{path}.weight"]), -1)

    def columns(path: str) -> np.ndarray:
        return np.moveaxis(w[f"{path}.weight"], 1, 0).reshape(w[f"{path}.weight"].shape[1], -1)

    grouped = w["grouped.weight"].reshape(3, 2, 4)  # parts, outputs of a part, inputs of a part
    return {
        "depthwise": [rows("expand"), rows("expand_norm"), np.moveaxis(grouped, 1, 2).reshape(12, 2)],
        "grouped": [rows("grouped"), columns("project")],
        "project": [
            *(rows(path) for path in ("project", "stem", "project_norm", "stem_norm")),
            columns("expand"),
            w["hidden.weight"].reshape(10, 8, 4).transpose(1, 0, 2).reshape(8, 40),
        ],
        "hidden": [rows("hidden"), columns("head")],
    }


def bundled(name: str, channels: np.ndarray) -> np.ndarray:
    """Channels i, i + n/3 and i + 2n/3 go together where three parts of a convolution lose the same ones."""
    return np.mean(np.split(channels, 3), axis=0) if name in ("depthwise", "grouped") else channels


@pytest.mark.parametrize(("importance", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_are_sums_over_slices_averaged_over_coupled_layers(net: Mixed, importance: str, power: int) -> None:
    found = scores_of(net, importance)
    assert tuple(found) == GROUPS
    for name, layers in slices(net).items():
        expected = bundled(name, np.mean([(np.abs(part) ** power).sum(1) for part in layers], axis=0))
        np.testing.assert_allclose(found[name], expected / expected.mean(), rtol=1e-5)


def test_lamp_is_l2_over_what_is_left_of_the_group(net: Mixed) -> None:
    found, expected = scores_of(net, "lamp"), {}
    for name, layers in slices(net).items():
        norms = bundled(name, np.mean([(part**2).sum(1) for part in layers], axis=0))
        expected[name] = np.array([norm / sum(other for other in norms if other >= norm) for norm in norms])
    widths = {"depthwise": 12, "grouped": 6, "project": 8, "hidden": 10}
    mean = sum(widths[name] * expected[name].mean() for name in GROUPS) / sum(widths.values())
    for name in GROUPS:
        np.testing.assert_allclose(found[name], expected[name] / mean, rtol=1e-5)


def test_lamp_by_hand() -> None:
    np.testing.assert_allclose(lamp(np.array([4.0, 1.0, 3.0, 2.0])), [1, 1 / 10, 3 / 7, 2 / 9])
    np.testing.assert_allclose(lamp(np.array([0.0, 2.0, 0.0])), [0, 1, 0])
    np.testing.assert_allclose(lamp(np.zeros(3)), [0, 0, 0])


def test_fpgm_is_the_distance_to_all_other_filters(net: Mixed) -> None:
    found = scores_of(net, "fpgm")
    writers = {"depthwise": ("expand", "depthwise"), "grouped": ("grouped",), "project": ("project", "stem")}
    for name, paths in writers.items():
        distances = []
        for path in paths:
            filters = net.get_submodule(path).weight.detach().numpy()
            filters = filters.reshape(len(filters), -1)
            distances.append([sum(np.linalg.norm(one - other) for other in filters) for one in filters])
        expected = bundled(name, np.mean(distances, axis=0))
        np.testing.assert_allclose(found[name], expected / expected.mean(), rtol=1e-4)


def test_bn_scale_is_the_mean_gamma_and_has_nothing_to_go_by_without(net: Mixed) -> None:
    found = scores_of(net, "bn_scale")
    gamma = (net.project_norm.weight.abs() + net.stem_norm.weight.abs()).detach().numpy() / 2
    np.testing.assert_allclose(found["project"], gamma / gamma.mean(), rtol=1e-5)
    assert found["grouped"] is found["hidden"] is None


# What reads each group, and which of a reader's inputs belong to channel c.
READERS: dict[str, dict[str, Callable[[int], list[int]]]] = {
    "depthwise": {"grouped": lambda c: [c]},
    "grouped": {"project": lambda c: [c]},
    "project": {"expand": lambda c: [c], "hidden": lambda c: [4 * c + i for i in range(4)]},
    "hidden": {"head": lambda c: [c]},
}


def loss_with(net: Mixed, name: str, channel: int, gate: float, inputs: Tensor, labels: Tensor) -> np.ndarray:
    """Each image's cross-entropy in float64 with a channel times `gate`, by scaling the weights that read it."""
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        for path, inputs_of in READERS[name].items():
            layer = net.get_submodule(path)
            for i in inputs_of(channel):
                if path == "grouped":
                    part = i // 4
                    layer.weight[2 * part : 2 * part + 2, i % 4] *= gate
                else:
                    layer.weight[:, i] *= gate
        return F.cross_entropy(net(inputs.double()), labels, reduction="none").numpy()


def differences(net: Mixed, name: str, width: int) -> list[np.ndarray]:
    """dL_n/dz of every image and channel by central differences, an (images, width) array for each batch."""
    step = 1e-5
    return [
        np.stack([
            (loss_with(net, name, c, 1 + step, *batch) - loss_with(net, name, c, 1 - step, *batch)) / (2 * step)
            for c in range(width)
        ], axis=1)
        for batch in examples()
    ]  # fmt: skip


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_gradient_criteria_against_finite_differences(net: Mixed, importance: str) -> None:
    found, expected = scores_of(net, importance, examples()), {}
    for name, width in (("depthwise", 12), ("grouped", 6), ("project", 8), ("hidden", 10)):
        batches = differences(net, name, width)
        if importance == "taylor":
            channels = np.mean([batch.mean(0) ** 2 for batch in batches], axis=0)
        else:
            channels = 0.5 * (np.concatenate(batches) ** 2).mean(0)
        expected[name] = (bundled(name, channels), width)
    total = sum(scores.mean() * width for scores, width in expected.values()) / 36
    for name, (scores, _) in expected.items():
        np.testing.assert_allclose(found[name], scores / total, rtol=1e-3, atol=1e-6)


def test_gradients_by_hand() -> None:
    """Logits W·x of a net that is linear: dL/dz_c = Σ_k (softmax_k - [k = label])·W_kc·x_c."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    (inputs, labels), *_ = examples()
    pixel, head, bias = (p.detach().numpy() for p in (net[0].weight, net[3].weight, net[3].bias))
    features = inputs.numpy().mean((2, 3)) @ pixel[:, :, 0, 0].T
    logits = features @ head.T + bias
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gates = ((softmax - np.eye(4)[labels.numpy()]) @ head) * features
    (taylor,) = scores_of(net, "taylor", [(inputs, labels)]).values()
    (hessian,) = scores_of(net, "hessian", [(inputs, labels)]).values()
    first, second = gates.mean(0) ** 2, (gates**2).mean(0) / 2
    np.testing.assert_allclose(taylor, first / first.mean(), rtol=1e-4)
    np.testing.assert_allclose(hessian, second / second.mean(), rtol=1e-4)


@pytest.mark.parametrize(("importance", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_magnitudes_rank_as_torch_pruning_does(name: str, importance: str, power: int) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=10)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
    groups = groups_of(net, 32)
    theirs = tp.importance.GroupMagnitudeImportance(p=power, normalizer=None, group_reduction="mean")
    for group, scores in zip(groups, importances(net, groups, importance, seed=0), strict=True):
        expected = theirs(group.graph).double().numpy()
        np.testing.assert_array_equal(np.argsort(scores, kind="stable"), np.argsort(expected, kind="stable"))
        np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-12)


@pytest.mark.parametrize("importance", [i for i in IMPORTANCES if i not in ("taylor", "hessian", "lamp")])
def test_scores_that_say_nothing_across_layers_have_mean_1_in_each(net: Mixed, importance: str) -> None:
    for scores in scores_of(net, importance).values():
        assert scores is None or scores.mean() == pytest.approx(1)


@pytest.mark.parametrize("importance", ["taylor", "hessian", "lamp"])
def test_scores_that_compare_over_layers_keep_their_proportions(net: Mixed, importance: str) -> None:
    found = scores_of(net, importance, examples())
    widths = {"depthwise": 12, "grouped": 6, "project": 8, "hidden": 10}
    means = {name: scores.mean() for name, scores in found.items()}
    assert sum(means[name] * width for name, width in widths.items()) / 36 == pytest.approx(1)
    assert max(means.values()) > 1.2 * min(means.values())


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_a_channel_that_nothing_listens_to_is_worth_nothing(net: Mixed, importance: str) -> None:
    with torch.no_grad():
        net.head.weight[:, 3] = 0
    scores = scores_of(net, importance, examples())["hidden"]
    assert scores[3] == 0 <= scores.min()
    assert np.count_nonzero(scores) > 5


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_scoring_leaves_the_module_as_it_was(net: Mixed, importance: str) -> None:
    groups = groups_of(net)
    net.train()
    net.stem_norm.eval()
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        importances(net, groups, importance, seed=0, examples=examples)
    assert all(torch.equal(state[path], tensor) for path, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert (net.training, net.stem_norm.training, net.project_norm.training) == (True, False, True)
    assert not any(layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
@pytest.mark.parametrize("given", [None, list])
def test_gradients_without_images(net: Mixed, importance: str, given: Callable | None) -> None:
    with pytest.raises(ConfigError, match=f"importance: '{importance}' needs gradients, and there are no images"):
        prune_channels(net, torch.zeros(1, 3, 8, 8), keep_macs=0.7, importance=importance, examples=given)


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_gradients_that_are_not_finite_name_the_layer(net: Mixed, importance: str) -> None:
    with torch.no_grad():
        net.head.weight[0, 5] = 1e38
        net.hidden.bias[5] = 1e20
    with pytest.raises(ModelError, match=rf"'{importance}' of the channels of \w+ is not finite"):
        prune_channels(net, torch.zeros(1, 3, 8, 8), keep_macs=0.7, importance=importance, examples=examples)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_criterion_prunes(net: Mixed, importance: str) -> None:
    pruned = prune_channels(net, torch.zeros(1, 3, 8, 8), keep_macs=0.7, importance=importance, examples=examples)
    assert 0.98 * 0.7 <= pruned.macs / pruned.dense_macs <= 0.7


def test_gradient_criteria_keep_what_the_loss_needs() -> None:
    """Labels hang on one input channel alone: the filters that carry it stay, however small their weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[0].weight[:] = 1.0
        net[0].weight[:4] = torch.tensor([0.3, 0.0, 0.0]).view(3, 1, 1)
        net[3].weight[:] = torch.randn(2, 1)  # the same for all: a large feature is of no use in itself
        net[3].weight[:, :4] = torch.tensor([[2.0], [-2.0]])
        net[3].weight[1, 4:] = net[3].weight[0, 4:]
    inputs = torch.randn(32, 3, 4, 4)
    labels = (inputs[:, 0].mean((1, 2)) < 0).long()
    image = torch.zeros(1, 3, 4, 4)
    for importance in ("taylor", "hessian"):
        pruned = prune_channels(
            net, image, keep_macs=0.25, importance=importance, align=1, examples=lambda: [(inputs, labels)]
        )
        assert torch.equal(pruned.module[0].weight, net[0].weight[:4])
    assert not torch.equal(prune_channels(net, image, keep_macs=0.25, align=1).module[0].weight, net[0].weight[:4])


# Training that sorts channels out for bn_scale


def one_step(data: Data, **keys: float) -> tuple[Mixed, float]:
    """The net after one step of plain SGD on all images, and the loss that it started from."""
    torch.manual_seed(0)
    net, events = Mixed(), []
    training = Training(
        epochs=1, batch_size=64, optimizer="sgd", momentum=0.0, schedule="constant", lr=0.1, augment="none", **keys
    )
    fit(
        net,
        data,
        training,
        (CrossEntropy(),),
        device=torch.device("cpu"),
        seed=0,
        progress=Progress("slimming", events.append),
    )
    return net, next(event["loss"] for event in events if event["event"] == "epoch")


def test_bn_l1_adds_the_sum_of_gammas_to_the_loss(images) -> None:
    net, loss = one_step(images)
    slim, slim_loss = one_step(images, bn_l1=0.02)
    assert slim_loss == pytest.approx(loss + 0.02 * (8 + 12 + 8), abs=1e-5)  # every γ starts at 1
    for path, weight in net.named_parameters():
        moved = slim.get_parameter(path) - weight
        expected = -0.1 * 0.02 if path.endswith("norm.weight") else 0.0
        torch.testing.assert_close(moved, torch.full_like(moved, expected), atol=2e-7, rtol=0)


def test_bn_l1_shrinks_gammas_while_a_net_is_trained(images, small_net) -> None:
    def gammas(**keys: float) -> Tensor:
        net = small_net()
        fit(
            net.module,
            images,
            Training(epochs=6, batch_size=16, lr=0.01, **keys),
            (CrossEntropy(),),
            device=torch.device("cpu"),
            seed=0,
            progress=Progress("slimming"),
        )
        return torch.cat([m.weight.abs() for m in net.module.modules() if isinstance(m, nn.BatchNorm2d)])

    free, shrunk = gammas(), gammas(bn_l1=0.01)
    assert shrunk.mean() < 0.95 * free.mean()


def test_bn_l1_without_batch_norm_is_refused_before_anything_is_trained(images) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    with pytest.raises(ConfigError, match=r"stage slim: training\.bn_l1 is a penalty .* and Sequential has none"):
        fit(
            net,
            images,
            Training(epochs=0, bn_l1=1e-4),
            (CrossEntropy(),),
            device=torch.device("cpu"),
            seed=0,
            progress=Progress("slim"),
        )


def test_bn_l1_that_is_not_used_is_not_written_down() -> None:
    """Seeds follow from what is written down; nets that were made before it was there stay as they are."""
    assert "bn_l1" not in Training().model_dump(mode="json")
    assert "bn_l1" not in Prune().model_dump(mode="json")["training"]
    slimming = Training(bn_l1=1e-4)
    assert Training.model_validate(slimming.model_dump(mode="json")) == slimming


WRONG = {
    "too few": (lambda group: torch.ones(3), "a tensor of 32 numbers, none below 0, and gives (3,)"),
    "a column": (lambda group: torch.ones(group.width, 1), "and gives (32, 1)"),
    "a list": (lambda group: [1.0] * group.width, "and gives list"),
    "below 0": (lambda group: -torch.ones(group.width), "and gives negative ones"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_measure_of_ones_own_may_not_give(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, sentence = WRONG[wrong]
    monkeypatch.setitem(IMPORTANCES, "own", Importance("One's own.", scores))
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    with pytest.raises(ConfigError) as caught:
        prune_channels(net, torch.zeros(1, 3, 8, 8), keep_macs=0.5, importance="own")
    assert str(caught.value).startswith("importance: 'own' should give 0 ")
    assert sentence in str(caught.value)


def test_a_measure_of_ones_own_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPORTANCES, "own", Importance("The last.", lambda group: torch.arange(float(group.width))))
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    pruned = prune_channels(net, torch.zeros(1, 3, 8, 8), keep_macs=0.5, importance="own").module
    assert torch.equal(pruned[0].weight, net[0].weight[16:])  # type: ignore[index]


def test_written_weights_are_rows_of_channels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    groups = channel_groups(net, torch.zeros(1, 3, 8, 8))
    (written,) = written_weights(next(group for group in groups if group.name == "0"))
    assert torch.equal(written, net[0].weight.flatten(1))  # type: ignore[union-attr,operator]
