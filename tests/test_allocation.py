"""How a cut is shared out: within the limit and aligned by any method, and sparing what matters where that is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.config import OneOf
from compress.data.base import Data, InMemory, Split
from compress.edits.macs import count_macs
from compress.errors import ConfigError
from compress.models.cifar import MobileNetV2Cifar
from compress.pruning.allocation import (
    ALLOCATIONS,
    Annealing,
    Evolution,
    Global,
    Sensitivity,
    Uniform,
    finite,
    least_damage,
    least_important,
)
from compress.pruning.channels import Prunable
from compress.pruning.judging import Judge
from compress.pruning.plan import Limit, PlanSearch, Scored, plan_widths
from compress.pruning.variation import Variation

CPU = torch.device("cpu")
FEW = {"annealing": {"steps": 12}, "evolution": {"population": 4, "generations": 3}, "sensitivity": {"ratios": [0.5]}}
MEASURING = [name for name, each in ALLOCATIONS.items() if each.judges]


def allocation(name: str):
    return OneOf(ALLOCATIONS).parse({name: FEW.get(name, {})})


class Branched(nn.Module):
    """Three groups, one of them held together by an addition and read through a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.last = nn.Sequential(nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(self.depthwise(self.wide(x)))
        return self.head(self.last(x).mean((2, 3)))


@pytest.fixture(scope="module")
def branched() -> Prunable:
    torch.manual_seed(0)
    return Prunable(Branched().eval(), torch.zeros(1, 3, 16, 16))


def judge_of(prunable: Prunable, data: Data, seed: int = 0, emit=lambda event: None) -> Judge:
    judge = Judge.of(prunable, data, CPU, seed, stage="prune", emit=emit)
    judge.images = judge.statistics = 48
    return judge


def macs_limit(prunable: Prunable, share: float) -> Limit:
    return Limit("keep_macs", share, float(prunable.macs(np.zeros((1, len(prunable.groups))))[0]))


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_plan_is_within_the_limit_and_aligned(name, align, branched, images):
    judge, chosen = judge_of(branched, images), allocation(name)
    limit = macs_limit(branched, 0.5)
    planned = plan_widths(branched.macs, branched.scored, limit, align, lambda s, at: chosen(s, at, judge))
    assert 0.98 * limit.high <= planned.cost <= limit.high
    for width, group in zip(planned.widths, branched.groups, strict=True):
        assert width % align == 0 or width == group.width
        assert width >= math.ceil(group.width / 10)
    torch.manual_seed(0)
    fresh = Prunable(Branched().eval(), torch.zeros(1, 3, 16, 16))
    pruned = fresh.cut(planned.widths)
    assert count_macs(pruned, torch.zeros(1, 3, 16, 16)) == planned.cost


@pytest.fixture(scope="module")
def mobilenet(images) -> tuple[Prunable, Judge]:
    torch.manual_seed(0)
    module = MobileNetV2Cifar()(4, (3, 16, 16)).eval()
    prunable = Prunable(module, torch.zeros(1, 3, 16, 16))
    judge = judge_of(prunable, images)
    judge.images = judge.statistics = 4
    return prunable, judge


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_mobilenet_v2_is_planned_within_two_per_cent(name, mobilenet):
    prunable, judge = mobilenet
    chosen = {
        "sensitivity": Sensitivity(ratios=(0.8,)), "annealing": Annealing(steps=3),
        "evolution": Evolution(population=2, generations=1),
    }.get(name) or allocation(name)  # fmt: skip
    limit = macs_limit(prunable, 0.5)
    planned = plan_widths(prunable.macs, prunable.scored, limit, 16, lambda s, at: chosen(s, at, judge))
    assert 0.98 * limit.high <= planned.cost <= limit.high
    assert all(w % 16 == 0 or w == g.width for w, g in zip(planned.widths, prunable.groups, strict=True))


@pytest.mark.parametrize("name", ["annealing", "evolution"])
def test_a_search_is_no_worse_than_what_it_starts_from_and_follows_from_its_seed(name, branched, images):
    judge, limit = judge_of(branched, images), macs_limit(branched, 0.5)
    search = PlanSearch(branched.macs, branched.scored, 1)
    loss = {
        other: judge(search.widths_of(allocation(other)(search, limit, judge))).loss
        for other in ("uniform", "global", "sensitivity", name)
    }
    assert loss[name] <= min(loss.values())
    plans = [allocation(name)(search, limit, judge_of(branched, images, seed)).tolist() for seed in (3, 3, 4)]
    assert plans[0] == plans[1]
    tried = [set(judge_of_seed(branched, images, search, limit, name, seed)) for seed in (3, 4)]
    assert tried[0] != tried[1]


def judge_of_seed(prunable, images, search, limit, name, seed):
    judge = judge_of(prunable, images, seed)
    allocation(name)(search, limit, judge)
    return judge.known


def test_a_search_tells_how_far_it_is(branched, images):
    events = []
    judge = judge_of(branched, images, emit=events.append)
    limit, search = macs_limit(branched, 0.5), PlanSearch(branched.macs, branched.scored, 4)
    Annealing(steps=5)(search, limit, judge)
    assert {event["event"] for event in events} == {"progress"}
    assert {event["stage"] for event in events} == {"prune"}
    kinds = [kind for kind, _ in itertools.groupby(event["doing"] for event in events)]
    assert kinds == ["measuring every group alone", "annealing"]
    for kind in kinds:
        done = [event["done"] for event in events if event["doing"] == kind]
        total = {event["of"] for event in events if event["doing"] == kind}
        assert done == [*range(1, len(done) + 1)]
        assert len(total) == 1
        assert max(done) <= total.pop()


@pytest.mark.parametrize("name", MEASURING)
def test_what_measures_needs_something_to_measure_on(name, branched):
    search = PlanSearch(branched.macs, branched.scored, 4)
    with pytest.raises(ConfigError, match=f"allocation: '{name}' measures networks on images, and none are given"):
        allocation(name)(search, macs_limit(branched, 0.5))


def test_what_cannot_be_met_is_known_before_anything_is_measured(branched, images):
    judge, search = judge_of(branched, images), PlanSearch(branched.macs, branched.scored, 16)
    for name in ALLOCATIONS:
        assert allocation(name)(search, macs_limit(branched, 0.001), judge) is None
    assert not judge.known


# What they go by


class OneMatters(nn.Module):
    """Eight classes, each a bright input channel. `needed` passes every one of them on, `spare` twice as many.

    All filters of `spare` read real signals, but the head looks at the first half only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needed = nn.Conv2d(8, 8, 1, bias=False)
        self.spare = nn.Conv2d(8, 16, 1, bias=False)
        self.head = nn.Linear(16, 8, bias=False)
        with torch.no_grad():
            # Of nearly the same size, so that importance by magnitude sees no difference between the groups.
            self.needed.weight.copy_(torch.diag(1.1 - 0.01 * torch.arange(8.0))[:, :, None, None])
            twice = torch.cat([torch.eye(8), 0.9 * torch.eye(8)])
            self.spare.weight.copy_(twice[:, :, None, None])
            self.head.weight.copy_(torch.cat([10 * torch.eye(8), torch.zeros(8, 8)], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.spare(torch.relu(self.needed(x)))).mean((2, 3)))


def bright_channels() -> Data:
    labels = np.arange(160) % 8
    pixels = torch.zeros(160, 8, 4, 4, dtype=torch.uint8)
    pixels[torch.arange(160), torch.from_numpy(labels)] = 255
    split = Split(InMemory(pixels), labels)
    return Data(split, split, split, (8, 4, 4), tuple("abcdefgh"), (0.0,) * 8, (1.0,) * 8, "bright")


def test_sensitivity_and_searches_spare_the_group_that_matters():
    prunable = Prunable(OneMatters().eval(), torch.zeros(1, 8, 4, 4))
    judge = Judge.of(prunable, bright_channels(), CPU)
    # For widths n and s 16·(8n + ns) + 8s MACs: 3200 as it is, 66 % of them with the 8 and 8 that lose nothing.
    limit = macs_limit(prunable, 0.66)
    search = PlanSearch(prunable.macs, prunable.scored, 1)
    order = [group.name for group in prunable.groups]
    assert order == ["needed", "spare"]

    def widths(chosen):
        return search.widths_of(chosen(search, limit, judge))

    assert judge.dense.accuracy == 100
    assert judge([8, 8]).accuracy == 100
    assert judge([7, 16]).accuracy == 87.5
    assert widths(Uniform())[0] < 8
    for chosen in (Sensitivity(), Annealing(steps=30), Evolution(population=4, generations=5)):
        found = widths(chosen)
        assert found[0] == 8, chosen.name
        assert judge(found).accuracy == 100


def costs_of(groups: int):
    """Every channel costs 1."""
    return lambda removed: 100.0 * groups - removed.sum(-1)


def test_global_takes_the_least_important_channels_of_all_groups():
    random = np.random.default_rng(0)
    scored = [Scored(100, 1, np.sort(random.exponential(size=100)) * scale) for scale in (1.0, 0.2, 3.0)]
    limit = Limit("keep", 0.6, 300.0, 0.999)
    found = PlanSearch(costs_of(3), scored, 1)
    widths = found.widths_of(Global()(found, limit))
    # Independently: the 120 smallest scores of all, none of the ladders being at its end.
    threshold = np.sort(np.concatenate([each.scores for each in scored]))[119]
    expected = [int((each.scores > threshold).sum()) for each in scored]
    assert min(expected) > 10
    assert widths == expected


def test_damage_is_interpolated_and_rises_at_least_as_fast_as_before():
    scored = [Scored(10, 1, np.ones(10)), Scored(10, 1, np.ones(10))]
    search = PlanSearch(costs_of(2), scored, 1)
    losses = {10: 1.0, 5: 3.0, 1: 2.5}

    class Known:
        """Losses by hand: the second group does no harm until it is down to its last channel."""

        dense = type("Judged", (), {"loss": 1.0})

        def __call__(self, widths):
            first, second = widths
            value = losses[first] if second == 10 else {5: 1.0, 1: 1.4}[second]
            return type("Judged", (), {"loss": value})

        def say(self, *figures):
            pass

    first, second = Sensitivity(ratios=(0.5,)).damages(search, Known())
    # 2 nats for the first five channels; that the loss then falls does not make the rest free.
    np.testing.assert_allclose(first, 0.4 * np.arange(10))
    np.testing.assert_allclose(second, [0, 0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 0.4])


def test_steps_go_by_what_is_lost_for_what_is_saved():
    scored = [Scored(4, 1, np.array([1.0, 1, 1, 1])), Scored(4, 1, np.array([2.0, 2, 2, 2]))]

    def costs(removed):
        return 100.0 - removed @ np.array([1.0, 10.0])  # the second group's channels cost ten times as much

    search = PlanSearch(costs, scored, 1)
    start = np.zeros(2, np.int64)
    assert least_important(search, start).tolist() == [1, 0]
    even = np.array([[0, 1, 2, 3.0], [0, 5, 10, 15.0]])  # half a nat for what is saved, against a whole one
    assert least_damage(search, start, even).tolist() == [0, 1]
    nothing = np.zeros((2, 4))  # then importance decides: 1 for 1, 2 for 10
    assert least_damage(search, start, nothing).tolist() == [0, 1]
    end = search.last.copy()
    assert least_damage(search, end, even) is None
    assert least_important(search, end) is None


def test_an_infinite_loss_weighs_more_than_any_other_and_stays_a_number():
    assert finite([0.0, 2.5, float("inf")]).tolist() == [0.0, 2.5, 2500.0]


def test_variations_stay_within_the_limit(branched):
    search, limit = PlanSearch(branched.macs, branched.scored, 1), macs_limit(branched, 0.4)
    variation, random = Variation(search, limit), np.random.default_rng(0)
    seen = [tuple(Uniform()(search, limit).tolist())]
    for _ in range(60):
        mutant = variation.mutated(seen[-1], random)
        assert mutant is not None
        assert mutant != seen[-1]
        seen.append(mutant)
        child = variation.crossed(seen[0], seen[-1], random)
        assert child is not None
        seen.append(child)
    costs = search.cost(np.array(seen))
    assert ((limit.low <= costs) & (costs <= limit.high)).all()
    assert len(set(seen)) > 30


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"sensitivity": {"ratios": [1.0]}}, "less than 1"),
        ({"sensitivity": {"ratios": []}}, "at least 1"),
        ({"annealing": {"steps": 0}}, "greater than or equal to 1"),
        ({"annealing": {"temperature": -1}}, "greater than or equal to 0"),
        ({"evolution": {"population": 1}}, "greater than or equal to 2"),
        ("sensitivty", "Did you mean 'sensitivity'"),
    ],
)
def test_bad_settings_are_refused(raw, said):
    with pytest.raises(ValueError, match=said):
        OneOf(ALLOCATIONS).parse(raw)
