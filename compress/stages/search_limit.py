"""Which candidates of an architecture search the device can afford."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import compress.architecture.costs as costs
from compress.architecture.costs import TimeModel
from compress.architecture.space import Choices, Rungs
from compress.errors import ConfigError
from compress.net import Net, Spec, build
from compress.pruning.metaheuristics import Found
from compress.pruning.plan import Limit
from compress.stages.base import Env

TIMED = 12  # networks measured for the model of their times
AT_ONCE = 4  # of the best found, measured together until one is within the limit

Measure = Callable[[Sequence[Rungs]], list[float]]


@dataclass(frozen=True)
class Affordable:
    """A limit and what candidates cost; `measure`, where there is one, times the files of some to make sure."""

    limit: Limit
    cost: Callable[[Rungs], float]
    choices: Choices
    measure: Measure | None = None

    def fits(self, rungs: Rungs) -> bool:
        """Whether a candidate's cost, counted or predicted, is within the limit."""
        return self.cost(rungs) <= self.limit.high

    def lowered(self, rungs: Rungs) -> Rungs:
        """The candidate, its choices lowered in turn until its file is within the limit by measurement, if any."""
        while self.measure is not None and rungs != self.choices.smallest:
            if self.measure([rungs])[0] <= self.limit.high:
                break
            rungs = self.choices.lowered(rungs)
        return rungs

    def best(self, found: Found[Rungs]) -> tuple[Rungs, float]:
        """The best candidate whose cost is within the limit, by measurement if that can be, and this cost.

        Raises ConfigError where no candidate's file is fast enough.
        """
        if self.measure is None:
            return found.best, self.cost(found.best)
        ranked = [*sorted(found.losses, key=lambda rungs: found.losses[rungs]), self.choices.smallest]
        fastest = float("inf")
        for start in range(0, len(ranked), AT_ONCE):
            some = ranked[start : start + AT_ONCE]
            for rungs, value in zip(some, self.measure(some), strict=True):
                if value <= self.limit.high:
                    return rungs, value
                fastest = min(fastest, value)
        raise beyond(self.limit, fastest)


def beyond(limit: Limit, least: float) -> ConfigError:
    """The error for a limit below what the smallest network costs."""
    units = {"max_macs": "MACs", "keep_macs": "of the student's MACs", "max_latency_ms": "ms"}
    unit = units.get(limit.key, "of the student's time")
    return ConfigError(
        f"{limit.key}: {limit.value:g} is less than the smallest network of the space takes, {least / limit.whole:.4g} "
        f"{unit}. Raise it, or give space smaller widths, depths, expansions or resolutions."
    )


def affordable_within(key: str, value: float, choices: Choices, net: Net, env: Env) -> Affordable:
    """The limit of this name, such as keep_macs; raises ConfigError where the smallest network does not meet it."""
    if key in ("max_macs", "keep_macs"):
        return by_macs(key, value, choices, net)
    return by_time(key, value, choices, net, env)


def by_macs(key: str, value: float, choices: Choices, net: Net) -> Affordable:
    """A limit on multiply-accumulates; raises ConfigError where the smallest network has more."""
    cost = counted(choices, net)
    limit = Limit(key, value, cost(choices.own) if key == "keep_macs" else 1.0)
    found = Affordable(limit, cost, choices)
    if not found.fits(choices.smallest):
        raise beyond(limit, cost(choices.smallest))
    return found


def by_time(key: str, value: float, choices: Choices, net: Net, env: Env) -> Affordable:
    """A limit on the time that a candidate's file takes, predicted by a model that is fitted to a few files here.

    Raises ConfigError where the smallest network's file takes longer. Where nothing measures files, MACs stand in.
    """
    if env.ending is None:
        return _standing_in(key, value, choices, net, env)
    measure = timing(choices, net, env)
    random = np.random.default_rng(0)  # the same in a rehearsal, so that nothing is measured twice
    sampled = [choices.sampled(random) for _ in range(TIMED - 3)]
    some = [*dict.fromkeys([choices.smallest, choices.own, choices.largest, *sampled])]
    times = dict(zip(some, measure(some), strict=True))
    limit = Limit(key, value, times[choices.own] if key == "latency_ratio" else 1.0)
    if times[choices.smallest] > limit.high:
        raise beyond(limit, times[choices.smallest])
    networks = {rungs: costs.layers(choices.architecture(rungs), net.spec.classes, net.spec.image) for rungs in some}
    model = TimeModel.fitted([*networks.values()], [*times.values()])
    error = np.median([abs(model(networks[rungs]) / times[rungs] - 1) for rungs in some])
    env.note(f"The times of {len(some)} networks' files fit the model of times to {100 * error:.0f} % (median).")

    def predicted(rungs: Rungs) -> float:
        # The smallest was measured, and is always within the limit: a search has to end somewhere.
        if rungs == choices.smallest:
            return times[rungs]
        return model(costs.layers(choices.architecture(rungs), net.spec.classes, net.spec.image))

    def measured(candidates: Sequence[Rungs]) -> list[float]:
        if key != "latency_ratio":
            return measure(candidates)
        student, *taken = measure([choices.own, *candidates])  # a ratio wants both from the same minute
        return [limit.whole * value / student for value in taken]

    return Affordable(limit, predicted, choices, measured)


def counted(choices: Choices, net: Net) -> Callable[[Rungs], float]:
    """Multiply-accumulates of a candidate."""
    return lambda rungs: costs.macs(choices.architecture(rungs), net.spec.classes, net.spec.image)


def timing(choices: Choices, net: Net, env: Env) -> Measure:
    """Milliseconds of candidates' final files, all taking turns; their weights are random."""

    def measure(candidates: Sequence[Rungs]) -> list[float]:
        """Milliseconds of each, in order."""
        env.emit({"event": "measuring", "files": len(candidates)})
        nets = {}
        for i, rungs in enumerate(candidates):
            spec = Spec(architecture=choices.architecture(rungs), classes=net.spec.classes, image=net.spec.image)
            made = build(spec, env.seed)
            nets[str(i)] = Net(made.spec, made.module.eval())
        assert env.ending is not None
        times = env.ending.milliseconds(nets)
        return [times[name] for name in nets]

    return measure


def _standing_in(key: str, value: float, choices: Choices, net: Net, env: Env) -> Affordable:
    """The same share of MACs for a share of the time, and the student's own MACs for milliseconds."""
    cost = counted(choices, net)
    share = value if key == "latency_ratio" else 1.0
    high = max(share * cost(choices.own), cost(choices.smallest))
    env.warn(f"{key}: nothing measures files here, so multiply-accumulates stood in for time: at most {high:.0f}")
    return Affordable(Limit(key, high), cost, choices)
