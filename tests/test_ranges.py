import math

import numpy as np
import pytest
import torch

from compress.config import OneOf
from compress.edits.quantizers import ActivationQuantizer
from compress.edits.ranges import BINS, ESTIMATORS, Kl, MinMax, MovingAverage, MovingRange, Mse, Percentile, Seen
from compress.edits.rounding import rounded


def drawn(kind: str, count: int = 100_000) -> np.ndarray:
    random = np.random.default_rng(0)
    kinds = {
        "normal": lambda: random.normal(size=count),
        "rectified": lambda: np.maximum(random.normal(size=count), 0),
        "negative": lambda: -np.abs(random.normal(size=count)),
        "lopsided": lambda: (lambda x: x / (1 + np.exp(-x)))(3 * random.normal(size=count)),
        "heavy tails": lambda: random.standard_t(3, size=count),
        "one outlier": lambda: np.append(random.normal(size=count), 30.0),
        "even": lambda: random.uniform(0, 6, count),
    }
    return kinds[kind]()


KINDS = ["normal", "rectified", "negative", "lopsided", "heavy tails", "one outlier", "even"]


def seen(values: np.ndarray, *, symmetric: bool = False, batches: tuple[tuple[float, float], ...] = ()) -> Seen:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    histogram, _ = np.histogram(values[values != 0], BINS, (low, high))
    smallest, largest = (-128, 127) if symmetric else (0, 255)
    return Seen(histogram, low, high, len(values), batches, symmetric, smallest, largest)


def error(values: np.ndarray, low: float, high: float, *, symmetric: bool = False) -> float:
    """The mean squared error of rounding values to the integers of a range."""
    if symmetric:
        scale = high / 127
        return float(((values - np.clip(np.rint(values / scale), -128, 127) * scale) ** 2).mean())
    scale = (high - low) / 255
    zero_point = np.rint(-low / scale)
    whole = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return float(((values - (whole - zero_point) * scale) ** 2).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_the_range_that_rounds_best(kind, symmetric):
    values = drawn(kind)
    what = seen(values, symmetric=symmetric)
    low, high = (-what.furthest, what.furthest) if symmetric else (what.low, what.high)
    tried = {f: error(values, f * low, f * high, symmetric=symmetric) for f in np.linspace(0.3, 1.0, 71)}
    found = Mse()(what)
    assert found[0] / low == pytest.approx(found[1] / high) if low and high else 0.0 in found
    # Counts in bins tell a little less than the values themselves.
    assert error(values, *found, symmetric=symmetric) <= 1.01 * min(tried.values())


@pytest.mark.parametrize("estimator", [Mse(), Kl(), Percentile(percentile=99.9)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_long_tail_is_cut_and_an_even_spread_is_not(estimator, symmetric):
    for kind, cut in (("heavy tails", True), ("even", False)):
        values = drawn(kind)
        _, high = estimator(seen(values, symmetric=symmetric))
        assert (high < 0.9 * np.abs(values).max()) == cut


def test_min_max_is_all_there_is():
    assert MinMax()(seen(np.array([-1.0, 0.0, 5.0]))) == (-1.0, 5.0)
    assert MinMax()(seen(np.array([2.0, 5.0]))) == (0.0, 5.0)


def test_moving_average_weighs_the_batches_as_in_numpy():
    batches = ((-1.0, 4.0), (-3.0, 6.0), (-2.0, 5.0))
    low, high = MovingAverage(momentum=0.75)(seen(np.array([-3.0, 6.0]), batches=batches))
    weights = np.array([0.75**2, 0.25 * 0.75, 0.25])
    assert (low, high) == (pytest.approx(weights @ [-1, -3, -2]), pytest.approx(weights @ [4, 6, 5]))
    assert MovingAverage()(seen(np.array([1.0, 6.0]), batches=((1.0, 4.0), (2.0, 6.0))))[0] == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.99, 99.0, 90.0])
def test_percentiles_are_those_of_numpy(kind, percentile):
    values = drawn(kind)
    what = seen(values)
    low, high = Percentile(percentile=percentile)(what)
    assert low == pytest.approx(min(np.percentile(values, 100 - percentile), 0), abs=2 * what.width)
    assert high == pytest.approx(max(np.percentile(values, percentile), 0), abs=2 * what.width)
    what = seen(values, symmetric=True)
    low, high = Percentile(percentile=percentile)(what)
    assert high == -low == pytest.approx(np.percentile(np.abs(values), percentile), abs=2 * what.width)


def test_a_percentile_never_cuts_all_there_is():
    rarely = np.zeros(100_000)
    rarely[:3] = 2.0
    assert Percentile(percentile=99.0)(seen(rarely)) == (0.0, 2.0)
    assert Percentile(percentile=99.0)(seen(rarely, symmetric=True)) == (-2.0, 2.0)
    assert Percentile(percentile=100.0)(seen(drawn("normal"))) == pytest.approx(MinMax()(seen(drawn("normal"))))


def divergence(values: np.ndarray, low: float, high: float, scale: float, zero_point: float, grid: tuple) -> float:
    """KL(P‖Q) in the words of Migacz 2017, bin by bin, without any of the repairs."""
    edges = np.linspace(min(values.min(), 0), max(values.max(), 0), BINS + 1)
    centres, counts = (edges[1:] + edges[:-1]) / 2, np.histogram(values[values != 0], edges)[0].astype(float)
    kept = [i for i in range(BINS) if low <= centres[i] <= high]
    p = counts[kept].copy()
    p[0], p[-1] = p[0] + counts[: kept[0]].sum(), p[-1] + counts[kept[-1] + 1 :].sum()
    levels: dict[float, list[int]] = {}
    for place, i in enumerate(kept):
        level = float(np.clip(np.rint(centres[i] / scale) + zero_point, *grid))
        levels.setdefault(level, []).append(place)
    q = np.zeros(len(kept))
    for places in levels.values():
        filled = [place for place in places if p[place] > 0]
        for place in filled:
            q[place] = counts[[kept[p] for p in places]].sum() / len(filled)
    p, q = p / p.sum(), q / q.sum()
    return sum(a * math.log(a / max(b, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("kind", ["normal", "rectified", "negative", "lopsided", "heavy tails"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_kl_is_near_the_least_divergence(kind, symmetric):
    values = drawn(kind)
    low, high = Kl()(seen(values, symmetric=symmetric))

    def of(low: float, high: float) -> float:
        if symmetric:
            return divergence(values, low, high, high / 127, 0, (-128, 127))
        scale = (high - low) / 255
        return divergence(values, low, high, scale, np.rint(-low / scale), (0, 255))

    furthest = np.abs(values).max()
    ends = [(-t, t) if symmetric else (max(low, -t), min(high, t)) for t in np.linspace(0.3, 1.0, 8) * furthest]
    fine = [pair for pair in ends if pair[1] - pair[0] >= 256 * seen(values).width]
    # Up to what chance adds with a hundred thousand counts in two thousand bins.
    assert of(low, high) <= min(of(*pair) for pair in fine) + BINS / (2 * len(values))


@pytest.mark.parametrize("kind", ["normal", "rectified", "even"])
def test_kl_does_not_cut_a_few_values_for_being_few(kind):
    values = drawn(kind, 300)
    low, high = Kl()(seen(values))
    assert high > 0.9 * values.max()
    assert low < 0.9 * min(values.min(), 0) or low == 0


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_seen_keeps_the_extremes(name, symmetric):
    estimator = ESTIMATORS[name]()
    assert estimator(Seen(np.zeros(BINS), 0.0, 0.0, 0, (), symmetric)) == (0.0, 0.0)
    assert estimator(Seen(np.zeros(BINS), -1.0, 2.0, 9, (), symmetric)) == (-1.0, 2.0)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_range_holds_zero_and_has_a_width(name, kind, symmetric):
    values = drawn(kind)
    batches = tuple((part.min(), part.max()) for part in np.array_split(values, 10))
    low, high = ESTIMATORS[name]()(seen(values, symmetric=symmetric, batches=batches))
    assert low <= 0 <= high
    assert low < high
    assert max(-low, high) <= np.abs(values).max()


def test_a_file_names_them():
    assert OneOf(ESTIMATORS).parse({"percentile": {"percentile": 99.5}}) == Percentile(percentile=99.5)
    assert OneOf(ESTIMATORS).parse("moving_average").momentum == 0.9
    with pytest.raises(ValueError, match="less than or equal to 100"):
        OneOf(ESTIMATORS).parse({"percentile": {"percentile": 101}})


def followed(quantizer: ActivationQuantizer, batches: list[torch.Tensor], momentum: float) -> tuple[float, float]:
    """The range that the batches leave, in NumPy."""
    step, zero = quantizer.scale.item(), quantizer.zero_point.item()
    low, high = (quantizer.smallest - zero) * step, (quantizer.largest - zero) * step
    for batch in batches:
        low = momentum * low + (1 - momentum) * batch.min().item()
        high = momentum * high + (1 - momentum) * batch.max().item()
    return low, high


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("bounds", "start"),
    [
        ((-math.inf, math.inf), (-2.0, 3.0)),
        ((0.0, math.inf), (0.0, 4.0)),
        ((0.0, 6.0), (0.0, 6.0)),
        ((-3.0, 5.0), (-3.0, 5.0)),
    ],
)
def test_a_moving_range_is_what_set_range_makes_of_the_averages(activations, bounds, start):
    quantizer, expected = ActivationQuantizer(*bounds, activations), ActivationQuantizer(*bounds, activations)
    quantizer.set_range(*start)
    batches = [5 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    expected.set_range(*followed(quantizer, batches, 0.8))
    moving = MovingRange(quantizer, momentum=0.8)
    for batch in batches:
        moving(batch.requires_grad_(), quantizer)
    torch.testing.assert_close(quantizer.scale, expected.scale, rtol=1e-6, atol=0)
    assert quantizer.zero_point.item() == expected.zero_point.item()
    assert not moving.state_dict()


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 6.0), (0.0, 1.0), (-3.0, 7.3), (-1.7, 0.3), (-0.1, 0.7), (-3.0, math.inf)]
)
def test_no_moving_range_passes_its_bounds_by_a_hair(low, high):
    quantizer = ActivationQuantizer(low, high)
    quantizer.set_range(low, min(high, 9.0))
    moving = MovingRange(quantizer, momentum=0.5)
    for seed in range(50):
        moving(20 * torch.randn(40, generator=torch.Generator().manual_seed(seed)), quantizer)
        scale, zero_point = float(quantizer.scale), quantizer.zero_point.item()
        assert (255 - zero_point) * scale <= high
        assert -zero_point * scale >= low
        # Half a step at the lower end may cost a few at the upper one.
        assert (255 - zero_point) * scale == pytest.approx(min(high, moving.maximum), rel=0.05)


def test_a_frozen_range_stays():
    quantizer = ActivationQuantizer()
    quantizer.set_range(-1.0, 1.0)
    moving = MovingRange(quantizer)
    moving.frozen = True
    before = quantizer.scale.item()
    moving(torch.full((4,), 100.0), quantizer)
    assert quantizer.scale.item() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_reach_a_moving_range(bad):
    quantizer = ActivationQuantizer()
    quantizer.set_range(-1.0, 1.0)
    moving = MovingRange(quantizer, momentum=0.5)
    moving(torch.tensor([bad, 0.5, -0.5]), quantizer)
    assert math.isfinite(quantizer.scale.item())
    assert quantizer.scale.item() == pytest.approx(2 / 255, rel=0.3)


def test_constant_zeros_leave_a_positive_scale():
    quantizer = ActivationQuantizer(0.0)
    quantizer.set_range(0.0, 1.0)
    moving = MovingRange(quantizer, momentum=0.0)
    moving(torch.zeros(4), quantizer)
    assert quantizer.scale.item() > 0
    assert rounded(torch.zeros(4), quantizer.scale, quantizer.zero_point, 0, 255).tolist() == [0, 0, 0, 0]
