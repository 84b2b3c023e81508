"""A module and images that a caller gives, seen as the rest of the program sees a net and its data."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import ValidationError, create_model
from torch import Tensor, nn

from compress.config import Config, cut, described
from compress.data.base import Data, InMemory, Split
from compress.edits import Quantizers
from compress.edits.graph import evaluating
from compress.edits.quantizers import rounds
from compress.errors import ConfigError, DataError, ModelError
from compress.net import Net, Spec

LOG = logging.getLogger("compress")
QUANTIZERS, MADE_FROM = "quantizers", "made_from"  # what a quantized module's `meta` says: how it rounds, of what it is
NORMALISED = "inputs are float32 (n, C, H, W), normalised as the network was trained"

Kind = TypeVar("Kind", bound=Config)


class Given(Config):
    """The architecture of a module that was built elsewhere; a file cannot name it."""

    name: ClassVar[str] = "given"

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        raise ModelError(f"{self.name} was built by the caller, and only there can it be built again")


def net_of(module: nn.Module, example: Tensor, verb: str) -> tuple[Net, int]:
    """The module with a description made up from an example (n, C, H, W), and its number of classes.

    Raises ConfigError where either is not what it should be, ModelError where the module cannot take the example.
    """
    require_module(module, verb)
    inputs = require_inputs(example, f"{verb}: example")
    classes = classes_of(module, inputs, verb)
    made_from = getattr(module, "meta", {}).get(MADE_FROM, type(module).__name__)
    kind = create_model(made_from, __base__=Given)
    kind.name = made_from
    image = (inputs.shape[1], inputs.shape[2], inputs.shape[3])
    spec = Spec(architecture=kind(), classes=classes, image=image)
    if rounds(module):
        found = getattr(module, "meta", {}).get(QUANTIZERS)
        if not isinstance(found, Quantizers):
            raise ConfigError(f"{verb}: this module rounds, and compress.quantize did not make it; export its result")
        spec = spec.edited(found)
    return Net(spec, module), classes


def classes_of(module: nn.Module, inputs: Tensor, verb: str) -> int:
    """How many logits the module gives; raises ModelError where it gives no (n, classes)."""
    name = type(module).__name__
    try:
        with evaluating(module), torch.no_grad():
            logits = module(inputs[:2].to(device_of(module)))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{verb}: {name} cannot take inputs of shape {tuple(inputs.shape)}: {first}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(f"{verb}: {name} gives {shape} where (images, classes) logits are needed")
    return logits.shape[1]


def require_module(module: object, verb: str, what: str = "module") -> None:
    """Raises ConfigError for anything but a module."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{verb}: {what} should be a torch.nn.Module, not {cut(repr(module))}")


def require_inputs(inputs: object, what: str) -> Tensor:
    """The inputs themselves; raises ConfigError where they are not float32 (n, C, H, W) with an image in them."""
    if not isinstance(inputs, Tensor):
        raise ConfigError(f"{what} should be a float32 tensor (n, C, H, W), not {cut(repr(inputs))}")
    if inputs.dtype != torch.float32 or inputs.dim() != 4 or not inputs.numel():
        given = f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
        raise ConfigError(f"{what} should be a float32 tensor (n, C, H, W), not {given}; {NORMALISED}")
    return inputs


def require_again(batches: object, verb: str) -> Iterable[Any]:
    """Batches that can be gone through more than once; raises ConfigError for what cannot."""
    if isinstance(batches, Tensor):
        return list(torch.split(require_inputs(batches, f"{verb}: batches"), 64))
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        raise ConfigError(
            f"{verb}: batches are gone through more than once, which {cut(repr(batches))} does not allow; "
            "give a list of batches or a DataLoader"
        )
    return batches


def pairs(batches: Iterable[Any], verb: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of inputs (n, C, H, W) and labels (n,), each looked at; raises ConfigError and DataError."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ConfigError(f"{verb}: each batch should be a pair (inputs, labels), not {cut(repr(batch))}")
        inputs, labels = require_inputs(batch[0], f"{verb}: inputs"), torch.as_tensor(batch[1])
        if labels.is_floating_point() or labels.shape != (len(inputs),):
            given = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
            raise DataError(f"{verb}: labels should be whole numbers ({len(inputs)},), one an image, not {given}")
        yield inputs, labels.long()


def data_of(
    image: tuple[int, int, int], classes: int, mean: Sequence[float] = (), std: Sequence[float] = (),
    class_names: Sequence[str] | None = None,
) -> Data:  # fmt: skip
    """Data without images: what is known of them beside the batches that a caller gives."""
    none = Split(InMemory(torch.zeros(0, *image, dtype=torch.uint8)), np.zeros(0, np.int64))
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(classes)))
    channels = image[0]
    return Data(
        train=none, val=none, test=none, image=image, class_names=names,
        mean=tuple(mean) or (0.0,) * channels, std=tuple(std) or (1.0,) * channels, fingerprint="given",
    )  # fmt: skip


def checked(kind: type[Kind], fields: Mapping[str, Any], verb: str) -> Kind:
    """A configuration from keyword arguments; raises ConfigError that lists all that is wrong."""
    try:
        return kind.model_validate({key: value for key, value in fields.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("\n".join(f"{verb}: {line}" for line in described(error))) from None


def device_of(module: nn.Module) -> torch.device:
    """Where the module computes."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
