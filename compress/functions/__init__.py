"""The algorithms as functions on a plain `torch.nn.Module`, without a pipeline file or a run folder.

Each leaves the module that it is given as it was. What a report would remark goes to the logger `compress`.
"""

from compress.functions.distillation import distill
from compress.functions.exporting import export
from compress.functions.pruning import prune
from compress.functions.quantization import quantize
from compress.functions.running import Rows, run

__all__ = ["Rows", "distill", "export", "prune", "quantize", "run"]
