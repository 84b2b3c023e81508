"""Pruning as a function."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from compress.edits.quantizers import rounds
from compress.errors import ConfigError
from compress.functions.given import LOG, classes_of, pairs, require_again, require_inputs, require_module
from compress.pruning.channels import prune_channels


def prune(
    module: nn.Module,
    example: Tensor,
    *,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    importance: str = "l2",
    align: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A smaller copy of a network: whole channels are removed, those that matter least first (arXiv:2301.12900).

    `example` is a float32 tensor (n, C, H, W); its shape alone matters. `keep_macs` is the share of the
    multiply-accumulates for one image that is left, `keep_params` that of the parameters: one of the two, or half the
    MACs where neither is given. The result has at most that and at least 98 % of it. `importance` is one of `compress
    ls importances`; `taylor` and `hessian` want `batches`, pairs of normalised inputs float32 (n, C, H, W) and labels
    (n,). The widths of cut layers are multiples of `align` channels (left out: 16, or less for narrow networks).
    `include` and `exclude` are shell patterns over the names of layers; `random` follows from `seed`.

    Nothing is trained: accuracy falls, and comes back with some epochs of training. The copy has the type and the modes
    of the module, which is left as it was; what could not be pruned is said to the logger `compress`.

    Raises ConfigError for arguments that cannot be met, with the nearest that can; ModelError for networks that do not
    give (n, classes) or whose channels cannot be followed (attention, channel shuffles); DataError for bad labels.
    """
    require_module(module, "prune")
    classes_of(module, require_inputs(example, "prune: example"), "prune")
    if rounds(module):
        raise ConfigError("prune: this module is quantized, and rounding is fixed to its layers; prune first")
    if keep_macs is None and keep_params is None:
        keep_macs = 0.5
    again = None if batches is None else require_again(batches, "prune")
    examples = None if again is None else lambda: pairs(again, "prune")
    with torch.random.fork_rng(devices=[]):
        pruned = prune_channels(
            module, example, keep_macs=keep_macs, keep_params=keep_params, importance=importance, align=align,
            include=include, exclude=exclude, seed=seed, examples=examples,
        )  # fmt: skip
    for note in pruned.notes:
        LOG.info("prune: %s", note)
    return pruned.module
