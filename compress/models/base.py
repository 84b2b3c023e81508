"""What every architecture is."""

from typing import ClassVar, Protocol

from torch import nn


class Architecture(Protocol):
    """Builds an untrained network that turns (n, *image) float32 into (n, classes) logits.

    `image` is (channels, height, width): a network may choose its stem by it. Building draws its initial
    weights from torch's global random state and nothing else. `name` is what a pipeline file calls it.
    """

    name: ClassVar[str]

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module: ...
