import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress.edits.rounding as rounding
from compress.edits.calibration import calibrate, fit_weight_clips
from compress.edits.learned import bake, learn_scales, scale_parameters
from compress.edits.placement import Quantizers, insert_quantizers
from compress.edits.quantizers import ActivationQuantizer, activation_quantizers, quantized_layers, weight_scale


def lsq_gradient(x: np.ndarray, gradient: np.ndarray, scale: float, lowest: int, highest: int, n: int) -> float:
    """Equations 3 and 5 of Esser et al. 2020, value by value, times 1/√(N·Q_P)."""
    total = 0.0
    for v, g in zip(x.ravel().tolist(), gradient.ravel().tolist(), strict=True):
        steps = v / scale
        if steps <= lowest:
            total += g * lowest
        elif steps >= highest:
            total += g * highest
        else:
            total += g * (-steps + np.rint(steps))
    return total / math.sqrt(n * highest)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["cpu", "elsewhere"])
def device(request, monkeypatch):
    """The second way of computing is that of a GPU, without one."""
    if request.param == "elsewhere":
        monkeypatch.setattr(rounding, "on_cpu", lambda x: False)


GRIDS = [("uint8", 0.0, (0.0, 2.0)), ("uint8", -math.inf, (-1.0, 2.0)), ("int8", -math.inf, (-1.5, 1.5))]


def learning(activations: str, low: float, ends: tuple[float, float], high: float = math.inf) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(low, high, activations).train()
    quantizer.set_range(*ends)
    learn_scales(nn.Sequential(quantizer), "lsq")
    return quantizer


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("activations", "low", "ends"), GRIDS)
def test_the_gradient_of_an_activations_scale_is_that_of_the_paper(activations, low, ends):
    quantizer = learning(activations, low, ends)
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    x, gradient = numbers(5, 3, 8, 8).requires_grad_(), numbers(5, 3, 8, 8, seed=1)
    quantizer(x).backward(gradient)
    lowest, highest = quantizer.smallest - zero_point, quantizer.largest - zero_point
    expected = lsq_gradient(x.detach().numpy(), gradient.numpy(), scale, lowest, highest, n=3 * 8 * 8)
    # The parameter is the scale in units of the calibrated one, and its gradient is divided by the unit.
    (factor,) = scale_parameters(quantizer)
    assert factor.item() == 1
    assert factor.grad.item() * scale == pytest.approx(expected, rel=1e-4)
    inside = (x.detach() / scale > lowest) & (x.detach() / scale < highest)
    torch.testing.assert_close(x.grad, gradient * inside)


@pytest.mark.parametrize(("activations", "low", "ends"), GRIDS)
def test_the_gradient_is_that_of_finite_differences_with_rounding_held_still(activations, low, ends):
    quantizer = learning(activations, low, ends)
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    lowest, highest = quantizer.smallest - zero_point, quantizer.largest - zero_point
    x, gradient = numbers(5, 7).requires_grad_(), numbers(5, 7, seed=1)
    values, weights = x.detach().double().numpy(), gradient.double().numpy()
    offset = np.rint(values / scale) - values / scale

    def surrogate(s: float) -> float:
        # Rounding as adding a constant, which is what straight-through says it is.
        return float((weights * s * np.clip(values / s + offset, lowest, highest)).sum())

    step = 1e-4 * scale
    expected = (surrogate(scale + step) - surrogate(scale - step)) / (2 * step)
    quantizer(x).backward(gradient)
    (factor,) = scale_parameters(quantizer)
    assert factor.grad.item() * scale * math.sqrt(7 * highest) == pytest.approx(expected, rel=1e-3)


def test_plain_gradient_descent_moves_the_scale_as_if_it_were_the_parameter():
    quantizer = learning("uint8", 0.0, (0.0, 2.0))
    scale, x, gradient = quantizer.scale.item(), numbers(4, 50), numbers(4, 50, seed=1)
    optimizer = torch.optim.SGD(scale_parameters(quantizer), lr=1e-3)
    quantizer(x).backward(gradient)
    optimizer.step()
    bake(nn.Sequential(quantizer))
    moved = lsq_gradient(x.numpy(), gradient.numpy(), scale, 0, 255, n=50)
    assert quantizer.scale.item() - scale == pytest.approx(-1e-3 * moved, rel=1e-2)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_learning_scales_lessen_the_error(activations):
    quantizer = learning(activations, -math.inf, (-20.0, 20.0))
    x = numbers(8, 500)
    optimizer = torch.optim.Adam(scale_parameters(quantizer), lr=0.02)

    def error() -> float:
        return float((quantizer(x).detach() - x).square().mean())

    before = error()
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    bake(nn.Sequential(quantizer))
    assert error() < before / 5
    assert quantizer.scale.item() < 0.7 * 40 / 255


@pytest.mark.parametrize("method", ["lsq", "pact"])
@pytest.mark.parametrize("high", [6.0, 1.0])
def test_a_learnt_range_never_passes_its_bounds(method, high):
    quantizer = ActivationQuantizer(0.0, high).train()
    quantizer.set_range(0.0, 0.9 * high)
    learn_scales(nn.Sequential(quantizer), method)
    (factor,) = scale_parameters(quantizer)
    for value in (3.0, 1.2, -5.0, 0.0):
        factor.data.fill_(value)
        quantizer(numbers(2, 3).relu())
        assert 255 * float(quantizer.scale) <= high
        assert quantizer.scale.item() > 0
    factor.data.fill_(3.0)
    bake(nn.Sequential(quantizer))
    assert 255 * float(quantizer.scale) == pytest.approx(high)
    assert 255 * float(quantizer.scale) <= high


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_pact_learns_the_upper_end_as_in_the_paper(activations):
    quantizer = ActivationQuantizer(0.0, math.inf, activations).train()
    quantizer.set_range(0.0, 1.0)
    learn_scales(nn.Sequential(quantizer), "pact")
    steps = 255 if activations == "uint8" else 127
    alpha = steps * quantizer.scale.item()
    x, gradient = numbers(4, 60).relu().requires_grad_(), numbers(4, 60, seed=1)
    output = quantizer(x)
    values, weights = x.detach().numpy(), gradient.numpy()
    clipped = 0.5 * (np.abs(values) - np.abs(values - alpha) + alpha)
    np.testing.assert_allclose(
        output.detach().numpy(), np.rint(clipped * steps / alpha) * alpha / steps, atol=1.01 * alpha / steps * 1e-3
    )
    output.backward(gradient)
    above = values >= alpha
    (factor,) = scale_parameters(quantizer)
    assert factor.grad.item() * alpha == pytest.approx(weights[above].sum() + 1e-4 * alpha, rel=1e-4)
    np.testing.assert_array_equal(x.grad.numpy(), np.where(above, 0, weights))


def test_pact_is_for_ranges_that_start_at_zero():
    net = calibrated(Net())
    learn_scales(net, "pact")
    having = {name: quantizer.learner is not None for name, quantizer in activation_quantizers(net)}
    assert having == {
        "quantizer_x": False,
        "quantizer_relu": True,
        "quantizer_relu6": True,
        "quantizer_mean_global": False,
    }
    assert all(layer.learner is None for _, layer in quantized_layers(net))


def calibrated(net: nn.Module, edit: Quantizers | None = None) -> nn.Module:
    module = insert_quantizers(net, edit)
    fit_weight_clips(module)
    calibrate(module, lambda: [numbers(4, 3, 8, 8)])
    return module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.first(x)))
        return self.head(nn.functional.relu6(self.second(x)).mean((2, 3)))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_gradient_of_the_weights_scales_is_that_of_the_paper(weights, granularity):
    module = calibrated(Net(), Quantizers(weights=weights, granularity=granularity)).train()
    layer = module.get_submodule("first")
    before = weight_scale(layer, None).tolist()
    learn_scales(module, "lsq")
    layer.learner.factor.data.mul_(0.83)
    gradient = numbers(8, 3, 3, 3, seed=1)
    layer.learner(layer.weight, layer).backward(gradient)
    shared = 27 if granularity == "per_channel" else 8 * 27
    values = layer.weight.detach().numpy()
    expected = [
        lsq_gradient(values[i], gradient[i].numpy(), 0.83 * before[i], -layer.largest, layer.largest, shared)
        for i in range(8)
    ]
    if granularity == "per_tensor":
        expected = [sum(expected)]
    found = layer.learner.factor.grad.numpy() * np.array(before[: len(expected)])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(weight_scale(layer, None).numpy(), 0.83 * np.array(before), rtol=1e-6)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("method", ["lsq", "pact"])
@pytest.mark.parametrize(
    "edit",
    [
        Quantizers(),
        Quantizers(weights="int4", granularity="per_tensor"),
        Quantizers(activations="int8"),
        Quantizers(ranges="dynamic", weights="int4"),
    ],
)
def test_what_is_learnt_is_what_stays(method, edit):
    module = calibrated(Net(), edit).train()
    plain = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    learn_scales(module, method)
    for i, factor in enumerate(scale_parameters(module)):
        factor.data.mul_(0.9 + 0.01 * i)
    x = numbers(4, 3, 8, 8)
    module(x)
    with torch.no_grad():
        training = module(x)
    bake(module)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == plain
    assert scale_parameters(module) == []
    with torch.no_grad():
        torch.testing.assert_close(module(x), training, rtol=1e-4, atol=1e-4)
        module.eval()
        # Outside training biases are rounded to 32 bits besides.
        assert (module(x) - training).abs().max() < 1e-2 * training.abs().max()
    rebuilt = insert_quantizers(Net(), edit)
    rebuilt.load_state_dict(module.state_dict())


def test_all_scales_move_in_training():
    module = calibrated(Net(), Quantizers(weights="int4")).train()
    learn_scales(module, "lsq")
    names = [name for name, _ in activation_quantizers(module)] + [name for name, _ in quantized_layers(module)]
    parameters = scale_parameters(module)
    assert len(parameters) == len(names)
    scales = [quantizer.scale.item() for _, quantizer in activation_quantizers(module)]
    clips = [layer.clip.clone() for _, layer in quantized_layers(module)]
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(numbers(4, 3, 8, 8)), labels)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
        optimizer.step()
        losses.append(loss.item())
    bake(module)
    assert losses[-1] < losses[0]
    assert all(a != b.scale.item() for a, (_, b) in zip(scales, activation_quantizers(module), strict=True))
    assert all((a != b.clip).any() for a, (_, b) in zip(clips, quantized_layers(module), strict=True))
    # Adam's steps of 0.001 are shares of each scale, whatever its size.
    for before, (_, quantizer) in zip(scales, activation_quantizers(module), strict=True):
        assert quantizer.scale.item() == pytest.approx(before, rel=0.03)


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_dead_channels_and_constant_zeros_do_no_harm(method):
    net = Net()
    net.first.weight.data[:] = 0
    net.first.bias.data[:] = 0
    net.second.weight.data[3] = 0
    module = insert_quantizers(net)
    calibrate(module, lambda: [numbers(4, 3, 8, 8)])
    module.train()
    learn_scales(module, method)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        module(numbers(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    bake(module)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert module.eval()(numbers(4, 3, 8, 8)).isfinite().all()


def test_a_copy_learns_on_its_own():
    module = calibrated(Net()).train()
    learn_scales(module, "lsq")
    other = copy.deepcopy(module)
    first, second = (next(q for _, q in activation_quantizers(m)) for m in (module, other))
    second.learner.factor.data.fill_(0.5)
    other(numbers(4, 3, 8, 8))
    assert second.scale.item() == pytest.approx(0.5 * first.scale.item())
