"""Random changes of a pruning plan that stay within its limit."""

import numpy as np

from compress.pruning.plan import Limit, Plan, PlanSearch

Candidate = tuple[int, ...]  # a plan that can be looked up: the rung of every group
TRIES = 8
MOST_CHANGED = 3  # groups in one go
LONGEST_MOVE = 1 / 8  # of a ladder


class Variation:
    """Varies plans that are within a limit.

    A changed plan costs too much or too little, as a rule; the nearest one that meets the limit takes its place.
    """

    def __init__(self, search: PlanSearch, limit: Limit) -> None:
        self.search, self.limit = search, limit
        self.free = np.flatnonzero(search.last)
        self.longest = np.maximum((search.last * LONGEST_MOVE).astype(int), 1)

    def mutated(self, candidate: Candidate, random: np.random.Generator) -> Candidate | None:
        """Some groups some rungs up or down; None where that leads nowhere new."""
        for _ in range(TRIES):
            plan = np.array(candidate, np.int64)
            count = min(int(random.integers(1, MOST_CHANGED + 1)), len(self.free))
            for group in random.choice(self.free, size=count, replace=False):
                plan[group] += int(random.integers(1, self.longest[group] + 1)) * (1 if random.random() < 0.5 else -1)
            found = self.repaired(np.clip(plan, 0, self.search.last))
            if found is not None and found != candidate:
                return found
        return None

    def crossed(self, one: Candidate, other: Candidate, random: np.random.Generator) -> Candidate | None:
        """Every group as wide as in one of two plans."""
        from_one = random.random(len(one)) < 0.5
        return self.repaired(np.where(from_one, np.array(one, np.int64), np.array(other, np.int64)))

    def repaired(self, plan: Plan) -> Candidate | None:
        """The plan itself where it meets the limit, else one near it that does, else None."""
        cost = self.search.cost(plan[None])[0]
        found = plan if self.limit.low <= cost <= self.limit.high else self.search.nearby(plan, self.limit)
        return None if found is None else tuple(found.tolist())
