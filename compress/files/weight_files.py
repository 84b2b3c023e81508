"""State dicts out of files that were made elsewhere: safetensors, or torch.load(weights_only=True), and no fallback."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from compress.errors import ModelError
from compress.files.torch_file import RANK, OtherObjects, Refused, require_bounded

# Weights with the optimizer's two moments and an average beside them, in double precision, and a larger classifier.
TIMES, SLACK_BYTES = 8, 256 * 2**20
WEB_PAGE = re.compile(rb"<(!doctype|!--|html|head|body|\?xml|error)")
DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip


def limit_bytes(own: Mapping[str, Tensor]) -> int:
    """How many bytes a file of weights may take, given the network that they are for."""
    return TIMES * sum(tensor.numel() * tensor.element_size() for tensor in own.values()) + SLACK_BYTES


def require_weights(path: Path, sizes: int, model: str, limit: int) -> None:
    """See that a file is there, is not something else, and is not too large for the network; raises ModelError.

    `sizes` are the bytes of all files that hold the weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip().lower()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise ModelError(f"{path} is empty; download or save it again")
    if WEB_PAGE.match(start):
        raise ModelError(f"{path} is a web page, not weights: a download that went wrong. Fetch the file again")
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a pointer of Git LFS, not weights; fetch the file itself with `git lfs pull`")
    if sizes > limit:
        raise ModelError(_too_much(path, f"{sizes / 2**20:,.0f} MiB", model, limit))


def read_state(path: Path, model: str, limit: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a .pt/.pth state dict by name, on the CPU.

    Raises ModelError for what is damaged, holds anything but plain tensors of numbers, or would take more than `limit`
    bytes of memory, before it takes them.
    """
    state = _safetensors(path, model, limit) if path.suffix.lower() == ".safetensors" else _torch(path, model, limit)
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path} holds no state dict (names and tensors); save one: torch.save(model.state_dict(), {path.name!r})"
        )
    for name, tensor in state.items():
        _require_plain(path, str(name), tensor)
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _require_plain(path: Path, name: str, tensor: Tensor) -> None:
    kind = f"{tensor.dtype}, {tensor.layout}, {tensor.dim()} dimensions".replace("torch.", "")
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not ordinary or tensor.dtype not in DTYPES or tensor.dim() > RANK:
        raise ModelError(
            f"{path}: {name} is no plain tensor of numbers ({kind}); save the state dict of the float network"
        )


def _safetensors(path: Path, model: str, limit: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                shape = file.get_slice(name).get_shape()
                if len(shape) > RANK:
                    said = f"a tensor of {len(shape)} dimensions, where {RANK} are the most"
                    raise ModelError(_too_much(path, said, model, limit))
                found[name] = file.get_tensor(name)
    except ModelError:
        raise
    except Exception as error:  # of the header its own, of what torch cannot make several
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} is not a safetensors file, or is damaged ({reason}); save or download it again"
        ) from error
    return found


def _torch(path: Path, model: str, limit: int) -> Any:
    damaged = f"{path} is not a file written by torch.save, or is cut off or damaged; save or download it again"
    objects = (
        f"{path} is a pickled module or holds other objects than tensors; loading it would run code, which is never "
        "done. Where you trust it, save its state dict: torch.save(model.state_dict(), 'weights.pth')"
    )
    try:
        require_bounded(path, limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles by other protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OtherObjects, pickle.UnpicklingError) as error:
        raise ModelError(objects) from error
    except Refused as error:
        raise ModelError(_too_much(path, str(error), model, limit)) from error
    except Exception as error:  # Damaged, and nearly every kind of torch's own
        raise ModelError(damaged) from error


def _too_much(path: Path, said: str, model: str, limit: int) -> str:
    return (
        f"{path} holds {said}. Save the state dict of this network alone: plain tensors, at most "
        f"{limit / 2**20:,.0f} MiB for {model} ({TIMES} times its own bytes and {SLACK_BYTES // 2**20} MiB)"
    )
