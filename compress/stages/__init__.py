"""Stages. To add one: write a file beside distill.py, add its class to the tuple below."""

from compress.stages.base import Env, Stage, untrained
from compress.stages.distill import Distill
from compress.stages.prune import Prune
from compress.stages.quantize import Quantize
from compress.stages.train import Train

__all__ = ["STAGES", "Distill", "Env", "Prune", "Quantize", "Stage", "Train", "untrained"]

STAGES: dict[str, type[Stage]] = {stage.name: stage for stage in (Train, Distill, Prune, Quantize)}
