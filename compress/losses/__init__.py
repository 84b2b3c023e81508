"""Losses. To add one: write a file beside kd.py, add its class to the tuple below."""

from compress.losses.base import Batch, Loss, Outputs
from compress.losses.cross_entropy import CrossEntropy
from compress.losses.kd import KD

__all__ = ["KD", "LOSSES", "Batch", "CrossEntropy", "Loss", "Outputs"]

LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (CrossEntropy, KD)}
