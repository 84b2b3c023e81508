"""Architectures. To add one: write a file beside mobilenet_v1.py, add its class to the tuple below."""

from compress.models.base import Architecture
from compress.models.cifar import MobileNetV2Cifar, ResNet50Cifar
from compress.models.mobilenet_blocks import MobileNetBlocks
from compress.models.mobilenet_v1 import MobileNetV1
from compress.models.plain_cnn import PlainCNN
from compress.models.timm import Timm
from compress.models.torchvision import TORCHVISION

__all__ = ["MODELS", "Architecture"]

OURS: tuple[type[Architecture], ...] = (MobileNetV1, MobileNetBlocks, MobileNetV2Cifar, ResNet50Cifar, PlainCNN, Timm)
MODELS: dict[str, type[Architecture]] = {model.name: model for model in OURS} | TORCHVISION
