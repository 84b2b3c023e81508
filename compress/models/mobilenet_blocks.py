from math import prod
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from compress.config import Config
from compress.models.torchvision import SMALL_IMAGE

Width = Annotated[int, Field(ge=1, le=8192)]
Depth = Annotated[int, Field(ge=1, le=64)]
Expansion = Annotated[int, Field(ge=1, le=32)]
Stride = Annotated[int, Field(ge=1, le=4)]


def odd(kernel: int) -> int:
    """Only odd kernels have a centre; raises ValueError for others."""
    if kernel % 2 == 0:
        raise ValueError(f"should be odd, so that it has a centre, not {kernel}")
    return kernel


Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(odd)]


class MobileNetBlocks(Config):
    """A MobileNet of inverted residuals (Sandler et al. 2018, arXiv:1801.04381, sec. 3.3) whose sizes are all fields.

    `widths`, `depths` (blocks), `kernels` (of the depthwise convolutions), `expansions` and `strides` (of the first
    block) have one number a stage; `stem` and `head` are the widths of the first and the last convolution. Where images
    have more pixels a side than `resolution`, the network scales them down first. Left out, `stem_stride` is 1
    below 96 pixels and 2 from there on.
    """

    name: ClassVar[str] = "mobilenet_blocks"
    stem: Width = 16
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (16, 32, 48, 96, 160)
    depths: tuple[Depth, ...] = (1, 2, 2, 3, 2)
    kernels: tuple[Kernel, ...] = (3, 3, 3, 3, 3)
    expansions: tuple[Expansion, ...] = (1, 4, 4, 4, 4)
    strides: tuple[Stride, ...] = (1, 2, 2, 2, 2)
    head: Width = 512
    resolution: Annotated[int, Field(ge=8, le=1024)] | None = None
    stem_stride: Stride | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "MobileNetBlocks":
        stages = len(self.widths)
        for key in ("depths", "kernels", "expansions", "strides"):
            if len(getattr(self, key)) != stages:
                given = len(getattr(self, key))
                raise ValueError(f"{key} has {given} numbers and widths {stages}; give one a stage in each")
        return self

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        self.check(image)
        return _MobileNetBlocks(self, classes, image)

    def seen(self, image: tuple[int, int, int]) -> tuple[int, int]:
        """Height and width of images once they are scaled down."""
        _, height, width = image
        if self.resolution is None or self.resolution >= height:
            return height, width
        return self.resolution, max(1, round(width * self.resolution / height))

    def first_stride(self, image: tuple[int, int, int]) -> int:
        """The stride of the first convolution."""
        return self.stem_stride or (1 if self.seen(image)[0] < SMALL_IMAGE else 2)

    def check(self, image: tuple[int, int, int]) -> None:
        """Raise ValueError where the strides leave less than a pixel of the images."""
        whole, side = self.first_stride(image) * prod(self.strides), min(self.seen(image))
        if whole > side:
            raise ValueError(
                f"its strides divide a side by {whole}, and {side} pixels are fewer; set more of `strides` to 1, or a "
                "larger `resolution` or data `size`"
            )


class _MobileNetBlocks(nn.Module):
    def __init__(self, fields: MobileNetBlocks, classes: int, image: tuple[int, int, int]) -> None:
        super().__init__()
        self.scale = _scaling(image[1:], fields.seen(image))
        self.stem = _conv(image[0], fields.stem, kernel=3, stride=fields.first_stride(image))
        inputs, stages = fields.stem, []
        for width, depth, kernel, expansion, stride in zip(
            fields.widths, fields.depths, fields.kernels, fields.expansions, fields.strides, strict=True
        ):
            blocks = []
            for i in range(depth):
                blocks.append(_InvertedResidual(inputs, width, kernel, stride if i == 0 else 1, expansion))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = _conv(inputs, fields.head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(fields.head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.head(self.stages(self.stem(self.scale(x))))).flatten(1)
        return self.classifier(self.dropout(x))  # type: ignore[no-any-return]


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _conv(inputs, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = _conv(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self.project = _conv(hidden, outputs, activation=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _scaling(given: tuple[int, int], wanted: tuple[int, int]) -> nn.Module:
    """Mean over whole pixels as far as they go, which has an int8 kernel, and bilinear from there.

    Bilinear alone looks at four pixels whatever the factor, and skips some from a half on.
    """
    if wanted == given:
        return nn.Identity()
    whole = min(given[0] // wanted[0], given[1] // wanted[1])
    exact = wanted == (given[0] / whole, given[1] / whole)
    layers: list[nn.Module] = [nn.AvgPool2d(whole)] if whole > 1 else []
    if not exact:
        layers.append(nn.Upsample(size=wanted, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if activation else nn.Sequential(*layers)
