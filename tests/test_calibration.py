import numpy as np
import pytest
import torch
from torch import nn

from compress.edits.calibration import BINS, best_range, calibrate
from compress.edits.quantizers import Quantizers, activation_quantizers


def error(values: np.ndarray, low: float, high: float) -> float:
    """The mean squared error of rounding values to 256 steps of a range."""
    scale = (high - low) / 255
    zero_point = np.rint(-low / scale)
    whole = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return float(((values - (whole - zero_point) * scale) ** 2).mean())


def samples(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    drawn = {
        "normal": lambda: random.normal(size=100_000),
        "rectified": lambda: np.maximum(random.normal(size=100_000), 0),
        "heavy tails": lambda: random.standard_t(3, size=100_000),
        "one outlier": lambda: np.append(random.normal(size=100_000), 30.0),
        "even": lambda: random.uniform(0, 6, 100_000),
    }
    return drawn[kind]()


@pytest.mark.parametrize("kind", ["normal", "rectified", "heavy tails", "one outlier", "even"])
def test_the_range_is_the_one_that_rounds_best(kind):
    values = samples(kind)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    histogram, _ = np.histogram(values, BINS, (low, high))
    tried = {f: error(values, f * low, f * high) for f in np.linspace(0.3, 1.0, 71)}
    found = best_range(histogram, low, high)
    assert found[0] / low == pytest.approx(found[1] / high) if low else found[0] == 0
    # A bin does not tell that half of all rectified values are exactly zero, which has no error.
    assert error(values, *found) <= 1.07 * min(tried.values())


def test_a_long_tail_is_cut_and_an_even_spread_is_not():
    for kind, cut in (("heavy tails", True), ("even", False)):
        values = samples(kind)
        histogram, _ = np.histogram(values, BINS, (min(values.min(), 0.0), values.max()))
        _, high = best_range(histogram, min(values.min(), 0.0), values.max())
        assert (high < 0.9 * values.max()) == cut


def test_nothing_seen_keeps_the_extremes():
    assert best_range(np.zeros(BINS), 0.0, 0.0) == (0.0, 0.0)
    assert best_range(np.zeros(BINS), -1.0, 2.0) == (-1.0, 2.0)


@pytest.fixture
def rounding() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1))
    module[2].weight.data.zero_()
    module[2].bias.data.zero_()
    return Quantizers()(module)


def test_ranges_are_those_of_unrounded_activations(rounding):
    batches = [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    asked = []

    def again():
        asked.append(1)
        return batches

    calibrate(rounding, again)
    found = dict(activation_quantizers(rounding))
    values = torch.cat(batches).numpy()
    first = found["quantizer_input_1"]
    histogram, _ = np.histogram(values, BINS, (values.min(), values.max()))
    low, high = best_range(histogram, values.min().item(), values.max().item())
    assert first.scale.item() == pytest.approx((high - low) / 255, rel=1e-5)
    conv = rounding.get_submodule("0")
    with torch.no_grad():
        # The weights are rounded; the activations and, as while training, the biases are not.
        hidden = torch.nn.functional.relu6(torch.cat([conv.train()(x, first.scale) for x in batches]))
    histogram, _ = np.histogram(hidden.numpy(), BINS, (0, hidden.max().item()))
    _, high = best_range(histogram, 0.0, hidden.max().item())
    assert found["quantizer__1"].scale.item() == pytest.approx(high / 255, rel=1e-5)
    assert found["quantizer__2"].scale.item() == pytest.approx(1e-12)
    assert len(asked) == 2


def test_calibrating_leaves_no_trace_but_ranges(rounding):
    rounding.train()
    rounding.get_submodule("1").eval()
    modes = [layer.training for layer in rounding.modules()]
    quantizers = dict(activation_quantizers(rounding))
    quantizers["quantizer__2"].enabled = False
    calibrate(rounding, lambda: [torch.randn(4, 3, 6, 6)])
    assert [layer.training for layer in rounding.modules()] == modes
    assert {name: q.enabled for name, q in quantizers.items()} == {n: n != "quantizer__2" for n in quantizers}
    assert not any(q._forward_pre_hooks for q in quantizers.values())


def test_an_error_on_the_way_leaves_no_trace_either(rounding):
    rounding.train()
    with pytest.raises(RuntimeError, match="channels"):
        calibrate(rounding, lambda: [torch.zeros(1, 5, 6, 6)])
    assert rounding.training
    assert all(q.enabled and not q._forward_pre_hooks for _, q in activation_quantizers(rounding))
