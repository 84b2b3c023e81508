"""Stages. To add one: write a file beside distill.py, add its class to the tuple below."""

from compress.stages.base import Ending, Env, Stage, untrained
from compress.stages.born_again import BornAgain
from compress.stages.distill import Distill
from compress.stages.factorize import Factorize
from compress.stages.mutual import Mutual
from compress.stages.prune import Prune
from compress.stages.quantize import Quantize
from compress.stages.search import Search
from compress.stages.sensitivity import Sensitivity
from compress.stages.sparsify import Sparsify
from compress.stages.train import Train

__all__ = [
    "STAGES",
    "BornAgain",
    "Distill",
    "Ending",
    "Env",
    "Factorize",
    "Mutual",
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
    stage.name: stage
    for stage in (Train, Distill, Mutual, BornAgain, Prune, Factorize, Search, Sparsify, Quantize, Sensitivity)
}
