"""Magnitude pruning of single weights: which become zero, and keeping them zero while a net is trained.

Shapes stay as they are, so that dense kernels gain nothing; the file compresses better, and hardware that skips zeros
can use them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from compress.edits.sparse import Sparse
from compress.errors import ConfigError
from compress.net import Net
from compress.pruning.patterns import check_patterns, matches

Layer = nn.Conv2d | nn.Linear
LEAST_LEFT = 0.01  # of every layer: one without weights would cut the network in two


class MagnitudePruning:
    """Removes the weights of smallest |w| from some layers, little by little, and holds them at zero (Han et al. 2015,
    arXiv:1506.02626).

    Either until a share `sparsity` of all these weights is zero, those of all layers together (`scope: global`) or of
    each for itself (`layer`), or until none is smaller than `threshold`. Of every layer one weight in a hundred stays,
    unless `sparsity` itself leaves less. What is zero at the start counts as removed. Raises ConfigError where a
    threshold is larger than all weights of a layer.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        *,
        sparsity: float = 0.0,
        threshold: float | None = None,
        scope: Literal["global", "layer"] = "global",
    ) -> None:
        self.layers, self.sparsity, self.threshold = layers, sparsity, threshold
        self.zero = {path: layer.weight.detach() == 0 for path, layer in layers.items()}
        self.units = [list(layers)] if scope == "global" else [[path] for path in layers]
        self.before = [sum(self.zeros[path] for path in unit) for unit in self.units]
        if threshold is not None:
            self._require_left(threshold)

    @property
    def zeros(self) -> dict[str, int]:
        """How many weights of each layer are removed."""
        return {path: int(zero.sum()) for path, zero in self.zero.items()}

    def remove(self, done: float) -> None:
        """Go a part of the way, 0 to 1: from the zeros at the start to those wanted. Nothing removed comes back."""
        self.hold()  # a step may have moved them
        for unit, before in zip(self.units, self.before, strict=True):
            weights = [self.layers[path].weight.detach().abs() for path in unit]
            values = torch.cat([weight.flatten() for weight in weights])
            sizes = [weight.numel() for weight in weights]
            chosen = self._chosen(values, sizes, before, done)
            for path, weight, zero in zip(unit, weights, torch.split(chosen, sizes), strict=True):
                self.zero[path] = self.zero[path].to(weight.device) | zero.reshape(weight.shape)
        self.hold()

    def hold(self) -> None:
        """Set all weights that were removed to zero again."""
        for path, layer in self.layers.items():
            self.zero[path] = self.zero[path].to(layer.weight.device)
            with torch.no_grad():
                layer.weight.masked_fill_(self.zero[path], 0.0)

    def state(self) -> dict[str, Tensor]:
        """Which weights are removed, by layer."""
        return dict(self.zero)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.zero = {path: state[path] for path in self.zero}

    def _chosen(self, values: Tensor, sizes: list[int], before: int, done: float) -> Tensor:
        """Which of these |w|, (n,), are to be zero; `sizes` are those of the layers that they come from."""
        left = LEAST_LEFT if self.threshold is not None else min(LEAST_LEFT, 1 - self.sparsity)
        parts = []
        for part in torch.split(values, sizes):
            safe = torch.zeros_like(part, dtype=torch.bool)
            safe[part.topk(math.ceil(left * len(part))).indices] = True
            parts.append(safe)
        free = values.masked_fill(torch.cat(parts), math.inf)
        if self.threshold is not None:
            return free < self.threshold * done
        # 1e-9: 0.29 of 100 is 28.999… in floating point.
        wanted = math.floor(self.sparsity * len(values) + 1e-9)
        count = before + math.floor(max(wanted - before, 0) * done + 1e-9)
        return smallest(free, min(count, int(free.isfinite().sum())))

    def _require_left(self, threshold: float) -> None:
        for path, layer in self.layers.items():
            largest = float(layer.weight.detach().abs().max())
            if largest < threshold:
                raise ConfigError(
                    f"threshold: {threshold:g} is more than every weight of {path} (the largest is {largest:.3g}), so "
                    "nothing of the layer would be left. Take a smaller threshold, or exclude the layer."
                )


def smallest(values: Tensor, count: int) -> Tensor:
    """Which `count` of `values`, (n,), are smallest, as booleans; among equals those of lower index."""
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    bound = values.kthvalue(count).values
    chosen = values < bound
    ties = (values == bound).nonzero()[: count - int(chosen.sum())]
    chosen[ties] = True
    return chosen


def cubic(part: float) -> float:
    """How much of the way to the final sparsity is made after a part of the time: 1 - (1 - t)³.

    Zhu & Gupta 2017 (arXiv:1710.01878, eq. 1): s_t = s_f + (s_i - s_f)·(1 - t)³.
    """
    return 1 - (1 - part) ** 3


@contextmanager
def after_each_step(action: Callable[[], None]) -> Iterator[None]:
    """Do something after every step of the optimiser that trains in the meantime."""
    hook = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: action())
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def kept_zero(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Let the weights of these layers that are zero now be so after every step, whatever trains the others."""
    if not layers:
        yield
        return
    held = MagnitudePruning(layers)
    with after_each_step(held.hold):
        yield
    held.hold()  # a moving average may have taken the weights' place


def sparse_layers(net: Net) -> dict[str, Layer]:
    """The layers of a net in which an earlier stage removed single weights, as far as they are still there."""
    names = {path for edit in net.spec.edits if isinstance(edit, Sparse) for path in edit.layers}
    return {path: layer for path, layer in _layers(net.module).items() if path in names}


def chosen_layers(module: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, Layer]:
    """The convolutions and linear layers that patterns over their names leave, by name.

    Raises ConfigError for a pattern without a match, with near names, and where nothing is left.
    """
    layers = _layers(module)
    check_patterns(dict.fromkeys(layers, ""), include, exclude, done="made sparse")
    chosen = {path: layer for path, layer in layers.items() if not include or matches(path, include)}
    chosen = {path: layer for path, layer in chosen.items() if not matches(path, exclude)}
    if not chosen:
        why = "include, exclude: no layer is left" if layers else f"{type(module).__name__} has no layer"
        raise ConfigError(f"{why} to remove weights from; convolutions and linear layers have some.")
    return chosen


def _layers(module: nn.Module) -> dict[str, Layer]:
    return {path: each for path, each in module.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
