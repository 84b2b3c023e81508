"""Weights that were made elsewhere: what is taken, what is refused and in which words. No file's code is ever run."""

import os
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models import MODELS
from compress.weights.loading import is_file, load_weights, preprocessing, published


def network(classes: int = 4, channels: int = 3, width: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(*layers)


def loaded(path: Path, net: nn.Module, keep_head: bool = False) -> tuple[str, ...]:
    return load_weights(net, "mobile", str(path), keep_head=keep_head)


def refusal(path: Path, net: nn.Module | None = None, keep_head: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(path, net or network(), keep_head)
    return str(caught.value)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(net: nn.Module, state: dict[str, Tensor]) -> bool:
    own = net.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


# What is taken


@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_state_dicts_of_torch(wrapped: Callable[[Any], Any], tmp_path: Path) -> None:
    state, net = network(seed=1).state_dict(), network()
    assert loaded(saved(tmp_path / "w.pth", wrapped(state)), net) == ()
    assert same(net, state)


def test_state_dict_in_the_old_format_of_torch(tmp_path: Path) -> None:
    state, net = network(seed=1).state_dict(), network()
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    loaded(tmp_path / "w.pt", net)
    assert same(net, state)


def test_state_dict_of_a_wrapped_network(tmp_path: Path) -> None:
    state, net = network(seed=1).state_dict(), network()
    loaded(saved(tmp_path / "w.pth", {f"module.{key}": value for key, value in state.items()}), net)
    assert same(net, state)


def test_safetensors(tmp_path: Path) -> None:
    state, net = network(seed=1).state_dict(), network()
    save_file(state, tmp_path / "w.SafeTensors")
    assert loaded(tmp_path / "w.SafeTensors", net) == ()
    assert same(net, state)


def test_a_classifier_of_other_classes_is_replaced_and_said_to_be(tmp_path: Path) -> None:
    state, net = network(classes=10, seed=1).state_dict(), network()
    fresh = {key: value.clone() for key, value in net.state_dict().items()}
    path = saved(tmp_path / "w.pth", state)
    assert loaded(path, net) == (f"{path}: the classifier was replaced, 10 classes became 4, and starts untrained",)
    assert same(net, state | {key: fresh[key] for key in ("3.weight", "3.bias")})


def test_a_convolution_that_ends_in_classes_is_a_classifier(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1)).state_dict())
    assert len(loaded(path, nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))) == 1


def test_colour_weights_serve_grey_images_by_their_sum(tmp_path: Path) -> None:
    colour, grey = network(seed=1), network(channels=1)
    loaded(saved(tmp_path / "w.pth", colour.state_dict()), grey)
    image = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(grey.eval()(image), colour.eval()(image.expand(-1, 3, -1, -1)))


def test_auxiliary_heads_that_the_network_does_not_have_are_left_out(tmp_path: Path) -> None:
    state, net = network(seed=1).state_dict(), network()
    loaded(saved(tmp_path / "w.pth", state | {"aux1.weight": torch.ones(1), "AuxLogits.b": torch.ones(1)}), net)
    assert same(net, state)


# What is refused


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "w.pth") == (
        f"no weights file {tmp_path / 'w.pth'}; give the path of a .safetensors file, of a .pt/.pth state dict or of "
        "a float .onnx file"
    )


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert refusal(tmp_path / name) == f"{tmp_path / name} is empty; download or save it again"


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("page", ["<!DOCTYPE html><html>404", "\n <html lang=en>", "<?xml version='1.0'?><Error/>"])
def test_web_page(name: str, page: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(page)
    assert refusal(tmp_path / name) == (
        f"{tmp_path / name} is a web page, not weights: a download that went wrong. Fetch the file again"
    )


def test_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a pointer of Git LFS, not weights; fetch the file itself" in refusal(tmp_path / "w.pth")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {})
    path.chmod(0)
    assert refusal(path) == f"{path} cannot be read: Permission denied"


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(zipped: bool, tmp_path: Path) -> None:
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    torch.save(Canary(canary), path, _use_new_zipfile_serialization=zipped)
    assert refusal(path).startswith(f"{path} is a pickled module or holds other objects than tensors; loading it")
    assert not canary.exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Canary(canary)))
    refusal(path)
    assert not canary.exists()


def test_pickled_module(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", network())
    assert refusal(path) == (
        f"{path} is a pickled module or holds other objects than tensors; loading it would run code, which is never "
        "done. Where you trust it, save its state dict: torch.save(model.state_dict(), 'weights.pth')"
    )


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"a": 1}, torch.ones(1), {"state_dict": {"a": "b"}}])
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", content)
    assert refusal(path) == (
        f"{path} holds no state dict (names and tensors); save one: torch.save(model.state_dict(), 'w.pth')"
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.002, 0.4, 0.6, 0.99])
def test_cut_off_file_of_torch(part: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * part)])
    assert refusal(path) == (
        f"{path} is not a file written by torch.save, or is cut off or damaged; save or download it again"
    )


@pytest.mark.parametrize("part", [0.002, 0.1, 0.5, 0.99])
def test_cut_off_safetensors(part: float, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * part)])
    assert refusal(path).startswith(f"{path} is not a safetensors file, or is damaged (")


def test_another_architecture(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)).state_dict())
    assert refusal(path) == (
        f"{path} holds weights of another architecture than mobile: 4 of its 9 tensors are missing and 0 do not belong "
        "to it (1.running_mean is missing; 1.running_var is missing)"
    )


def test_another_width(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", network(width=16).state_dict())
    assert refusal(path) == (
        f"{path} does not fit mobile: 7 tensors have another shape, first 0.weight with (16, 3, 3, 3) where "
        "(8, 3, 3, 3) is needed."
    )


def test_another_stem_of_torchvisions_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = MODELS["resnet18"].model_validate({"stem": "imagenet"})(10, (3, 32, 32))  # type: ignore[attr-defined]
    small = MODELS["resnet18"]()(10, (3, 32, 32))
    path = saved(tmp_path / "w.pth", large.state_dict())
    with pytest.raises(ModelError, match="For weights made on large images set the model's `stem: imagenet`"):
        load_weights(small, "resnet18", str(path), keep_head=False)


def test_keep_head(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", network(classes=10).state_dict())
    assert refusal(path, keep_head=True) == (
        f"{path} has a classifier of 10 classes and the data have 4: with keep_head they must agree; leave keep_head "
        "out and the classifier is replaced"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    state = network().state_dict()
    state["1.running_var"][3] = bad
    path = saved(tmp_path / "w.pth", state)
    assert refusal(path) == (
        f"{path} holds numbers that are not finite, first in 1.running_var; save or download it again"
    )


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    net = network()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    refusal(saved(tmp_path / "w.pth", network(width=16).state_dict()), net)
    assert same(net, before)


# Published weights


def offline(*_: object, **__: object) -> None:
    raise urllib.error.URLError("Name or service not known")


def test_published_weights_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    net = MODELS["resnet18"]()(10, (3, 32, 32))
    with pytest.raises(ModelError) as caught:
        load_weights(net, "resnet18", "IMAGENET1K_V1", keep_head=False)
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    assert str(caught.value) == (
        f"cannot have IMAGENET1K_V1 of resnet18 from {url} (Name or service not known). Without a "
        f"connection, fetch it elsewhere and put it at {place}, or give a .safetensors or .pth file"
    )


def test_published_weights_put_there_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    place.parent.mkdir(parents=True)
    state = MODELS["mobilenet_v3_small"]()(1000, (3, 224, 224)).state_dict()
    torch.save(state, place)
    net = MODELS["mobilenet_v3_small"]()(10, (3, 224, 224))
    assert len(load_weights(net, "mobilenet_v3_small", "IMAGENET1K_V1", keep_head=False)) == 1
    assert torch.equal(net.state_dict()["features.0.0.weight"], state["features.0.0.weight"])


def test_damaged_published_weights_are_said_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_text("<html>")
    with pytest.raises(ModelError, match=f"{place} is there and damaged: delete it"):
        load_weights(network(), "resnet18", "IMAGENET1K_V1", keep_head=False)


def test_densenets_old_names_are_brought_up_to_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "densenet121-a639ec97.pth"
    place.parent.mkdir(parents=True)
    net = MODELS["densenet121"]()(1000, (3, 224, 224))
    old = {}
    for key, value in net.state_dict().items():
        for new in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(f".{new}.", f".{new[:-1]}.{new[-1]}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, place)
    assert load_weights(net, "densenet121", "IMAGENET1K_V1", keep_head=True) == ()


def test_published_weights_of_a_name_that_is_none() -> None:
    with pytest.raises(ModelError, match=r"torchvision has no weights 'IMAGENET1K_V3' for resnet50\. Did you mean"):
        published("resnet50", "IMAGENET1K_V3")


def test_published_weights_of_a_model_that_has_none() -> None:
    with pytest.raises(ModelError, match="mobilenet_v1 is not one of torchvision's models"):
        published("mobilenet_v1", "IMAGENET1K_V1")


def test_preprocessing_of_published_weights() -> None:
    found = preprocessing("resnet50", "IMAGENET1K_V2")
    assert found is not None
    assert found.mean == (0.485, 0.456, 0.406)
    assert (found.resize, found.interpolation) == ("crop", "bilinear")
    bicubic = preprocessing("efficientnet_b0", "IMAGENET1K_V1")
    assert bicubic is not None
    assert bicubic.interpolation == "bicubic"
    assert preprocessing("resnet50", "r.pth") is None
    assert preprocessing("resnet50", None) is None


@pytest.mark.parametrize(
    ("weights", "file"),
    [("a.pth", True), ("b/c.PT", True), ("x.safetensors", True), ("a.ONNX", True), ("IMAGENET1K_V1", False)],
)
def test_is_file(weights: str, file: bool) -> None:
    assert is_file(weights) is file


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_published_weights_that_scale_images_themselves_are_refused(model: str) -> None:
    with pytest.raises(ModelError, match="want images scaled in their own way"):
        published(model, "IMAGENET1K_V1")
