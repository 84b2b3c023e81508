"""Channel pruning to a limit, with widths that fast kernels like.

A width that is no multiple of 16 (8 on Arm) can make a pruned network slower than it was, so widths move
in such steps, and one ratio for all layers then moves the cost in steps too: ResNet50 aligned to 16 jumps
from 57 % to 45 % of its MACs. So the ratio is raised group by group, and where a step jumps over the limit, plans
near it are searched.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import compress.pruning.costs as costs
from compress.config import near
from compress.edits.channels import Channels
from compress.edits.macs import count_macs, count_positions
from compress.errors import ConfigError, ModelError
from compress.pruning.groups import ChannelGroup, channel_groups, cut_channels
from compress.pruning.importance import IMPORTANCES, Examples, importances
from compress.pruning.patterns import check_patterns, listed, matches
from compress.pruning.plan import ALIGNMENTS, Allocate, Limit, Planned, Scored, plan_widths, shown, uniform


@dataclass(frozen=True)
class Pruned:
    """A pruned copy and what was done.

    `macs` are its multiply-accumulates for one image, `dense_macs` those of the network it is compared with,
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
    keep_macs: float | None = None,
    keep_params: float | None = None,
    importance: str = "l2",
    align: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    reference: nn.Module | None = None,
    seed: int = 0,
    allocate: Allocate = uniform,
    examples: Examples | None = None,
) -> Pruned:
    """Remove the least important channels of a copy of `module` until a share of its MACs or parameters is left.

    The result has at most keep_macs times the dense MACs, or keep_params times the dense parameters, and at least
    98 % of that; one of the two is given. `allocate` shares the cut out among the coupled groups of layers, by default
    nearly evenly; in each the least important channels go first, by one of `IMPORTANCES`. `random` follows from `seed`;
    `taylor` and `hessian` take gradients on `examples`. The widths of cut groups are multiples of `align`; left out, of
    16, or of 8, 4, 2 or 1 where that cannot meet the limit. At most nine tenths of a group are removed. The
    network's inputs and outputs stay.

    `example` is (n, C, H, W); only its shape matters. `include` and `exclude` are shell patterns over layer
    names: a group is cut if no layer whose outputs it holds is excluded and, where there are includes, one is
    included. `reference` is the unpruned network where `module` was pruned before.

    Nothing is trained. Raises ConfigError for a bad argument, a pattern without a match, or a limit that
    cannot be met (naming the nearest that can); ModelError for a network that cannot be pruned.
    """
    (key, share) = _one_share(keep_macs=keep_macs, keep_params=keep_params)
    _check_arguments(key, share, align)
    prunable = Prunable(module, example, importance, include, exclude, seed, examples)
    prices, whole = (prunable.macs, count_macs) if key == "keep_macs" else (prunable.params, _count_params)
    limit = Limit(key, share, whole(module if reference is None else reference, example))
    planned = plan_widths(prices, prunable.scored, limit, align, allocate)
    notes = prunable.remarks(planned, automatic=align is None, limit=limit)
    dense = count_macs(module if reference is None else reference, example)
    pruned = prunable.cut(planned.widths)
    return Pruned(pruned, count_macs(pruned, example), dense, planned.align, notes)


class Prunable:
    """A copy of a network, its channels in coupled groups and scored, ready to be planned and then cut once.

    `groups` are those that may be cut, `scored` the importance of their channels, `macs` and `params` what the network
    costs as a function of their widths. Arguments and errors are those of `prune_channels`.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        importance: str = "l2",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        seed: int = 0,
        examples: Examples | None = None,
    ) -> None:
        if importance not in IMPORTANCES:
            raise ConfigError(f"importance: no {importance!r} here.{near(importance, IMPORTANCES)}")
        self.original = module
        self.module = copy.deepcopy(module)
        _check_finite(self.module)
        self.example = example[:1].to(next(self.module.parameters(), example).device)
        self.positions = _used_positions(self.module, self.example)
        found = channel_groups(self.module, self.example)
        chosen = _chosen(found, include, exclude)
        scores = importances(self.module, chosen, importance, seed, examples)
        _require_scores(chosen, scores, importance)
        pairs = [(group, each) for group, each in zip(chosen, scores, strict=True) if each is not None]
        self.groups = [group for group, _ in pairs]
        self.scored = [Scored(group.width, group.bundle, each) for group, each in pairs]
        self.macs = costs.macs(self.module, self.positions, self.groups)
        self.params = costs.params(self.module, self.positions, self.groups)
        self.left_out = [f"Not pruned: {group.name}, {group.reason}." for group in found if group.reason]
        self.left_out += [
            f"Not pruned: {group.name}, {importance!r} finds nothing to go by."
            for group, each in zip(chosen, scores, strict=True)
            if each is None
        ]

    def removed(self, widths: Sequence[int]) -> costs.Floats:
        """How many channels each group loses, (1, groups)."""
        return np.array([[group.width - width for group, width in zip(self.groups, widths, strict=True)]], np.float64)

    def narrowed(self, widths: Sequence[int]) -> Channels:
        """The sizes that layers would have at these widths: the edit that `cut` amounts to."""
        outputs, inputs = self.params.widths(self.removed(widths))
        sizes = {}
        for path, width, read in zip(self.params.paths, outputs[0].astype(int), inputs[0].astype(int), strict=True):
            layer = self.module.get_submodule(path)
            groups = int(getattr(layer, "groups", getattr(layer, "num_groups", 1)))
            if isinstance(layer, nn.Conv2d) and groups == layer.out_channels:
                groups, read = width, width
            elif not isinstance(layer, nn.Conv2d | nn.Linear):
                read = width
            sizes[path] = (int(read), int(width), int(groups))
        now = Channels.of(self.module).sizes
        return Channels(sizes={path: sizes[path] for path, size in now.items() if sizes.get(path, size) != size})

    def cut(self, widths: Sequence[int]) -> nn.Module:
        """Remove the least important channels for good; afterwards nothing else can be done with this object."""
        expected = self.macs(self.removed(widths))[0]
        try:
            for group, scored, width in zip(self.groups, self.scored, widths, strict=True):
                _cut(group, scored, width)
            consistent = count_macs(self.module, self.example) == expected
        except (ModelError, RuntimeError, IndexError, AssertionError):
            consistent = False
        if not consistent:
            raise ModelError(
                f"The channels of {type(self.original).__name__} are tied in a way that pruning cannot follow, such as "
                "by reshaping to a fixed size. Exclude the layers around that place."
            )
        _restore(self.module, self.original)
        return self.module

    def remarks(self, planned: Planned, *, automatic: bool, limit: Limit) -> tuple[str, ...]:
        """What the report should say of a plan; `automatic` says that its alignment was not asked for."""
        narrow = [f"{g.name} ({g.width})" for g, fixed in zip(self.groups, planned.fixed, strict=True) if fixed]
        aligned = f"The widths of pruned layers are multiples of {planned.align}"
        if automatic and planned.align != ALIGNMENTS[0]:
            aligned += f": {limit.key} {shown(limit.value)} cannot be met in multiples of {ALIGNMENTS[0]}"
        too_narrow = f"Too narrow for a smaller multiple of {planned.align} (channels): {', '.join(narrow)}."
        return (f"{aligned}.", *([too_narrow] if narrow else []), *self.left_out)


def _one_share(**shares: float | None) -> tuple[str, float]:
    given = [(key, value) for key, value in shares.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"Give one of {' and '.join(shares)}, not {len(given)} of them.")
    return given[0]


def _check_arguments(key: str, share: float, align: int | None) -> None:
    if not 0 < share < 1:
        of_what = "MACs" if key == "keep_macs" else "parameters"
        raise ConfigError(f"{key} is a fraction of the {of_what}, more than 0 and less than 1, not {share:g}.")
    if align is not None and align < 1:
        raise ConfigError(f"align: widths become multiples of it, so it is 1 or more, not {align}.")


def _count_params(module: nn.Module, _: Tensor) -> int:
    return sum(p.numel() for p in module.parameters())


def _require_scores(groups: Sequence[ChannelGroup], scores: Sequence[costs.Floats | None], importance: str) -> None:
    if all(each is None for each in scores):
        raise ConfigError(f"importance: {importance!r} has nothing to go by in this network; 'l2' always has.")
    for group, each in zip(groups, scores, strict=True):
        if each is not None and not np.isfinite(each).all():
            raise ModelError(
                f"importance: {importance!r} of the channels of {group.name} is not finite, so they cannot be ranked. "
                "Train the network again with a smaller learning rate, or use 'l2'."
            )


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
            f"The forward pass of {type(module).__name__} does not call {listed(unused)}, so pruning cannot "
            "keep these layers in step with the others. Build the network without auxiliary heads; attention "
            "is not supported."
        )
    return positions


def _chosen(groups: Sequence[ChannelGroup], include: Sequence[str], exclude: Sequence[str]) -> list[ChannelGroup]:
    """The groups that can be cut and that the patterns leave to be cut."""
    check_patterns({path: g.reason for g in groups for path in g.outputs}, include, exclude, "pruned")

    def matched(group: ChannelGroup, patterns: Sequence[str]) -> bool:
        return any(matches(path, patterns) for path in group.outputs)

    free = [group for group in groups if not group.reason and not matched(group, exclude)]
    free = [group for group in free if not include or matched(group, include)]
    if not free:
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in groups if group.reason)
        raise ConfigError(f"include, exclude: nothing is left to prune. What cannot be pruned: {reasons}.")
    return free


def _cut(group: ChannelGroup, scored: Scored, width: int) -> None:
    """Remove the least important bundles; among equals, those of lower index."""
    channels = sorted(int(channel) for channel in scored.order()[: group.width - width])
    if channels:
        cut_channels(group, channels)


def _restore(pruned: nn.Module, original: nn.Module) -> None:
    """Which parameters are frozen and which layers train, as it was before tracing."""
    for parameter, before in zip(pruned.parameters(), original.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    for layer, unpruned in zip(pruned.modules(), original.modules(), strict=True):
        layer.training = unpruned.training
