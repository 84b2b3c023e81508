"""Candidates with weights: parts of one shared set, or trained one by one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from compress.architecture.judging import Judge, Score
from compress.architecture.sharing import Shared
from compress.architecture.space import Rungs
from compress.net import Net


class Candidates(Protocol):
    """Candidates as networks with weights, and how good each is on the validation images."""

    def score(self, rungs: Rungs) -> Score: ...

    def net(self, rungs: Rungs) -> Net: ...


@dataclass(frozen=True)
class SharedCandidates:
    """Parts of one set of weights, with batch-norm statistics of their own."""

    shared: Shared
    judge: Judge

    def score(self, rungs: Rungs) -> Score:
        """How good a candidate is with its part of the weights."""
        return self.judge.score(self.net(rungs).module)

    def net(self, rungs: Rungs) -> Net:
        """A candidate as a network of its own."""
        net = self.shared.net(rungs)
        self.judge.restate(net.module)
        return net


@dataclass
class TrainedCandidates:
    """Networks that are each trained from the same seed; the best is remembered."""

    train: Callable[[Rungs], Net]
    judge: Judge
    best: tuple[float, Rungs, Net] | None = field(default=None, init=False)

    def score(self, rungs: Rungs) -> Score:
        """How good a candidate is after its training."""
        net = self.train(rungs)
        score = self.judge.score(net.module)
        if self.best is None or score.loss < self.best[0]:
            self.best = score.loss, rungs, net
        return score

    def net(self, rungs: Rungs) -> Net:
        """A candidate as it was judged; any but the best is trained again."""
        return self.best[2] if self.best is not None and self.best[1] == rungs else self.train(rungs)
