"""A model of your own."""

from typing import ClassVar

from torch import nn

from compress.config import Config
from compress.models import MODELS


class MyModel(Config):
    """Two convolutions, the mean over the pixels, a linear layer."""

    name: ClassVar[str] = "my_model"
    width: int = 32

    def __call__(self, classes, image):
        first = nn.Conv2d(image[0], self.width, 3, 2, 1, bias=False), nn.BatchNorm2d(self.width), nn.ReLU()
        second = nn.Conv2d(self.width, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


MODELS[MyModel.name] = MyModel
