"""Sparsity as data: in which layers single weights were removed."""

from typing import ClassVar

from torch import nn

from compress.config import Config, near
from compress.errors import ArtifactError


class Sparse(Config):
    """Layers in which single weights are zero and stay zero in whatever training comes later.

    `layers` maps a layer's name to how many of its weights were removed. Shapes are the architecture's, and which
    weights they are stands in the weights themselves: they are the zeros.
    """

    name: ClassVar[str] = "sparse"
    layers: dict[str, int]

    def __call__(self, module: nn.Module) -> nn.Module:
        """Give back `module` as it is; raises ArtifactError where it has no such layers, or too small ones."""
        layers = {path: each for path, each in module.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
        for path, zeros in self.layers.items():
            where = f"The saved sparsity names {zeros} weights of the layer {path!r} of {type(module).__name__}"
            if path not in layers:
                raise ArtifactError(f"{where}, which has no such layer.{near(path, layers)}")
            if not 0 <= zeros <= layers[path].weight.numel():
                raise ArtifactError(f"{where}, which has {layers[path].weight.numel()}. The file is damaged.")
        return module
