from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.models.torchvision import SMALL_IMAGE

# (output channels, stride) of each depthwise separable block, table 1
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class MobileNetV1(Config):
    """MobileNetV1 (Howard et al. 2017, arXiv:1704.04861, table 1), with ReLU and a width multiplier.

    Images under 96 pixels get a first convolution of stride 1.
    """

    name: ClassVar[str] = "mobilenet_v1"
    width: Annotated[float, Field(gt=0, le=8)] = 1.0

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        return _MobileNetV1(classes, image[0], self.width, first_stride=1 if image[1] < SMALL_IMAGE else 2)


class _MobileNetV1(nn.Module):
    def __init__(self, classes: int, channels: int, width: float, first_stride: int) -> None:
        super().__init__()
        inputs = _rounded(32 * width)
        layers = [_conv(channels, inputs, kernel=3, stride=first_stride)]
        for wanted, stride in BLOCKS:
            outputs = _rounded(wanted * width)
            layers += [_conv(inputs, inputs, kernel=3, stride=stride, groups=inputs), _conv(inputs, outputs)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x)).flatten(1)
        return self.classifier(self.dropout(x))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, so that a width multiplier does not leave widths that kernels dislike."""
    return max(8, int(channels + 4) // 8 * 8)
