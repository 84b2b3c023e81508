"""A network and pipelines so small that a whole run takes seconds."""

from typing import Any, ClassVar

from torch import Tensor, nn

from compress.config import Config
from compress.models import MODELS
from compress.pipeline import Pipeline, parsed


class Tiny(Config):
    """Three convolutions, one residual addition (after He et al. 2016, arXiv:1512.03385)."""

    name: ClassVar[str] = "tiny"
    width: int = 32

    def __call__(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        return _Tiny(classes, image[0], self.width)


class _Tiny(nn.Module):
    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.middle = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.back = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(self.middle(x))
        return self.head(self.dropout(self.pool(x).flatten(1)))  # type: ignore[no-any-return]


MODELS.setdefault(Tiny.name, Tiny)


def raw_pipeline(**changes: Any) -> dict[str, Any]:
    """A whole pipeline on made-up images, as a file would say it."""
    training = {"epochs": 2, "batch_size": 16, "lr": 0.01}
    whole = {
        "name": "tiny",
        "data": {"synthetic": {"size": 16, "classes": 4, "samples": 160}},
        "teacher": {"model": {"tiny": {"width": 48}}, "training": training},
        "student": "tiny",
        "stages": [
            {"distill": {"training": training}},
            {"prune": {"keep_macs": 0.6, "training": training}},
            {"quantize": {"training": training | {"lr": 0.001}}},
        ],
        "benchmark": {"rounds": 2},
    }
    whole.update(changes)
    return {key: value for key, value in whole.items() if value is not None}


def tiny_pipeline(**changes: Any) -> Pipeline:
    """The same, read."""
    return parsed(raw_pipeline(**changes), "tiny.yaml")
