"""The split is exact: over every window of a cycle, from any start."""

from __future__ import annotations

from collections import Counter
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.pick import Split, cycle

WEIGHTS = st.lists(st.integers(0, 100), min_size=1, max_size=10).filter(lambda w: sum(w) > 0)


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


@pytest.mark.parametrize("weights", [(90, 10), (1, 99), (33, 33, 34), (0, 100)])
def test_ten_thousand_picks(weights: tuple[int, ...]) -> None:
    split = Split(weights)
    found = Counter(split.pick() for _ in range(10_000))
    assert [found[i] for i in range(len(weights))] == [w * 100 for w in weights] == split.assigned


def test_ties_go_by_declared_order_and_nothing_is_no_split() -> None:
    assert cycle([50, 50]) == (0, 1)
    assert cycle([90, 10]).index(1) == 5
    with pytest.raises(ValueError, match="no split"):
        cycle([0, 0])
