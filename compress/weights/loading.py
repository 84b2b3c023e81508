"""Reading weights that were made elsewhere, without ever running code from a file."""

import errno
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from compress.config import near
from compress.errors import ModelError
from compress.files.onnx_file import content_of
from compress.files.weight_files import limit_bytes, read_state, require_weights
from compress.models.torchvision import TORCHVISION
from compress.spelling import nearest_file
from compress.weights.onnx_weights import STEM_HINT, state_from_onnx

# Their published weights come with `transform_input=True`, a second normalisation inside the network.
RESCALING = ("googlenet", "inception_v3")
FILES = (".safetensors", ".pt", ".pth", ".onnx")
TIMEOUT_S = 20.0  # of silence, after which a download is given up


@dataclass(frozen=True)
class PublishedPreprocessing:
    """What images must go through before they are fed to torchvision's published weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    interpolation: str

    def grey(self) -> "PublishedPreprocessing":
        """The same for one channel that stands for all three: their means."""
        return replace(self, mean=(sum(self.mean) / len(self.mean),), std=(sum(self.std) / len(self.std),))


def is_file(weights: str) -> bool:
    """Whether `weights` names a file rather than one of torchvision's published sets."""
    return Path(weights).suffix.lower() in FILES


def published(model: str, weights: str) -> Any:
    """Torchvision's entry for weights such as `IMAGENET1K_V2` of a model; raises ModelError if there is none."""
    if model not in TORCHVISION:
        raise ModelError(
            f"{model} is not one of torchvision's models, so there are no published weights {weights!r} for it; "
            f"give a file ({', '.join(FILES)})"
        )
    if model in RESCALING:
        raise ModelError(
            f"torchvision's weights for {model} want images scaled in their own way, which would be wrong here without "
            "a word; choose another model, or leave weights out"
        )
    entries = torchvision.models.get_model_weights(model)
    if weights not in entries.__members__:
        file = f" (a file should end in {', '.join(FILES)})" if Path(weights).suffix else ""
        raise ModelError(
            f"torchvision has no weights {weights!r} for {model}{file}.{near(weights, entries.__members__)}"
        )
    return entries[weights]


def preprocessing(model: str, weights: str | None) -> PublishedPreprocessing | None:
    """The preprocessing that published weights bring along; None for files and for no weights."""
    if weights is None or is_file(weights):
        return None
    transforms = published(model, weights).transforms()
    return PublishedPreprocessing(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize="crop",
        interpolation=transforms.interpolation.value,
    )


def load_weights(module: nn.Module, model: str, weights: str, *, keep_head: bool) -> tuple[str, ...]:
    """Load weights into a freshly built network, in place; returns remarks for the report.

    `weights` is a torchvision weights name, a safetensors file, a .pt/.pth state dict, or a float .onnx file of the
    same network, whose logits the result is proven to give. Where only the classifier's number of classes differs,
    the classifier keeps its random start and a remark says so (with `keep_head` that is an error). Raises ModelError
    where weights cannot be had, are not a state dict, or belong to another architecture.
    """
    state = _read(Path(weights), module, model) if is_file(weights) else _download(model, weights)
    own = module.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(("aux", "AuxLogits"))}
    state = _with_channels(state, own)
    head = _head_keys(module)
    replaced = [key for key in head if key in state and _other_count(state[key], own[key])]
    if replaced:
        theirs, ours = len(state[replaced[0]]), len(own[replaced[0]])
        if keep_head:
            raise ModelError(
                f"{weights} has a classifier of {theirs} classes and the data have {ours}: with keep_head they must "
                "agree; leave keep_head out and the classifier is replaced"
            )
        state |= {key: own[key] for key in head}
    _require_same(state, own, model, weights)
    _require_finite(state, weights)
    module.load_state_dict(state)
    if not replaced:
        return ()
    return (f"{weights}: the classifier was replaced, {theirs} classes became {ours}, and starts untrained",)


def _other_count(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two weights of a classifier differ in the number of classes and in nothing else."""
    return theirs.dim() > 1 and theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours)


def _head_keys(module: nn.Module) -> list[str]:
    """Weight and bias of the layer that produces the classes: the last Linear or, without one, the last Conv2d."""
    for kind in (nn.Linear, nn.Conv2d):
        layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kind)]
        if layers:
            name, layer = layers[-1]
            return [f"{name}.{key}" for key, _ in layer.named_parameters()]
    return []


def _with_channels(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum the first convolution over its input channels where the network takes grey images instead of colour."""
    for key, value in state.items():
        if value.dim() == 4:
            if key in own and own[key].shape[1] == 1 and value.shape[1] == 3 and own[key].shape[0] == value.shape[0]:
                return state | {key: value.sum(dim=1, keepdim=True)}
            break
    return state


def _require_same(state: Mapping[str, Tensor], own: Mapping[str, Tensor], model: str, weights: str) -> None:
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in own]
    other = [key for key in own if key in state and state[key].shape != own[key].shape]
    whole = [k for k in own if k in state and own[k].is_floating_point() and not state[k].is_floating_point()]
    if missing or foreign:
        first = [
            *(f"{key} is missing" for key in missing[:2]),
            *(f"{key} is not in {model}" for key in foreign[:2]),
        ]
        raise ModelError(
            f"{weights} holds weights of another architecture than {model}: {len(missing)} of its {len(own)} tensors "
            f"are missing and {len(foreign)} do not belong to it ({'; '.join(first)})"
        )
    if other:
        key = other[0]
        hint = STEM_HINT if model in TORCHVISION else ""
        raise ModelError(
            f"{weights} does not fit {model}: {len(other)} tensors have another shape, first {key} with "
            f"{tuple(state[key].shape)} where {tuple(own[key].shape)} is needed.{hint}"
        )
    if whole:
        raise ModelError(
            f"{weights} holds whole numbers ({state[whole[0]].dtype}) in {whole[0]}, where {model} has decimal ones; "
            "give the weights of the float network"
        )


def _require_finite(state: Mapping[str, Tensor], weights: str) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ModelError(f"{weights} holds numbers that are not finite, first in {key}; save or download it again")


def _download(model: str, weights: str) -> dict[str, Tensor]:
    entry = published(model, weights)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)  # torch sets none, and a silent firewall would hold us
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of the disk, and all that torch.load raises for damaged files
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        damaged = f"{file} is there and damaged: delete it. " if file.exists() else ""
        raise ModelError(
            f"cannot have {weights} of {model} from {entry.url} ({_first_sentence(error)}). {damaged}Without a "
            f"connection, fetch it elsewhere and put it at {file}, or give a .safetensors or .pth file"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    # DenseNet's were saved under names that Python has since forbidden: `norm.1` is now `norm1`.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}


def content_files(weights: str) -> list[Path]:
    """All files that hold the weights: the one that is named, and those beside an ONNX file that keeps its own there.

    There are none where one is missing or refused: loading says what is wrong with it.
    """
    path = Path(weights)
    if not path.is_file():
        return []
    if path.suffix.lower() != ".onnx":
        return [path]
    try:
        return content_of(path)
    except ModelError:
        return []


def _read(path: Path, module: nn.Module, model: str) -> dict[str, Tensor]:
    if not path.is_file():
        near = nearest_file(path, FILES)
        raise ModelError(
            f"no weights file {path}; give the path of a .safetensors file, of a .pt/.pth state dict or of a float "
            f".onnx file{near and '.'}{near}"
        )
    limit = limit_bytes(module.state_dict())
    require_weights(path, sum(file.stat().st_size for file in content_files(str(path))), model, limit)
    if path.suffix.lower() == ".onnx":
        return state_from_onnx(module, path, model)
    return read_state(path, model, limit)


def _first_sentence(error: BaseException) -> str:
    """What an error says first, without the advice that torch goes on to give for pages."""
    return re.split(r"\. |\n", str(getattr(error, "reason", error)))[0].rstrip(".") or type(error).__name__
