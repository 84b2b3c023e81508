"""Channel pruning to a share of the multiply-accumulates, with widths that fast kernels like.

A width that is no multiple of 16 (8 on Arm) can make a pruned network slower than it was, so widths move
in such steps, and one ratio for all layers then moves the MACs in steps too: ResNet50 aligned to 16 jumps
from 57 % to 45 %. So the ratio is raised group by group, and where a step jumps over the target, plans
near it are searched.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from compress.config import near
from compress.edits.macs import count_macs, count_positions
from compress.errors import ConfigError, ModelError
from compress.stages.channel_groups import (
    IMPORTANCES,
    ChannelGroup,
    bundle_scores,
    channel_groups,
    cut_channels,
    macs_model,
)
from compress.stages.channel_plan import ALIGNMENTS, Scored, plan_widths


@dataclass(frozen=True)
class Pruned:
    """A pruned copy and what was done.

    `macs` are its multiply-accumulates for one image, `dense_macs` those that `keep_macs` is a fraction of,
    `align` the number that the widths of all cut groups are multiples of, `notes` remarks for the report.
    """

    module: nn.Module
    macs: int
    dense_macs: int
    align: int
    notes: tuple[str, ...]


def prune_channels(
    module: nn.Module,
    example: Tensor,
    *,
    keep_macs: float,
    importance: str = "l2",
    align: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    reference_macs: int | None = None,
    seed: int = 0,
) -> Pruned:
    """Remove the least important channels of a copy of `module` until it has `keep_macs` of the MACs.

    The result has at most keep_macs·dense MACs and at least 98 % of that. Every coupled group of layers
    is cut by nearly the same share, its least important channels first; `importance` is l2, l1, fpgm,
    bn_scale, or random, which follows from `seed`. The widths of cut groups are multiples of `align`;
    left out, of 16, or of 8, 4, 2 or 1 where that cannot meet the target. At most nine tenths of a group
    are removed. The network's inputs and outputs stay.

    `example` is (n, C, H, W); only its shape matters. `include` and `exclude` are shell patterns over layer
    names: a group is cut if no layer whose outputs it holds is excluded and, where there are includes, one is
    included. `reference_macs` are the MACs of the unpruned network where `module` was pruned before.

    Nothing is trained. Raises ConfigError for a bad argument, a pattern without a match, or a target that
    cannot be met (naming the nearest that can); ModelError for a network that cannot be pruned.
    """
    _check_arguments(keep_macs, importance, align)
    pruned = copy.deepcopy(module)
    _check_finite(pruned)
    example = example[:1].to(next(pruned.parameters(), example).device)
    positions = _used_positions(pruned, example)
    groups = channel_groups(pruned, example)
    chosen = _chosen(groups, include, exclude)
    scored, unscored = _scored(chosen, importance, seed)
    model = macs_model(pruned, positions, [group for group, _ in scored])
    plan = plan_widths(model, [scores for _, scores in scored], keep_macs, reference_macs, align)
    try:
        for (group, scores), width in zip(scored, plan.widths, strict=True):
            _cut(group, scores, width)
        consistent = count_macs(pruned, example) == plan.macs
    except (ModelError, RuntimeError, IndexError, AssertionError):
        consistent = False
    if not consistent:
        raise ModelError(
            f"The channels of {type(module).__name__} are tied in a way that pruning cannot follow, such as "
            "by reshaping to a fixed size. Exclude the layers around that place."
        )
    _restore(pruned, module)
    notes = [f"Not pruned: {group.name}, {group.reason}." for group in groups if group.reason]
    notes += [f"Not pruned: {name}, {importance!r} finds nothing to go by." for name in unscored]
    narrow = [f"{group.name} ({group.width})" for (group, _), fixed in zip(scored, plan.fixed, strict=True) if fixed]
    if narrow:
        notes.insert(0, f"Too narrow for a smaller multiple of {plan.align} (channels): {', '.join(narrow)}.")
    aligned = f"The widths of pruned layers are multiples of {plan.align}"
    if align is None and plan.align != ALIGNMENTS[0]:
        aligned += f": keep_macs {keep_macs:g} cannot be met in multiples of {ALIGNMENTS[0]}"
    return Pruned(pruned, plan.macs, plan.dense_macs, plan.align, (f"{aligned}.", *notes))


def _check_arguments(keep_macs: float, importance: str, align: int | None) -> None:
    if not 0 < keep_macs < 1:
        raise ConfigError(f"keep_macs is a fraction of the MACs, more than 0 and less than 1, not {keep_macs:g}.")
    if importance not in IMPORTANCES:
        raise ConfigError(f"importance: no {importance!r} here.{near(importance, IMPORTANCES)}")
    if align is not None and align < 1:
        raise ConfigError(f"align: widths become multiples of it, so it is 1 or more, not {align}.")


def _check_finite(module: nn.Module) -> None:
    for path, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path} of {type(module).__name__} holds values that are not finite, so the importance of "
                "channels cannot be judged. Train the network again with a smaller learning rate."
            )


def _used_positions(module: nn.Module, example: Tensor) -> dict[str, int]:
    """As `count_positions`; a layer that is never used could not follow when the layers around it change."""
    positions = count_positions(module, example)
    layers = [path for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    unused = [path for path in layers if path not in positions]
    if unused:
        raise ModelError(
            f"The forward pass of {type(module).__name__} does not call {_listed(unused)}, so pruning cannot "
            "keep these layers in step with the others. Build the network without auxiliary heads; attention "
            "is not supported."
        )
    return positions


def _chosen(groups: Sequence[ChannelGroup], include: Sequence[str], exclude: Sequence[str]) -> list[ChannelGroup]:
    """The groups that can be cut and that the patterns leave to be cut."""
    _check_patterns(groups, include, exclude)

    def matched(group: ChannelGroup, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, pattern) for path in group.outputs for pattern in patterns)

    free = [group for group in groups if not group.reason and not matched(group, exclude)]
    free = [group for group in free if not include or matched(group, include)]
    if not free:
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in groups if group.reason)
        raise ConfigError(f"include, exclude: nothing is left to prune. What cannot be pruned: {reasons}.")
    return free


def _check_patterns(groups: Sequence[ChannelGroup], include: Sequence[str], exclude: Sequence[str]) -> None:
    reasons = {path: group.reason for group in groups for path in group.outputs}
    problems = []
    for key, pattern in [*(("include", p) for p in include), *(("exclude", p) for p in exclude)]:
        matches = [path for path in reasons if fnmatchcase(path, pattern)]
        if not matches:
            close = get_close_matches(pattern, reasons, n=3, cutoff=0.4)
            names = f"Near: {', '.join(close)}" if close else f"There are {_listed(list(reasons))}"
            problems.append(f"{key}: no layer matches {pattern!r}. {names}.")
        elif key == "include" and all(reasons[path] for path in matches):
            first = f"{matches[0]}, {reasons[matches[0]]}"
            problems.append(f"{key}: {pattern!r} matches only what cannot be pruned: {first}.")
    if problems:
        raise ConfigError("\n".join(problems))


def _scored(
    groups: Sequence[ChannelGroup], importance: str, seed: int
) -> tuple[list[tuple[ChannelGroup, Scored]], list[str]]:
    """The groups with the importance of their channels, and the names of those that have none."""
    found = [(group, bundle_scores(group, importance, seed)) for group in groups]
    scored = [(group, Scored(group.width, group.bundle, scores)) for group, scores in found if scores is not None]
    if not scored:
        raise ConfigError(f"importance: {importance!r} has nothing to go by in this network; 'l2' always has.")
    return scored, [group.name for group, scores in found if scores is None]


def _cut(group: ChannelGroup, scored: Scored, width: int) -> None:
    """Remove the least important bundles; among equals, those of lower index."""
    size = group.width // group.bundle
    order = np.argsort(scored.scores, kind="stable")[: (group.width - width) // group.bundle]
    channels = [int(first) + part * size for first in order for part in range(group.bundle)]
    if channels:
        cut_channels(group, sorted(channels))


def _restore(pruned: nn.Module, original: nn.Module) -> None:
    """Which parameters are frozen and which layers train, as it was before tracing."""
    for parameter, before in zip(pruned.parameters(), original.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    for layer, unpruned in zip(pruned.modules(), original.modules(), strict=True):
        layer.training = unpruned.training


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
