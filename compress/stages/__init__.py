"""Stages. To add one: write a file beside distill.py, add its class to the tuple below."""

from compress.stages.base import Ending, Env, Stage, untrained
from compress.stages.distill import Distill
from compress.stages.factorize import Factorize
from compress.stages.prune import Prune
from compress.stages.quantize import Quantize
from compress.stages.search import Search
from compress.stages.sensitivity import Sensitivity
from compress.stages.sparsify import Sparsify
from compress.stages.train import Train

__all__ = [
    "STAGES",
    "Distill",
    "Ending",
    "Env",
    "Factorize",
    "Prune",
    "Quantize",
    "Search",
    "Sensitivity",
    "Sparsify",
    "Stage",
    "Train",
    "untrained",
]

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (Train, Distill, Prune, Factorize, Search, Sparsify, Quantize, Sensitivity)
}
