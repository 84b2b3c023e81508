"""A network and the description that rebuilds it, together; kept as JSON beside safetensors, never pickled."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn

from compress.config import Config, OneOf, described, fingerprint
from compress.edits import EDITS, Edit
from compress.edits.graph import evaluating
from compress.edits.quantizers import rounds
from compress.errors import ArtifactError, ModelError
from compress.files import durable
from compress.models import MODELS, Architecture

Size = Annotated[int, Field(ge=1, le=65536)]


class Spec(Config):
    """An architecture plus the edits made to it: all that is needed to rebuild a network's shape.

    `image` is (channels, height, width).
    """

    architecture: Annotated[Architecture, OneOf(MODELS)]
    classes: Size
    image: tuple[Size, Size, Size]
    edits: tuple[Annotated[Edit, OneOf(EDITS)], ...] = ()

    def edited(self, edit: Edit) -> "Spec":
        """The same network with one more edit."""
        return self.model_copy(update={"edits": (*self.edits, edit)})

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that are the same for networks of the same shape."""
        return fingerprint(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Net:
    """A network with its description."""

    spec: Spec
    module: nn.Module

    @property
    def int8(self) -> bool:
        """Whether the network rounds as int8 hardware does."""
        return rounds(self.module)

    @property
    def params(self) -> int:
        """How many trainable numbers it has."""
        return sum(p.numel() for p in self.module.parameters())

    def example(self, batch: int = 2) -> Tensor:
        """An input of zeros, (batch, channels, height, width)."""
        return torch.zeros(batch, *self.spec.image)


def build(spec: Spec, seed: int | None = None) -> Net:
    """Build a network from its description; its weights are random, drawn from `seed` alone if one is given.

    Raises ModelError where the architecture cannot be built or does not take images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            module = spec.architecture(spec.classes, spec.image)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ModelError(f"{spec.architecture.name} cannot be built for images {spec.image}: {error}") from error
        for edit in spec.edits:
            module = edit(module)
    return Net(spec, module)


def probe(net: Net) -> None:
    """See that the network takes its images and gives one logit a class; raises ModelError."""
    name = net.spec.architecture.name
    try:
        with evaluating(net.module), torch.no_grad():
            logits = net.module(net.example())
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{name} cannot take images {net.spec.image}: {first}. Choose another data `size` or model"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, net.spec.classes):
        raise ModelError(f"{name} gives {shape} for a batch of 2 where (2, {net.spec.classes}) logits are needed")


def save(net: Net, folder: Path) -> None:
    """Write net.json and weights.safetensors into a folder. Raises ResourceError."""
    state = {name: value.detach().cpu().contiguous() for name, value in net.module.state_dict().items()}
    durable.write(folder / "weights.safetensors", serialized(state))
    durable.write(folder / "net.json", json.dumps(net.spec.model_dump(mode="json"), indent=1) + "\n")


def load(folder: Path) -> Net:
    """Rebuild what `save` wrote; raises ArtifactError where a file is missing, foreign or damaged."""
    described_in, path = folder / "net.json", folder / "weights.safetensors"
    try:
        spec = Spec.model_validate(_read_json(described_in))
    except ValidationError as error:
        raise ArtifactError(f"{described_in} describes no net ({described(error)[0]}); delete {folder}") from None
    net = build(spec)
    try:
        net.module.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} holds no weights: weights.safetensors is missing; delete the folder to train again"
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or of another net; delete {folder} to train again") from error
    return net


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.parent} holds no net: {path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged; delete {path.parent} to train again") from error
