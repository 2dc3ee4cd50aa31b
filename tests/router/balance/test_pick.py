"""Splits: exact over every window of a cycle, random within its deviation, sticky without needless moves."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from math import gcd, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.table import Sticky, Traffic
from servestate.runtime.router.balance.pick import Exact, Split, cycle, split_of

WEIGHTS = st.lists(st.integers(0, 100), min_size=1, max_size=10).filter(lambda w: sum(w) > 0)
SPLITS = [(90, 10), (1, 99), (33, 33, 34), (0, 100)]
SPREAD = 4  # standard deviations that a random share may be off


class Counting:
    """Draws as the workers of a router share them."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def next(self) -> int:
        return next(self._numbers)


def names(weights: Sequence[int]) -> list[str]:
    return [f"entity-{i}" for i in range(len(weights))]


def sticky(weights: Sequence[int], salt: str = "") -> Split:
    return split_of(Traffic("sticky", Sticky("header", "x-user", salt)), weights, names(weights))


def seeded(weights: Sequence[int], seed: int) -> Split:
    return split_of(Traffic("random"), weights, names(weights), uniform=random.Random(seed).random)


def assert_shares(found: Sequence[int], weights: Sequence[int]) -> None:
    count, total = sum(found), sum(weights)
    for have, weight in zip(found, weights, strict=True):
        share = weight / total
        assert abs(have - count * share) <= SPREAD * sqrt(count * share * (1 - share)), (found, weights)


@given(WEIGHTS, st.integers(0, 500))
def test_every_window_of_a_cycle_is_exact(weights: list[int], start: int) -> None:
    picks = cycle(weights)
    divisor = gcd(*weights)
    assert len(picks) == sum(weights) // divisor
    window = Counter(picks[(start + i) % len(picks)] for i in range(len(picks)))
    assert window == Counter({i: w // divisor for i, w in enumerate(weights) if w})


@given(WEIGHTS)
def test_every_beginning_is_within_one_of_its_share(weights: list[int]) -> None:
    seen = [0] * len(weights)
    for n, index in enumerate(cycle(weights), 1):
        seen[index] += 1
        for have, weight in zip(seen, weights, strict=True):
            assert abs(have - n * weight / sum(weights)) <= len(weights) - 1 or weight == 0 == have


@pytest.mark.parametrize("weights", SPLITS)
def test_ten_thousand_picks(weights: tuple[int, ...]) -> None:
    split = split_of(Traffic(), weights, names(weights))
    found = Counter(split.pick() for _ in range(10_000))
    assert [found[i] for i in range(len(weights))] == [w * 100 for w in weights] == split.assigned


@given(WEIGHTS, st.lists(st.integers(0, 3), max_size=400))
def test_workers_that_draw_together_keep_the_cycle(weights: list[int], order: list[int]) -> None:
    draws = Counting()
    workers = [split_of(Traffic(), weights, names(weights), draws) for _ in range(4)]
    assert [workers[which].pick() for which in order] == list(
        itertools.islice(itertools.cycle(cycle(weights)), len(order))
    )
    assert sum(sum(worker.assigned) for worker in workers) == len(order)


def test_workers_with_sequences_of_their_own_are_not_exact() -> None:
    """The negative control: the same check sees it."""
    workers = [split_of(Traffic(), (90, 10), names((90, 10)), Counting()) for _ in range(4)]
    found = Counter(worker.pick() for _ in range(5) for worker in workers)
    assert found != Counter({0: 18, 1: 2})


def test_a_draw_that_fails_ends_nothing() -> None:
    class Failing(Counting):
        def next(self) -> int:
            if (number := super().next()) == 1:
                raise OSError("busy")
            return number

    split = Exact((50, 50), Failing())
    assert split.pick() == 0
    with pytest.raises(OSError, match="busy"):
        split.pick()
    assert [split.pick() for _ in range(4)] == [0, 1, 0, 1]
    assert split.assigned == [3, 2]


def test_ties_go_by_declared_order_and_nothing_is_no_split() -> None:
    assert cycle([50, 50]) == (0, 1)
    assert cycle([90, 10]).index(1) == 5
    for traffic in (Traffic(), Traffic("random"), Traffic("sticky", Sticky("caller"))):
        with pytest.raises(ValueError, match="no split"):
            split_of(traffic, [0, 0], names([0, 0]))
    with pytest.raises(ValueError, match="no split is called 'even'"):
        split_of(Traffic("even"), [1], ["one"])


@pytest.mark.parametrize("weights", SPLITS)
def test_random_is_within_its_deviation_and_repeats_with_its_seed(weights: tuple[int, ...]) -> None:
    split, again = seeded(weights, 7), seeded(weights, 7)
    trace = [split.pick() for _ in range(10_000)]
    assert trace == [again.pick() for _ in range(10_000)]
    assert_shares(split.assigned, weights)


def test_a_random_split_of_other_weights_is_seen() -> None:
    split = seeded((88, 12), 7)
    for _ in range(10_000):
        split.pick()
    with pytest.raises(AssertionError):
        assert_shares(split.assigned, (90, 10))


@given(WEIGHTS, st.text(min_size=1), st.floats(0, 1, exclude_max=True))
def test_weight_0_is_never_picked(weights: list[int], key: str, drawn: float) -> None:
    policies = [
        split_of(Traffic("random"), weights, names(weights), uniform=lambda: drawn),
        sticky(weights),
        split_of(Traffic(), weights, names(weights)),
    ]
    for split in policies:
        assert weights[split.pick(key)] > 0


@pytest.mark.parametrize("weights", SPLITS)
def test_sticky_keys_are_spread_by_weight(weights: tuple[int, ...]) -> None:
    split = sticky(weights)
    for n in range(10_000):
        split.pick(f"user-{n}")
    assert_shares(split.assigned, weights)


@given(WEIGHTS, st.text(min_size=1), st.text())
def test_a_key_goes_where_it_went(weights: list[int], key: str, salt: str) -> None:
    assert sticky(weights, salt).pick(key) == sticky(weights, salt).pick(key)


def test_a_key_goes_where_it_went_in_every_version() -> None:
    """Written down once: another answer would deal all keys anew on an upgrade."""
    split = sticky((50, 30, 20), "spring")
    assert [split.pick(f"user-{n}") for n in range(12)] == [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1]


@given(WEIGHTS, st.data(), st.text(min_size=1))
def test_keys_move_only_away_from_whom_lost_or_to_whom_gained(
    weights: list[int], data: st.DataObject, key: str
) -> None:
    giver, taker = (data.draw(st.integers(0, len(weights) - 1)) for _ in range(2))
    moved = data.draw(st.integers(0, weights[giver]))
    after = list(weights)
    after[giver] -= moved
    after[taker] += moved
    was, now = sticky(weights).pick(key), sticky(after).pick(key)
    assert was in (now, giver) or now == taker


def test_from_90_10_to_80_20_a_tenth_of_the_keys_moves() -> None:
    before, after = sticky((90, 10)), sticky((80, 20))
    moves = Counter((before.pick(f"user-{n}"), after.pick(f"user-{n}")) for n in range(10_000))
    assert moves[1, 0] == 0
    assert abs(moves[0, 1] - 1000) <= SPREAD * sqrt(10_000 * 0.1 * 0.9)


def test_another_salt_deals_anew() -> None:
    one, other = sticky((50, 50), "a"), sticky((50, 50), "b")
    same = sum(one.pick(f"user-{n}") == other.pick(f"user-{n}") for n in range(10_000))
    assert abs(same - 5000) <= SPREAD * sqrt(10_000 * 0.25)


def test_requests_without_a_key_take_turns() -> None:
    split = sticky((90, 10))
    assert split.wants_key
    assert [split.pick() for _ in range(20)] == [*cycle((90, 10)), *cycle((90, 10))]
    assert split.assigned == [18, 2]
    assert not split_of(Traffic(), (1,), ["one"]).wants_key
    assert not split_of(Traffic("random"), (1,), ["one"]).wants_key
