"""What every edit is."""

from typing import ClassVar, Protocol

from torch import nn


class Edit(Protocol):
    """A change to a network's shape that is kept as JSON and made again when the network is rebuilt.

    Calling it returns the changed module and may change the given one. It sets shapes, not values: weights are
    loaded afterwards. Made twice from the same description it gives the same names and shapes.
    """

    name: ClassVar[str]

    def __call__(self, module: nn.Module) -> nn.Module: ...
