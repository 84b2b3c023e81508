"""Every classification network of torchvision, by the name torchvision gives it."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torchvision
from pydantic import Field, create_model
from torch import nn

from compress.config import Config

SMALL_IMAGE = 96  # below this many pixels `stem: auto` keeps the first layers' resolution


class Torchvision(Config):
    """A network of torchvision.models, untrained; its page there cites the paper.

    `stem` is how its first layers treat the image: `imagenet` as published; `small` with stride 1 in the first
    convolution (in ResNets also 3×3 and without max-pooling, as He et al. 2016, arXiv:1512.03385, sec. 4.2, for
    CIFAR); `auto` is `small` for images under 96 pixels.
    """

    name: ClassVar[str] = "torchvision"
    arguments: ClassVar[dict[str, Any]] = {}
    stem: Literal["auto", "imagenet", "small"] = "auto"

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        channels, height, _ = image
        net: nn.Module = builder(self.name)(num_classes=classes, **self.arguments, **self.own_arguments(image))
        small = self.stem == "small" or (self.stem == "auto" and height < SMALL_IMAGE)
        if small and isinstance(net, torchvision.models.ResNet):
            net.maxpool = nn.Identity()
        change_first_convolution(net, channels=channels, small=small)
        return net

    def own_arguments(self, image: tuple[int, int, int]) -> dict[str, Any]:
        """Further arguments of torchvision's builder that follow from the fields or the image."""
        return {"image_size": image[1]} if self.name.startswith("vit_") else {}


class Mobile(Torchvision):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), V3 (Howard et al. 2019, arXiv:1905.02244), any width."""

    width: Annotated[float, Field(gt=0, le=8)] = 1.0

    def own_arguments(self, image: tuple[int, int, int]) -> dict[str, Any]:
        """The width multiplier."""
        return {"width_mult": self.width}


class ResNet(Torchvision):
    """ResNet and its kin (He et al. 2016, arXiv:1512.03385).

    `zero_init_residual` starts each residual branch at zero (Goyal et al. 2017, arXiv:1706.02677, sec. 5.1).
    """

    zero_init_residual: bool = True

    def own_arguments(self, image: tuple[int, int, int]) -> dict[str, Any]:
        """How the residual branches start."""
        return {"zero_init_residual": self.zero_init_residual}


def builder(name: str) -> Callable[..., nn.Module]:
    """Torchvision's function that builds this network."""
    found: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    return found


def change_first_convolution(net: nn.Module, *, channels: int, small: bool) -> None:
    """Give the first convolution `channels` input channels and, if `small`, stride 1 and at most a 3×3 kernel."""
    for name, conv in net.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
        if small and kernel[0] == 7:
            kernel, stride, padding = (3, 3), (1, 1), (1, 1)
        elif small and kernel[0] == 3:
            stride = (1, 1)
        if (conv.in_channels, conv.kernel_size) == (channels, kernel):
            conv.stride = stride
        else:
            has_bias = conv.bias is not None
            new = nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=has_bias)  # type: ignore[arg-type]
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
            net.set_submodule(name, new)
        return


# Without these the two would return their auxiliary heads' outputs beside the logits while training.
PLAIN = {"aux_logits": False, "init_weights": True}
ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": PLAIN, "inception_v3": PLAIN}


def _adapter(name: str) -> type[Torchvision]:
    base: type[Torchvision] = Torchvision
    if name.startswith(("mobilenet_v2", "mobilenet_v3")):
        base = Mobile
    elif name.startswith(("resnet", "resnext", "wide_resnet")):
        base = ResNet
    adapter: type[Torchvision] = create_model(name, __base__=base, __doc__=base.__doc__)
    adapter.name = name
    adapter.arguments = ARGUMENTS.get(name, {})
    return adapter


TORCHVISION: dict[str, type[Torchvision]] = {
    name: _adapter(name) for name in torchvision.models.list_models(module=torchvision.models)
}
