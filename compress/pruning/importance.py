"""How important channels are.

A criterion gives every channel of a coupled group a number; those with the smallest go first. To add one: put an
`Importance` into the table `IMPORTANCES`, here or in a plugin.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.edits.graph import evaluating
from compress.errors import ConfigError
from compress.pruning.groups import READS, ChannelGroup

Floats = NDArray[np.float64]
Examples = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # batches of inputs and labels, the same at each call
WRITES = (tp.prune_conv_out_channels, tp.prune_linear_out_channels)
SCALES = (tp.prune_batchnorm_out_channels, tp.prune_layernorm_out_channels)


@dataclass(frozen=True)
class Importance:
    """A criterion: what it goes by, in a line, and the numbers themselves.

    `scores(group)` gives a number for each channel of a group, (width,) and never less than 0; None where it finds
    nothing to go by. `written_weights` has what it will mostly look at. `comparable` says that the numbers mean the
    same in every layer: a mean of their own for each group would take just that away. Without `scores` the numbers are
    `random` or come from the gradients of examples.
    """

    summary: str
    scores: Callable[[ChannelGroup], Tensor | None] | None = None
    comparable: bool = False
    needs_examples: bool = False


def importances(
    module: nn.Module, groups: Sequence[ChannelGroup], importance: str, seed: int, examples: Examples | None = None
) -> list[Floats | None]:
    """How important each bundle of channels is, a (width / bundle,) array for each group; never less than 0.

    `l2`, `l1`: the sum of |w|^p over the weights that write, scale or read the channel, averaged over the coupled
    layers (Li et al. 2017, arXiv:1608.08710, for groups as DepGraph, arXiv:2301.12900); depthwise filters do not count.
    `fpgm`: the distance to the other filters. `bn_scale`: the mean |γ| of the batch-norms (Liu et al. 2017,
    arXiv:1708.06519). `random`, which follows from the seed and the layer's name, is what the others must beat. These
    have mean 1 in each group, since the scale of weights says nothing across layers.

    `taylor` and `hessian` estimate what removing the channel does to the cross-entropy, from gradients on `examples`.
    `lamp` is l2 over what is left of the group when the channel goes. These compare over layers; they have mean 1
    over all channels of all groups.

    A bundle's number is the mean over its channels. None stands for a group in which the criterion finds nothing to
    go by, values that are not finite are left for the caller to see. Raises ConfigError where a criterion needs
    examples and there are none.
    """
    found: list[Floats | None]
    criterion = IMPORTANCES[importance]
    if criterion.scores is not None:
        found = [_scored(group, importance, criterion.scores) for group in groups]
    elif criterion.needs_examples:
        found = _from_gradients(module, groups, importance, examples)
    else:
        found = [_drawn(group, seed) for group in groups]
    return _comparable(found, groups) if criterion.comparable else [_relative(scores) for scores in found]


def _scored(group: ChannelGroup, importance: str, scores_of: Callable[[ChannelGroup], Tensor | None]) -> Floats | None:
    """The criteria that look at a group's weights; raises ConfigError where one gives what no criterion may."""
    with torch.no_grad():
        scores = scores_of(group)
    if scores is None:
        return None
    if not isinstance(scores, Tensor) or scores.shape != (group.width,) or bool((scores < 0).any()):
        given = str(tuple(scores.shape)) if isinstance(scores, Tensor) else type(scores).__name__
        given = "negative ones" if given == f"({group.width},)" else given
        raise ConfigError(
            f"importance: {importance!r} should give {group.name} a tensor of {group.width} numbers, none below 0, "
            f"and gives {given}"
        )
    values = _bundled(scores.double().cpu().numpy(), group)
    return lamp(values) if importance == "lamp" else values


def _drawn(group: ChannelGroup, seed: int) -> Floats:
    generator = np.random.default_rng([seed, *group.name.encode()])
    return generator.uniform(0.5, 1.5, group.width // group.bundle)


def _bundled(channels: Floats, group: ChannelGroup) -> Floats:
    bundles: Floats = channels.reshape(group.bundle, -1).mean(0)
    return bundles


def _relative(scores: Floats | None) -> Floats | None:
    """Mean 1 within the group; equal where nothing is left of any channel."""
    if scores is None or not scores.any():
        return None if scores is None else np.ones_like(scores)
    if not np.isfinite(scores.sum()):
        return scores  # who asked says what is wrong
    relative: Floats = scores / scores.mean()
    return relative


def _comparable(found: Sequence[Floats | None], groups: Sequence[ChannelGroup]) -> list[Floats | None]:
    """Mean 1 over all channels of all groups; equal where none of them does anything."""
    scored = [(scores, group) for scores, group in zip(found, groups, strict=True) if scores is not None]
    total = sum(scores.sum() * group.bundle for scores, group in scored)
    if not np.isfinite(total):
        return list(found)
    mean = total / max(sum(group.width for _, group in scored), 1)
    return [None if scores is None else scores / mean if mean > 0 else np.ones_like(scores) for scores in found]


# Weights


def written_weights(group: ChannelGroup) -> list[Tensor]:
    """The weights that write a group's channels, (width, numbers) for each convolution and linear layer among them."""
    found = []
    for item in group.graph.items:
        if item.dep.handler in WRITES:
            order = torch.tensor(item.root_idxs).argsort()
            found.append(item.dep.target.module.weight[item.idxs].flatten(1).cpu()[order])
    return found


def _magnitude(group: ChannelGroup, power: int, kinds: tuple[type[nn.Module], ...] = (nn.Module,)) -> Tensor | None:
    """Σ|w|^p over a channel's slice of each coupled layer of these kinds, averaged over the layers, (width,)."""
    total, layers = torch.zeros(group.width), 0
    for item in group.graph.items:
        each = _slice_sums(item, power) if isinstance(item.dep.target.module, kinds) else None
        if each is not None:
            total.index_add_(0, torch.tensor(item.root_idxs), each.float().cpu())
            layers += 1
    return total / layers if layers else None


def _slice_sums(item: Any, power: int) -> Tensor | None:
    """Σ|w|^p over the weights that belong to each of a coupled layer's channels, (channels,)."""
    layer, handler, channels = item.dep.target.module, item.dep.handler, item.idxs
    if handler in WRITES:
        return layer.weight[channels].flatten(1).abs().pow(power).sum(1)  # type: ignore[no-any-return]
    if handler in READS:
        parts = layer.weight.chunk(getattr(layer, "groups", 1))  # of a grouped convolution, each with inputs of its own
        sums = [part.transpose(0, 1).flatten(1).abs().pow(power).sum(1) for part in parts]
        return torch.cat(sums)[channels]
    if handler in SCALES and layer.weight is not None:
        return layer.weight[channels].abs().pow(power)  # type: ignore[no-any-return]
    return None


def _median_distance(group: ChannelGroup) -> Tensor:
    """FPGM: the nearer a filter is to all others of its layer, the less important it is.

    He et al. 2019 (arXiv:1811.00250, eq. 4): the sum of the Euclidean distances to the layer's other filters,
    here averaged over the layers whose outputs the group's channels are.
    """
    scores = torch.zeros(group.width)
    layers = [item for item in group.graph.items if item.dep.handler in (*WRITES, tp.prune_depthwise_conv_out_channels)]
    for item in layers:
        filters = item.dep.target.module.weight[item.idxs].flatten(1).cpu()
        scores.index_add_(0, torch.tensor(item.root_idxs), torch.cdist(filters, filters).sum(1))
    return scores / len(layers)


def lamp(squares: Floats) -> Floats:
    """LAMP: a squared norm over the sum of all that are as large or larger, in the group; any shape (n,).

    Lee et al. 2021 (arXiv:2010.07611, eq. 2), for channels in place of weights. The largest scores 1, so that no group
    is emptied; a norm of 0 scores 0.
    """
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros_like(squares)
    scores[order] = np.divide(squares[order], left, out=np.zeros_like(left), where=left != 0)
    return scores


# Gradients


def _from_gradients(
    module: nn.Module, groups: Sequence[ChannelGroup], importance: str, examples: Examples | None
) -> list[Floats | None]:
    """What removing each channel does to the loss, by an expansion around the network as it is.

    A channel c is gated by z = 1 where layers read it; z = 0 is exactly the network without it. With g_n(c) = ∂L_n/∂z =
    Σ w·∂L_n/∂w over the weights that read it, for the loss of image n:

    * `taylor`, first order: (mean of g_n over a batch)², averaged over batches (Molchanov et al. 2019,
      arXiv:1906.10771: a group's contribution (Σ g·w)², the group being the weights that read the channel).
    * `hessian`, second order: ½·h·z² (optimal brain damage, LeCun et al. 1990) with the diagonal h ≈ mean of g_n² over
      images, the empirical Fisher information (Theis et al. 2018, arXiv:1801.05787, for feature maps).
    """
    totals, count = [np.zeros(group.width) for group in groups], 0
    for inputs, labels in examples() if examples is not None else ():
        gates = _gate_gradients(module, groups, inputs, labels)
        count += 1 if importance == "taylor" else len(inputs)
        for total, gradients in zip(totals, gates, strict=True):
            total += gradients.mean(0) ** 2 if importance == "taylor" else (gradients**2).sum(0) / 2
    if not count:
        raise ConfigError(f"importance: {importance!r} needs gradients, and there are no images to take them on.")
    return [_bundled(total / count, group) for total, group in zip(totals, groups, strict=True)]


def _gate_gradients(module: nn.Module, groups: Sequence[ChannelGroup], inputs: Tensor, labels: Tensor) -> list[Floats]:
    """∂L_n/∂z of each image's cross-entropy for each group's channels, (images, width) for each group.

    Batch-norms use their running statistics, so that images do not depend on each other and one pass serves them all.
    """
    paths = sorted({path for group in groups for path in group.reads})
    with torch.inference_mode(False), torch.enable_grad(), evaluating(module), _gated(module, paths) as gates:
        device = next(module.parameters(), inputs).device
        loss = F.cross_entropy(module(inputs.to(device)), labels.to(device), reduction="sum")
        # A layer whose result is not used has no part in the loss.
        gradients = torch.autograd.grad(loss, [gates[path] for path in paths], allow_unused=True)
        found = {
            path: torch.zeros_like(gates[path]) if gradient is None else gradient
            for path, gradient in zip(paths, gradients, strict=True)
        }
    arrays = {path: gradient.detach().double().cpu().numpy() for path, gradient in found.items()}
    return [
        sum((arrays[path][:, read].sum(2) for path, read in group.reads.items()), np.zeros((len(inputs), group.width)))
        for group in groups
    ]


@contextmanager
def _gated(module: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Multiply each input channel of these layers by a gate of 1 for each image: (images, channels) by layer."""
    gates: dict[str, Tensor] = {}
    handles = []

    def gate(path: str, inputs: Tensor) -> Tensor:
        channels = inputs.shape[1] if isinstance(module.get_submodule(path), nn.Conv2d) else inputs.shape[-1]
        if path not in gates:
            gates[path] = torch.ones(len(inputs), channels, dtype=inputs.dtype, device=inputs.device).requires_grad_()
        if isinstance(module.get_submodule(path), nn.Conv2d):
            return inputs * gates[path][:, :, None, None]
        return inputs * gates[path].view(len(inputs), *(1,) * (inputs.dim() - 2), channels)

    for path in paths:
        layer = module.get_submodule(path)
        handles.append(layer.register_forward_pre_hook(lambda _, args, path=path: (gate(path, args[0]), *args[1:])))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


IMPORTANCES: dict[str, Importance] = {
    "l2": Importance(
        "Σw² over the weights that write, scale or read a channel (arXiv:1608.08710).", partial(_magnitude, power=2)
    ),
    "l1": Importance("Σ|w| over the same weights (arXiv:1608.08710).", partial(_magnitude, power=1)),
    "fpgm": Importance("How far a filter is from all others of its layer (arXiv:1811.00250).", _median_distance),
    "bn_scale": Importance(
        "The mean |γ| of the batch-norms; see bn_l1 of training (arXiv:1708.06519).",
        partial(_magnitude, power=1, kinds=(nn.modules.batchnorm._BatchNorm,)),
    ),
    "taylor": Importance(
        "What removing a channel does to the loss, first order, from images (arXiv:1906.10771).",
        comparable=True,
        needs_examples=True,
    ),
    "hessian": Importance(
        "The same to second order, by the Fisher information (arXiv:1801.05787).", comparable=True, needs_examples=True
    ),
    "lamp": Importance(
        "l2 over what is left of the group when the channel goes (arXiv:2010.07611).",
        partial(_magnitude, power=2),
        comparable=True,
    ),
    "random": Importance("What the others must beat; follows from the seed."),
}
