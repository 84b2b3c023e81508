import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress.edits.bias_correction as bias_correction
import compress.edits.graph as graph
from compress.edits.bias_correction import correct_bias
from compress.edits.calibration import calibrate
from compress.edits.placement import Quantizers, insert_quantizers
from compress.edits.quantizers import quantized_layers, weight_scale
from compress.errors import ModelError


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias)
        self.second, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.second(nn.functional.relu6(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


def both(net: nn.Module, images: Tensor, **options: str) -> tuple[nn.Module, nn.Module]:
    quantized = insert_quantizers(net.eval(), Quantizers(weights="int4", **options))
    calibrate(quantized, lambda: [images])
    return quantized, graph.folded(net)


def outputs(module: nn.Module, names: list[str], images: Tensor) -> dict[str, np.ndarray]:
    """What each layer gives, by hooks."""
    found: dict[str, np.ndarray] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: found.update({name: output.detach().numpy()})
        )
        for name in names
    ]
    with torch.no_grad():
        module.eval()(images)
    for handle in handles:
        handle.remove()
    return found


def means(values: np.ndarray) -> np.ndarray:
    return values.mean(tuple(i for i in range(values.ndim) if i != 1))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_every_channels_mean_becomes_that_of_the_float_net(granularity):
    images = numbers(32, 3, 10, 10) + 2
    quantized, reference = both(Net(), images, granularity=granularity)
    scales = {
        str(n.target): n.args[1].target for n in quantized.graph.nodes if n.target in dict(quantized_layers(quantized))
    }
    exact, before = outputs(reference, list(scales), images), outputs(quantized, list(scales), images)
    assert correct_bias(quantized, reference, images) == len(scales) == 4
    after = outputs(quantized, list(scales), images)
    for name, scale in scales.items():
        # What is left is what rounding the bias to a whole number of units can leave.
        unit = quantized.get_buffer(scale) * weight_scale(quantized.get_submodule(name), quantized.get_buffer(scale))
        assert (np.abs(means(after[name]) - means(exact[name])) <= 0.5 * unit.numpy() + 1e-5).all()
        assert np.abs(means(before[name]) - means(exact[name])).max() > 5 * unit.max().item()


def test_the_first_layer_is_corrected_by_equation_17():
    images = numbers(16, 3, 10, 10)
    quantized, reference = both(Net(), images)
    exact, rounded = (outputs(net, ["first"], images)["first"] for net in (reference, quantized))
    bias = quantized.get_submodule("first").bias.detach().numpy().copy()
    correct_bias(quantized, reference, images)
    found = quantized.get_submodule("first").bias.detach().numpy()
    np.testing.assert_allclose(found, bias - (means(rounded) - means(exact)), rtol=1e-4, atol=1e-6)


def test_the_output_comes_closer():
    images, others = numbers(64, 3, 10, 10), numbers(64, 3, 10, 10, seed=1)
    quantized, reference = both(Net(), images, granularity="per_tensor")

    def error() -> float:
        with torch.no_grad():
            return float((quantized.eval()(others) - reference(others)).square().mean())

    before = error()
    correct_bias(quantized, reference, images)
    assert error() < before


def test_a_layer_without_a_bias_stays_without():
    images = numbers(8, 3, 10, 10)
    quantized, reference = both(Net(bias=False), images)
    names = set(quantized.state_dict())
    assert correct_bias(quantized, reference, images) == 3
    assert set(quantized.state_dict()) == names
    assert quantized.get_submodule("depthwise").bias is None


def test_the_float_net_and_all_modes_stay_as_they_were():
    images = numbers(8, 3, 10, 10)
    quantized, reference = both(Net(), images)
    quantized.train()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    correct_bias(quantized, reference, images)
    assert quantized.training
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert not any(layer._forward_hooks for layer in reference.modules())


@pytest.mark.parametrize(("size", "used"), [(8, 128), (96, 128), (192, 32), (224, 32)])
def test_large_images_are_fewer(size, used, monkeypatch):
    seen = []
    monkeypatch.setattr(bias_correction, "_means", lambda reference, names, inputs: seen.append(len(inputs)) or {})
    monkeypatch.setattr(bias_correction._Correction, "run", lambda self, inputs: None)
    quantized, reference = both(Net(), numbers(2, 3, 8, 8))
    correct_bias(quantized, reference, torch.zeros(1).expand(200, 3, size, size))
    assert seen == [used]


def test_a_float_net_of_another_kind_is_refused():
    images = numbers(2, 3, 10, 10)
    quantized, _ = both(Net(), images)
    with pytest.raises(ModelError, match="the float net has no layer depthwise, so the bias of that layer cannot be"):
        correct_bias(quantized, nn.Sequential(), images)


def test_a_net_with_dynamic_ranges_is_corrected_too():
    images = numbers(16, 3, 10, 10)
    net = Net().eval()
    quantized = insert_quantizers(net, Quantizers(weights="int4", ranges="dynamic"))
    assert correct_bias(quantized, graph.folded(net), images) == 4
    exact, found = (outputs(each, ["head"], images)["head"] for each in (net, quantized))
    np.testing.assert_allclose(means(found), means(exact), atol=1e-4)
