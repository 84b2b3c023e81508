"""Channel pruning as data: which layers have how many channels.

A pruned network is its architecture with some layers narrower. Which channels were removed is not needed to
rebuild it, only how many are left: the weights come from the file beside it.
"""

from typing import ClassVar, Self

from torch import nn

from compress.config import Config, near
from compress.errors import ArtifactError

Sizes = tuple[int, int, int]
RESIZABLE = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
)


def resizable(layer: nn.Module) -> bool:
    """Whether the layer's channels can be set: its type is one of `RESIZABLE`, not a subclass of one."""
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
        return False
    return type(layer) in RESIZABLE


class Channels(Config):
    """Layers with fewer channels than the architecture gives them.

    `sizes` maps a layer's name to (input channels, output channels, groups). A layer with only one
    number, such as a batch-norm, has it twice; groups is 1 for all but convolutions and group-norms.
    Layers not named keep the architecture's sizes.
    """

    name: ClassVar[str] = "channels"
    sizes: dict[str, Sizes]

    @classmethod
    def of(cls, module: nn.Module, before: nn.Module | None = None) -> Self:
        """The sizes of all layers of `module`, or of those that differ from the same layer in `before`.

        `before` is the network that the edit will be applied to: the one that was pruned.
        """
        sizes = _all_sizes(module)
        known = _all_sizes(before) if before is not None else {}
        return cls(sizes={path: size for path, size in sizes.items() if known.get(path) != size})

    def __call__(self, module: nn.Module) -> nn.Module:
        """Make the layers of `module` narrower, in place, and return it.

        Parameters and running statistics are cut to their first channels; all other settings of a layer stay.
        Raises ArtifactError where a layer does not exist, cannot be resized, or would have to grow: sizes are
        checked before anything is changed, and nothing is ever allocated that is larger than what is there.
        """
        layers = dict(module.named_modules())
        for path, size in self.sizes.items():
            _check(path, size, layers)
        for path, size in self.sizes.items():
            _resize(layers[path], *size)
        return module


def _all_sizes(module: nn.Module) -> dict[str, Sizes]:
    return {path: _sizes(layer) for path, layer in module.named_modules() if resizable(layer)}


def _sizes(layer: nn.Module) -> Sizes:
    match layer:
        case nn.Conv2d():
            return layer.in_channels, layer.out_channels, layer.groups
        case nn.Linear():
            return layer.in_features, layer.out_features, 1
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return layer.num_features, layer.num_features, 1
        case nn.GroupNorm():
            return layer.num_channels, layer.num_channels, layer.num_groups
        case nn.LayerNorm():
            return layer.normalized_shape[0], layer.normalized_shape[0], 1
        case nn.PReLU():
            return layer.num_parameters, layer.num_parameters, 1
    raise TypeError(f"a {type(layer).__name__} has no channels to count")


def _check(path: str, size: Sizes, layers: dict[str, nn.Module]) -> None:
    where = f"The saved channels name the layer {path!r} of {type(layers['']).__name__}"
    layer = layers.get(path)
    if layer is None:
        raise ArtifactError(f"{where}, which has no such layer.{near(path, _all_sizes(layers['']))}")
    if not resizable(layer):
        raise ArtifactError(f"{where}, a {type(layer).__name__}, whose channels cannot be set.")
    present = _sizes(layer)
    fits = all(1 <= new <= old for new, old in zip(size, present, strict=True))
    inputs, outputs, groups = size
    fits = fits and inputs % groups == 0 and outputs % groups == 0
    if isinstance(layer, nn.Conv2d):
        fits = fits and inputs // groups <= layer.weight.shape[1]
    elif not isinstance(layer, nn.Linear):
        fits = fits and inputs == outputs
    if not fits:
        raise ArtifactError(
            f"{where} with (input channels, output channels, groups) = {size}, which cannot be cut from the "
            f"{present} of the architecture. The file belongs to another network or is damaged."
        )


def _resize(layer: nn.Module, inputs: int, outputs: int, groups: int) -> None:
    """Cut one layer in place: unlike building anew, this keeps its settings and draws no random numbers."""
    match layer:
        case nn.Conv2d():
            layer.in_channels, layer.out_channels, layer.groups = inputs, outputs, groups
            _cut(layer, "weight", outputs, inputs // groups)
        case nn.Linear():
            layer.in_features, layer.out_features = inputs, outputs
            _cut(layer, "weight", outputs, inputs)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            layer.num_features = outputs
            _cut(layer, "weight", outputs)
            _cut(layer, "running_mean", outputs)
            _cut(layer, "running_var", outputs)
        case nn.GroupNorm():
            layer.num_channels, layer.num_groups = outputs, groups
            _cut(layer, "weight", outputs)
        case nn.LayerNorm():
            layer.normalized_shape = (outputs,)
            _cut(layer, "weight", outputs)
        case nn.PReLU():
            layer.num_parameters = outputs
            _cut(layer, "weight", outputs)
    _cut(layer, "bias", outputs)


def _cut(layer: nn.Module, name: str, *shape: int) -> None:
    """Keep the first `shape` entries of the first dimensions of a parameter or buffer, where there is one."""
    tensor = getattr(layer, name, None)
    if tensor is None:
        return
    kept = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    if isinstance(tensor, nn.Parameter):
        kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
    setattr(layer, name, kept)
