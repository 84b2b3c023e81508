"""Low-rank factorisation as data: which layers are two thinner ones behind each other, and how thin.

The factors themselves are weights: they come from the file beside the description, as all others do.
"""

from typing import ClassVar

from torch import nn

from compress.config import Config, near
from compress.errors import ArtifactError


class Factorized(Config):
    """Layers in two parts, with `ranks[layer]` channels between them.

    A Linear becomes a Linear without bias to that many features and one from there to its outputs; a k×k Conv2d
    becomes a k×k one without bias, with the layer's stride, padding and dilation, and a 1×1 one (Zhang et al. 2016,
    arXiv:1505.06798). The two stand in a Sequential under the layer's name, as `name.0` and `name.1`.
    """

    name: ClassVar[str] = "factorized"
    ranks: dict[str, int]

    def __call__(self, module: nn.Module) -> nn.Module:
        """Put the pairs in the place of their layers, in place, and return the module; their values are random.

        Raises ArtifactError where a layer does not exist, cannot be factorised, or has no such rank: all is
        checked before anything is changed.
        """
        layers = dict(module.named_modules())
        for path, rank in self.ranks.items():
            _check(path, rank, layers)
        for path, rank in self.ranks.items():
            module.set_submodule(path, _pair(layers[path], rank))
        return module


def why_whole(layer: nn.Module) -> str:
    """Why a layer cannot be factorised, or nothing: what is needed is a plain Linear or a Conv2d of one group."""
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"it is a {type(layer).__name__}, which cannot be taken apart"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        depthwise = layer.groups == layer.in_channels
        return "it is depthwise" if depthwise else f"it has {layer.groups} groups"
    return ""


def matrix_shape(layer: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    """Outputs and inputs of the layer's weight seen as a matrix; a convolution's inputs are C_in·k_h·k_w."""
    outputs = layer.weight.shape[0]
    return outputs, layer.weight.numel() // outputs


def _check(path: str, rank: int, layers: dict[str, nn.Module]) -> None:
    where = f"The saved ranks name the layer {path!r} of {type(layers['']).__name__}"
    layer = layers.get(path) if path else None
    if layer is None:
        known = [name for name, each in layers.items() if name and not why_whole(each)]
        raise ArtifactError(f"{where}, which has no such layer.{near(path, known)}")
    reason = why_whole(layer)
    if reason:
        raise ArtifactError(f"{where}, which cannot be factorised: {reason}.")
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    shape = matrix_shape(layer)
    if not 1 <= rank <= min(shape):
        raise ArtifactError(
            f"{where} with rank {rank}, where its {shape[0]}×{shape[1]} weights have ranks from 1 to {min(shape)}. "
            "The file belongs to another network or is damaged."
        )


def _pair(layer: nn.Module, rank: int) -> nn.Sequential:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight, bias = layer.weight, layer.bias is not None
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=bias)
    else:
        first = nn.Conv2d(
            layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
            layer.dilation, bias=False, padding_mode=layer.padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
    pair = nn.Sequential(first, second).to(weight.device, weight.dtype).train(layer.training)
    return pair.requires_grad_(weight.requires_grad)
