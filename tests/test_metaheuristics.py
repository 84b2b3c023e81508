"""Annealing and evolution on problems whose optimum is known."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from compress.errors import ConfigError
from compress.pruning.metaheuristics import anneal, evolve

BITS = 12
WEIGHTS = np.array([12, 2, 1, 4, 1, 7, 9, 3, 8, 5, 6, 11])
VALUES = np.array([4, 2, 1, 10, 2, 6, 7, 5, 12, 3, 8, 9])
ROOM = 30


def knapsack(bits: tuple[int, ...]) -> float:
    """Minus the value of what is packed, and a penalty for what does not fit."""
    return 3.0 * max(int(WEIGHTS @ bits) - ROOM, 0) - float(VALUES @ bits)


# By enumeration, independent of any search.
BEST = min(knapsack(bits) for bits in itertools.product((0, 1), repeat=BITS))


def flipped(bits: tuple[int, ...], random: np.random.Generator) -> tuple[int, ...]:
    places = random.choice(BITS, size=int(random.integers(1, 4)), replace=False)
    return tuple(1 - bit if i in places else bit for i, bit in enumerate(bits))


def mixed(one: tuple[int, ...], other: tuple[int, ...], random: np.random.Generator) -> tuple[int, ...]:
    return tuple(np.where(random.random(BITS) < 0.5, one, other).tolist())


class Counted:
    """A loss that counts how often each candidate is looked at."""

    def __init__(self, loss):
        self.loss, self.seen = loss, Counter()

    def __call__(self, candidate):
        self.seen[candidate] += 1
        return self.loss(candidate)


def searches(loss, seed):
    nothing, random = (0,) * BITS, np.random.default_rng
    annealed = anneal(nothing, flipped, loss, 1500, 5.0, random(seed))
    return annealed, evolve([nothing], flipped, mixed, loss, 24, 25, random(seed))


@pytest.mark.parametrize("seed", range(3))
def test_both_fill_a_knapsack_as_well_as_enumeration(seed):
    for found in searches(knapsack, seed):
        assert found.loss == BEST
        assert knapsack(found.best) == BEST
        assert len(found.losses) < 2**BITS / 4


def test_no_candidate_is_scored_twice_and_the_same_seed_takes_the_same_way():
    for which in (0, 1):
        counted, again = Counted(knapsack), Counted(knapsack)
        nothing = (0,) * BITS

        def run(loss, which=which, nothing=nothing):
            random = np.random.default_rng(7)
            if which == 0:
                return anneal(nothing, flipped, loss, 200, 5.0, random)
            return evolve([nothing], flipped, mixed, loss, 10, 10, random)

        first, second = run(counted), run(again)
        assert set(counted.seen.values()) == {1}
        assert list(first.losses) == list(counted.seen) == list(again.seen)
        assert first == second


def test_annealing_leaves_a_local_minimum_that_greedy_descent_stays_in():
    # From 0 every step costs 1 until 4, then the ground falls to the optimum at 10.
    heights = [0, 1, 1, 1, 1, 0, -1, -2, -3, -4, -5]

    def step(place: int, random: np.random.Generator) -> int | None:
        there = place + (1 if random.random() < 0.5 else -1)
        return there if 0 <= there < len(heights) else None

    losses = heights.__getitem__
    assert anneal(0, step, losses, 300, 0.0, np.random.default_rng(0)).best == 0
    assert anneal(0, step, losses, 300, 3.0, np.random.default_rng(0)).best == 10


def test_annealing_accepts_by_the_metropolis_rule():
    # A walk between two states of energies 0 and 1 visits them as Boltzmann says of each temperature on the way.
    visits = Counter()

    def other(place: int, random: np.random.Generator) -> int:
        visits[place] += 1
        return 1 - place

    steps, temperature = 20_000, 2.0
    anneal(0, other, float, steps, temperature, np.random.default_rng(0))
    cooling = temperature * 0.01 ** (np.arange(steps) / (steps - 1))
    # Always leaving the upper state and the lower with p = exp(-1/T), the upper's share is p / (1 + p) at each T.
    chance = np.exp(-1 / cooling)
    expected = (chance / (1 + chance)).mean()
    assert visits[1] / steps == pytest.approx(expected, abs=0.01)


def test_evolution_never_loses_its_best_and_crossing_combines_parents():
    told = []
    halves = [(1,) * 6 + (0,) * 6, (0,) * 6 + (1,) * 6]

    def only_cross(one, other, random):
        return tuple(max(a, b) for a, b in zip(one, other, strict=True))

    found = evolve(
        halves, lambda c, r: None, only_cross, lambda c: -float(sum(c)), 4, 10, np.random.default_rng(0), told.append
    )
    assert found.best == (1,) * BITS  # which only a child of both can be
    assert [tried.count for tried in told] == [1, 2, 3]
    assert np.diff([tried.best_loss for tried in told]).max() <= 0


def test_a_loss_that_is_no_number_never_wins():
    def loss(candidate: int) -> float:
        return math.nan if candidate == 1 else float(candidate)

    def anywhere(_: int, random: np.random.Generator) -> int:
        return int(random.integers(5))

    assert anneal(1, anywhere, loss, 30, 1.0, np.random.default_rng(0)).best == 0
    assert evolve([1], anywhere, lambda a, b, r: None, loss, 3, 6, np.random.default_rng(0)).best == 0


def test_none_for_a_neighbour_is_no_step():
    found = anneal(3, lambda c, r: None, float, 5, 1.0, np.random.default_rng(0))
    assert (found.best, found.losses) == (3, {3: 3.0})


def test_bad_numbers_are_named():
    random = np.random.default_rng(0)

    def search(**changes):
        return evolve(
            **{"starts": [1], "mutate": None, "cross": None, "loss": None, "population": 4, "generations": 1}
            | changes | {"random": random}
        )  # fmt: skip

    with pytest.raises(ConfigError, match="population: should be 2 or more, not 1"):
        search(population=1)
    with pytest.raises(ConfigError, match="generations: should be 0 or more, not -1"):
        search(generations=-1)
    with pytest.raises(ConfigError, match="starts: should be 1 or more, not 0"):
        search(starts=[])
    with pytest.raises(ConfigError, match="steps: should be 0 or more, not -2"):
        anneal(1, lambda c, r: c, float, -2, 1.0, random)
    with pytest.raises(ConfigError, match="temperature: should be 0 or more, and finite, not nan"):
        anneal(1, lambda c, r: c, float, 2, math.nan, random)
