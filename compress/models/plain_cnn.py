from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from compress.config import Config

Width = Annotated[int, Field(ge=1, le=4096)]


class PlainCNN(Config):
    """A plain convolutional net, nothing branching: LeCun et al. 1998, doi:10.1109/5.726791, of today's layers.

    For each of `widths` a 3×3 convolution (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch-norm and ReLU, a 2×2
    max-pooling between one and the next, in the end the mean over the pixels and a linear layer (Lin et al. 2014,
    arXiv:1312.4400). By default 24 thousand parameters: a student for small grey images.
    """

    name: ClassVar[str] = "plain_cnn"
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (16, 32, 64)

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        side = min(image[1:])
        if side >> (len(self.widths) - 1) == 0:
            raise ValueError(f"its {len(self.widths)} widths want {len(self.widths) - 1} halvings; give fewer widths")
        return _PlainCNN(classes, image[0], self.widths)


class _PlainCNN(nn.Module):
    def __init__(self, classes: int, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False)):
            layers += [nn.MaxPool2d(2)] if i else []
            layers.append(_conv(inputs, outputs))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x)).flatten(1)
        return self.classifier(self.dropout(x))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
