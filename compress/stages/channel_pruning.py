"""Channel pruning to a share of the multiply-accumulates, with widths that fast kernels like.

A width that is no multiple of 16 (8 on Arm) can make a pruned network slower than it was, so widths move
in such steps, and one ratio for all layers then moves the MACs in steps too: ResNet50 aligned to 16 jumps
from 57 % to 45 %. So the ratio is raised group by group, and where a step jumps over the target, plans
near it are searched.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import ceil, floor

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
from compress.stages.channel_plan import Floats, MacsModel, Plan, PlanSearch, ladder

SLACK = 0.98
ALIGNMENTS = (16, 8, 4, 2, 1)


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
    _check_patterns(groups, include, exclude)
    chosen, scores = _scored(groups, include, exclude, importance, seed)
    model = macs_model(pruned, positions, chosen)
    dense = reference_macs or int(model.macs(np.zeros((1, len(chosen))))[0])
    search, plan, used = _planned(model, chosen, scores, keep_macs, dense, align)
    for group, rungs, rung in zip(chosen, search.ladders, plan, strict=True):
        _cut(group, scores[group.name], rungs[rung])
    _restore(pruned, module)
    macs = int(search.macs(plan[None])[0])
    if count_macs(pruned, example) != macs:
        raise ModelError(
            f"The channels of {type(module).__name__} are tied in a way that pruning cannot follow."
        )
    notes = _notes(groups, chosen, search, f"keep_macs {keep_macs:g}", used, automatic=align is None)
    return Pruned(pruned, macs, dense, used, notes)


def _check_arguments(keep_macs: float, importance: str, align: int | None) -> None:
    if not 0 < keep_macs < 1:
        raise ConfigError(
            f"keep_macs is a fraction of the MACs, more than 0 and less than 1, not {keep_macs:g}."
        )
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
            f"The forward pass of {type(module).__name__} does not use {_listed(unused)}, so pruning would leave "
            "layers behind that do not fit. Build the network without them (auxiliary heads off)."
        )
    return positions


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
            path = matches[0]
            problems.append(
                f"{key}: {pattern!r} matches only what cannot be pruned: {path}, {reasons[path]}."
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _scored(
    groups: Sequence[ChannelGroup], include: Sequence[str], exclude: Sequence[str], importance: str, seed: int
) -> tuple[list[ChannelGroup], dict[str, Floats]]:
    """The groups to be cut, and the importance of their bundles under the group's name."""

    def matched(group: ChannelGroup, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, pattern) for path in group.outputs for pattern in patterns)

    free = [group for group in groups if not group.reason]
    free = [
        group for group in free if not matched(group, exclude) and (not include or matched(group, include))
    ]
    if not free:
        why = "; ".join(f"{group.name}: {group.reason}" for group in groups if group.reason)
        raise ConfigError(f"Nothing is left to prune after include and exclude. Not prunable anyway: {why}.")
    found = {group.name: bundle_scores(group, importance, seed) for group in free}
    scores = {name: values for name, values in found.items() if values is not None}
    if not scores:
        raise ConfigError(
            f"importance: {importance!r} has nothing to go by in this network. 'l2' always works."
        )
    return [group for group in free if group.name in scores], scores


def _planned(
    model: MacsModel,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Floats],
    keep_macs: float,
    dense_macs: int,
    align: int | None,
) -> tuple[PlanSearch, Plan, int]:
    """The first alignment that meets the target, with its plan."""
    present = int(model.macs(np.zeros((1, len(groups))))[0])
    if present < SLACK * keep_macs * dense_macs:
        raise ConfigError(
            f"keep_macs: the network has only {present / dense_macs:.3f} of the unpruned MACs already, less than "
            f"{keep_macs:g}. Ask for less than it has."
        )
    searches = []
    for candidate in (align,) if align else ALIGNMENTS:
        search = _search(model, groups, scores, candidate)
        plan = search.find(*_window(keep_macs, dense_macs))
        if plan is not None:
            return search, plan, candidate
        searches.append(search)
    options = " or ".join(f"{share:.4f}" for share in _nearest(searches, keep_macs, dense_macs))
    smaller = " or a smaller align" if align and align > 1 else ""
    raise ConfigError(
        f"keep_macs: {keep_macs:g} cannot be met"
        + (f" with widths in multiples of {align}" if align else "")
        + (f"; the nearest that can is {options}. Ask for that" if options else ". Include more layers")
        + f"{smaller}."
    )


def _search(
    model: MacsModel, groups: Sequence[ChannelGroup], scores: Mapping[str, Floats], align: int
) -> PlanSearch:
    ladders = [ladder(group.width, align, group.bundle) for group in groups]
    lost = []
    for group, rungs in zip(groups, ladders, strict=True):
        total = np.concatenate([[0.0], np.cumsum(np.sort(scores[group.name]))]) * group.bundle
        lost.append([float(total[(group.width - width) // group.bundle]) for width in rungs])
    return PlanSearch(model, ladders, lost)


def _window(keep_macs: float, dense_macs: int) -> tuple[int, int]:
    return ceil(SLACK * keep_macs * dense_macs), floor(keep_macs * dense_macs)


def _nearest(searches: Sequence[PlanSearch], keep_macs: float, dense_macs: int) -> Iterator[float]:
    """The nearest fractions below and above `keep_macs` for which a plan is found; only some plans are tried."""
    low, high = _window(keep_macs, dense_macs)
    seen = sorted(set().union(*(search.seen for search in searches)))
    below = [macs for macs in reversed(seen) if macs < low]
    above = [macs for macs in seen if macs > high]
    for side in (below, above):
        for macs in side[:5]:
            share = ceil(10_000 * macs / dense_macs) / 10_000
            if share < 1 and any(s.find(*_window(share, dense_macs)) is not None for s in searches):
                yield share
                break


def _cut(group: ChannelGroup, scores: Floats, width: int) -> None:
    """Remove the least important bundles; among equals, those of lower index."""
    size = group.width // group.bundle
    order = np.argsort(scores, kind="stable")[: (group.width - width) // group.bundle]
    channels = [int(first) + part * size for first in order for part in range(group.bundle)]
    if channels:
        cut_channels(group, sorted(channels))


def _restore(pruned: nn.Module, original: nn.Module) -> None:
    """Which parameters are frozen and which layers train, as it was before tracing."""
    for parameter, before in zip(pruned.parameters(), original.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    for layer, unpruned in zip(pruned.modules(), original.modules(), strict=True):
        layer.training = unpruned.training


def _notes(
    groups: Sequence[ChannelGroup],
    chosen: Sequence[ChannelGroup],
    search: PlanSearch,
    target: str,
    align: int,
    *,
    automatic: bool,
) -> tuple[str, ...]:
    notes = [f"The widths of pruned layers are multiples of {align}."]
    if automatic and align != ALIGNMENTS[0]:
        notes = [f"{notes[0][:-1]}: {target} cannot be met with multiples of {ALIGNMENTS[0]}."]
    narrow = [
        f"{group.name} ({group.width})"
        for group, rungs in zip(chosen, search.ladders, strict=True)
        if len(rungs) == 1
    ]
    if narrow:
        notes.append(
            f"Too narrow to be cut to a multiple of {align}, channels in brackets: {', '.join(narrow)}."
        )
    notes += [f"Not pruned: {group.name}, {group.reason}." for group in groups if group.reason]
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
