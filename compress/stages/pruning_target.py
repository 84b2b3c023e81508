"""What the prune stage is asked for, as a cost that plans can be judged by, and files that can be measured."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import compress.pruning.costs as costs
import compress.pruning.latency as latency
from compress.edits.macs import count_macs
from compress.errors import ConfigError, ModelError
from compress.net import Net, build
from compress.pruning.channels import Prunable
from compress.pruning.plan import ALIGNMENTS, Allocate, Limit, Planned, plan_widths, shown
from compress.pruning.target import TOLERANCE, Target, latency_costs, probes
from compress.stages.base import Ending, Env

SLOWER, NOTICEABLE_MS = 1.05, 0.02  # less than that may be chance
CLEARLY_FASTER = 0.9  # no chance makes a slower file look like that at a glance


@dataclass(frozen=True)
class Narrowing:
    """A net about to lose channels: the net, its prunable copy, and what the stage may use."""

    net: Net
    prunable: Prunable
    env: Env

    def at(self, widths: Sequence[int]) -> Net:
        """A net of these widths, its weights not yet the right ones: for what depends on sizes alone."""
        edit = self.prunable.narrowed(widths)
        return Net(self.net.spec.edited(edit), edit(copy.deepcopy(self.net.module)))

    @property
    def dense(self) -> Net:
        """The net's architecture before any edit, its weights random."""
        dense = build(self.net.spec.model_copy(update={"edits": ()}))
        dense.module.eval()
        return dense

    def macs_share(self, widths: Sequence[int]) -> float:
        """MACs at these widths as a share of the net's own."""
        prunable = self.prunable
        here = float(prunable.macs(prunable.removed(widths))[0])
        return here / float(prunable.macs(np.zeros((1, len(prunable.groups))))[0])

    def part_way(self, share: float, align: int | None) -> Planned:
        """Widths on the way to a smaller net: about this share of the dense net's MACs."""
        whole = count_of(self.dense, "keep_macs")
        limit = Limit("keep_macs", share, whole, slack=0.9)
        return plan_widths(self.prunable.macs, self.prunable.scored, limit, align)

    def not_slower(self, target: Target, align: int | None, allocate: Allocate) -> Planned:
        """The target's plan, or the first of another alignment, whose file takes no longer than the dense net's.

        Raises ModelError where there is none.
        """
        rejected: list[int] = []
        candidate = align
        while True:
            planned = target.plan(self.prunable, candidate, allocate).planned
            slow = self.slowdown(planned.widths)
            if slow is None:
                return planned
            self.env.warn(f"rejected: widths in multiples of {planned.align}, with which the file {slow}")
            rejected.append(planned.align)
            left = [other for other in ALIGNMENTS if other not in rejected]
            if not left:
                asked = f"{target.limit.key} {shown(target.limit.value)}"
                raise ModelError(
                    f"pruning this net to {asked} does not pay: its file {slow}. "
                    "Ask for less to be kept, or leave the stage out."
                )
            candidate = left[0]

    def slowdown(self, widths: Sequence[int]) -> str | None:
        """How much longer the file of these widths takes than the dense net's, in words; None if it does not."""
        if self.env.ending is None:
            return None
        nets = {"dense": self.dense, "pruned": self.at(widths)}
        times = self.env.ending.milliseconds(nets, glance=True)
        if times["pruned"] > CLEARLY_FASTER * times["dense"]:
            times = self.env.ending.milliseconds(nets)
        pruned, dense = times["pruned"], times["dense"]
        if pruned <= dense * SLOWER or pruned - dense < NOTICEABLE_MS:
            return None
        return f"takes {pruned:.2f} ms, and that of the unpruned net {dense:.2f} ms"


def target_for(narrowing: Narrowing, key: str, value: float, table: str | None, align: int | None) -> Target:
    """The target that a pipeline names by `key`; raises ConfigError where it cannot be met at all.

    Where there is no file to measure, as in a rehearsal, sizes are predicted, and MACs stand in for times.
    """
    prunable, ending = narrowing.prunable, narrowing.env.ending
    if key == "keep_macs":
        return Target(Limit(key, value, count_of(narrowing.dense, key)), prunable.macs)
    if key == "keep_params":
        return Target(Limit(key, value, count_of(narrowing.dense, key)), prunable.params)
    if key == "max_bytes":
        return _bytes_target(narrowing, value, ending)
    if table is not None:
        return _table_target(narrowing, key, value, Path(table))
    if ending is None:
        share = value if key == "latency_ratio" else 0.5
        target = Target(Limit("keep_macs", share, count_of(narrowing.dense, "keep_macs"), 0.9), prunable.macs)
        target.notes.append(f"{key} {shown(value)}: nothing was timed, {share:g} of the MACs stand in for it")
        return target
    return _latency_target(narrowing, key, value, align, ending)


def count_of(dense: Net, key: str) -> int:
    """The whole that a share refers to."""
    return dense.params if key == "keep_params" else count_macs(dense.module, dense.example(1))


def _bytes_target(narrowing: Narrowing, value: float, ending: Ending | None) -> Target:
    prunable, net = narrowing.prunable, narrowing.net
    int8 = ending.int8 if ending is not None else narrowing.env.int8
    present = ending.bytes(net) if ending is not None else net.params * (1 if int8 else 4)
    prices = costs.file_bytes(prunable.module, prunable.positions, prunable.groups, int8=int8, present=present)
    measure = None if ending is None else lambda widths: float(ending.bytes(narrowing.at(widths)))
    return Target(Limit("max_bytes", value), prices, measure, tolerance=0.98)


def _table_target(narrowing: Narrowing, key: str, value: float, table: Path) -> Target:
    """Milliseconds by a table from another device; nothing can be measured here."""
    prices = latency_costs(narrowing.prunable, latency.read_table(table))
    whole = 1.0
    if key == "latency_ratio":
        whole = float(prices(np.zeros((1, len(narrowing.prunable.groups))))[0])
    return Target(Limit(key, value, whole, TOLERANCE), prices)


def _latency_target(narrowing: Narrowing, key: str, value: float, align: int | None, ending: Ending) -> Target:
    """Milliseconds here: layers are measured at some widths, then plans as a whole."""
    prunable, env = narrowing.prunable, narrowing.env
    dense = narrowing.dense

    def measure(widths: list[int]) -> float:
        times = ending.milliseconds({"dense": dense, "pruned": narrowing.at(widths)})
        # Taking turns with the dense net makes a ratio that does not drift with the machine.
        return times["pruned"] if key == "max_latency_ms" else times["pruned"] / times["dense"] * whole

    now = ending.milliseconds({"dense": dense, "pruned": narrowing.net})
    whole = now["dense"] if key == "latency_ratio" else 1.0
    measured = []
    for widths in probes(prunable, align):
        times = ending.layers(narrowing.at(widths))
        measured += latency.samples(prunable.macs, prunable.removed(widths), times)
    if env.out is not None:
        latency.write_table(env.out / "latency" / f"{env.stage}.csv", measured)
    prices = latency_costs(prunable, measured)
    # The profiler takes time of its own; the net as it is was also measured without.
    prices = prices.scaled(now["pruned"] / float(prices(np.zeros((1, len(prunable.groups))))[0]))
    if value * whole >= now["pruned"]:
        raise ConfigError(
            f"{key}: the net's file takes {shown(now['pruned'] / whole)} already, and {shown(value)} is asked for; "
            "nothing needs to be pruned."
        )
    return Target(Limit(key, value, whole, TOLERANCE), prices, measure)
