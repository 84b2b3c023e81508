"""The two networks of the distillation literature's cross-architecture pair on 32-pixel images."""

from typing import Annotated, ClassVar

import torchvision
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config

# (expansion t, channels c, blocks n, stride s) of Sandler et al. 2018, table 2, with a stride of 1 in the second
SETTING = [
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
LAST = 1280


class MobileNetV2Cifar(Config):
    """Half-width MobileNetV2 for 32-pixel images (Tian et al. 2020, arXiv:1910.10699, table 2).

    Widths are int(c/2), 12 and not 16; the block with t = 1 keeps its expanding convolution; the last layer stays
    at 1280. 812,836 parameters and 6.52 million multiply-accumulates with 100 classes at 32 pixels.
    """

    name: ClassVar[str] = "mobilenet_v2_cifar"
    width: Annotated[float, Field(gt=0, le=8)] = 0.5

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        return _MobileNetV2(classes, image[0], self.width)


class ResNet50Cifar(Config):
    """ResNet50 with a 3×3 stem of stride 1 and no max-pooling (Tian et al. 2020, arXiv:1910.10699, table 2).

    23.7 million parameters, 1,298 million multiply-accumulates with 100 classes at 32 pixels.
    """

    name: ClassVar[str] = "resnet50_cifar"
    zero_init_residual: bool = False

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        net = torchvision.models.resnet50(num_classes=classes, zero_init_residual=self.zero_init_residual)
        net.conv1 = nn.Conv2d(image[0], 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        module: nn.Module = net
        return module


class _MobileNetV2(nn.Module):
    def __init__(self, classes: int, channels: int, width: float) -> None:
        super().__init__()
        inputs = max(1, int(32 * width))
        self.stem = _conv(channels, inputs, kernel=3, stride=2)
        blocks = []
        for expansion, wanted, count, stride in SETTING:
            for i in range(count):
                outputs = max(1, int(wanted * width))
                blocks.append(_InvertedResidual(inputs, outputs, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = _conv(inputs, LAST)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(LAST, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.last(self.blocks(self.stem(x)))).flatten(1)
        return self.classifier(self.dropout(x))  # type: ignore[no-any-return]


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _conv(inputs, hidden)
        self.depthwise = _conv(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = _conv(hidden, outputs, activation=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if activation else nn.Sequential(*layers)
