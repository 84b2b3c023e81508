"""How important channels are.

A criterion gives every channel of a coupled group a number; those with the smallest go first.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.pruning.groups import ChannelGroup

Scorer = Callable[[Any], Tensor | None]
PRUNES_OUTPUTS = (
    tp.prune_conv_out_channels,
    tp.prune_depthwise_conv_out_channels,
    tp.prune_linear_out_channels,
)


def _median_distance(group: Any) -> Tensor:
    """FPGM: the nearer a filter is to all others of its layer, the less important it is.

    He et al. 2019 (arXiv:1811.00250, eq. 4): the sum of the Euclidean distances to the layer's other filters,
    here averaged over the layers whose outputs the group's channels are.
    """
    scores = torch.zeros(len(group[0].idxs))
    layers = [item for item in group.items if item.dep.handler in PRUNES_OUTPUTS]
    for item in layers:
        filters = item.dep.target.module.weight[item.idxs].flatten(1).cpu()
        scores.index_add_(0, torch.tensor(item.root_idxs), torch.cdist(filters, filters).sum(1))
    return scores / len(layers)


CRITERIA: dict[str, Scorer] = {
    "l2": tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
    "l1": tp.importance.GroupMagnitudeImportance(p=1, normalizer=None),
    "fpgm": _median_distance,
    "bn_scale": tp.importance.BNScaleImportance(normalizer=None),
}
IMPORTANCES = (*CRITERIA, "random")
Examples = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # batches of inputs and labels, the same at each call


def importances(
    module: nn.Module, groups: Sequence[ChannelGroup], importance: str, seed: int, examples: Examples | None = None
) -> list[NDArray[np.float64] | None]:
    """How important each bundle of channels is, a (width / bundle,) array of mean 1 for each group.

    None stands for a group in which the criterion finds nothing to go by. `l2` and `l1`: the mean over all coupled
    layers of the sum of |w|^p over the channel's weights. `fpgm`: the distance to the other filters. `bn_scale`: the
    mean |γ| of the batch-norms (Liu et al. 2017, arXiv:1708.06519). `random`, which follows from the seed and the
    layer's name, is what the others must beat.
    """
    return [_bundle_scores(group, importance, seed) for group in groups]


def _bundle_scores(group: ChannelGroup, importance: str, seed: int) -> NDArray[np.float64] | None:
    if importance == "random":
        generator = np.random.default_rng([seed, *group.name.encode()])
        return generator.uniform(0.5, 1.5, group.width // group.bundle)
    with torch.no_grad():
        scores = CRITERIA[importance](group.graph)
    if scores is None:
        return None
    values: NDArray[np.float64] = scores.double().cpu().numpy().reshape(group.bundle, -1).mean(0)
    return values / values.mean() if values.any() else np.ones_like(values)
