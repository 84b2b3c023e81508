"""What keeps a net from learning its images by heart, beside its losses: penalties on weights, and dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress.recipe import Training


def penalty(module: nn.Module, training: Training) -> Tensor | None:
    """What is added to the losses: `l1` times all |w|, `bn_l1` times the |γ| of batch-norms; None for neither."""
    terms = []
    if training.l1:
        weights = [m.weight.abs().sum() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        terms.append(training.l1 * torch.stack(weights).sum())
    if training.bn_l1:
        terms.append(training.bn_l1 * torch.cat(gammas(module)).abs().sum())
    return sum(terms[1:], terms[0]) if terms else None


def gammas(module: nn.Module) -> list[Tensor]:
    """Every γ of a batch-norm."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [layer.weight for layer in module.modules() if isinstance(layer, norms) and layer.affine]


@contextmanager
def dropout(module: nn.Module, probability: float | None) -> Iterator[None]:
    """Another probability while training: a net rebuilt from its description has its architecture's own."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if probability is None else probability
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
