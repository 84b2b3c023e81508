"""timm's networks in PyTorch's own layers: the same outputs and names, prunable, int8, with timm's weights."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import compress
import compress.models.timm as ours
from compress.edits import Channels
from compress.errors import ConfigError
from compress.models.timm import Timm
from compress.net import Net, Spec, build, load, save
from compress.pipeline import parsed
from compress.weights.loading import load_weights

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
NETS = ["resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite0"]
# Sizes at which the padding on one side that TensorFlow wants is one, none, or both.
SIZES = [32, 33, 96]
PLAIN: dict[str, Any] = {"name": "x", "data": "digits", "stages": ["train"]}


def theirs(name: str, **arguments: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=4, **arguments)  # type: ignore[no-any-return]


@needs_timm
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETS)
def test_the_same_outputs_under_the_same_names(name: str, size: int) -> None:
    net, reference = Timm(model=name, stem="imagenet")(4, (3, size, size)), theirs(name)
    assert {*net.state_dict()} == {*reference.state_dict()}
    reference.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(net.train(training)(x), reference.train(training)(x), rtol=1e-4, atol=1e-5)
    weighted = [layer for layer in net.modules() if [*layer.parameters(recurse=False)]]
    assert {type(layer) for layer in weighted} == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


@needs_timm
def test_grey_images_and_a_small_stem() -> None:
    net = Timm(model="resnet18")(4, (1, 32, 32))
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    assert (first.in_channels, first.stride, first.kernel_size) == (1, (1, 1), (3, 3))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@needs_timm
def test_tensorflows_padding_prunes_and_rounds() -> None:
    net = Timm(model="tf_efficientnet_lite0")(4, (3, 32, 32))
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rounding = compress.quantize(compress.prune(net, x, keep_macs=0.5), x)
    assert {*rounding.meta["left_float"].values()} == {"ZeroPad2d has no int8 kernel"}
    assert len(rounding.meta["left_float"]) == 4


@needs_timm
@pytest.mark.parametrize("name", NETS)
def test_timms_weights_are_loaded_and_a_net_is_kept(name: str, tmp_path: Path) -> None:
    weights = theirs(name).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    net = build(Spec(architecture=Timm(model=name, stem="imagenet"), classes=4, image=(3, 32, 32)))
    assert load_weights(net.module, "timm", str(tmp_path / "model.safetensors"), keep_head=True) == ()
    assert all(torch.equal(value, weights[key]) for key, value in net.module.state_dict().items())
    smaller = compress.prune(net.module, net.example(), keep_macs=0.6)
    save(Net(net.spec.edited(Channels.of(smaller, net.module)), smaller), tmp_path)
    again = load(tmp_path).module.eval()
    with torch.no_grad():
        assert torch.equal(again(net.example()), smaller.eval()(net.example()))


@needs_timm
@pytest.mark.parametrize(
    ("model", "sentence"),
    [("resnet81", "timm has no 'resnet81'. Did you mean 'resnet18'?"), ("xyzzy", "timm has no 'xyzzy'.")],
)
def test_an_unknown_name(model: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(PLAIN | {"student": {"timm": {"model": model}}}, "x")
    assert sentence in str(caught.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        parsed(PLAIN | {"student": {"timm": {"model": "resnet18"}}}, "x")
    assert str(caught.value).endswith("student.timm.model: timm is not installed; `pip install -e '.[timm]'` brings it")
