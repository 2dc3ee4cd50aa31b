"""Limits of calls a minute: never one more than allowed, in any 60 s."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.access import Caller, Kind
from servestate.planner.table import Limit
from servestate.runtime.router import rates
from servestate.runtime.router.rates import CallRates, Window

ANN, BOB = Caller("ann"), Caller("bob", groups=frozenset({"ops", "all"}))
ROBOT = Caller("ann", Kind.SERVICE_PRINCIPAL)


def endpoint(calls: int) -> Limit:
    return Limit("endpoint", "", calls)


def each(calls: int) -> Limit:
    return Limit("user", "", calls)


@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.4, 0.999, 1.0, 7.3, 29.5, 60.0, 61.0]), max_size=300),
    st.integers(1, 90),
)
def test_no_minute_holds_more_than_the_limit(steps: list[float], most: int) -> None:
    limited, now, admitted = CallRates([endpoint(most)]), 1000.0, []
    for step in steps:
        now += step
        wait = limited.admit(ANN, now)
        if wait == 0:
            admitted.append(now)
        else:
            assert 1 <= wait <= 60
            assert len([t for t in admitted if now - t < 61.0]) >= most, "refused though there was room"
    assert all(later - first >= 60.0 for first, later in zip(admitted, admitted[most:], strict=False))


@given(st.integers(1, 200), st.floats(0.0, 120.0))
def test_the_named_wait_is_enough(most: int, idle: float) -> None:
    limited, now = CallRates([endpoint(most)]), 50.0 + idle
    while (wait := limited.admit(ANN, now)) == 0:
        now += 0.05
    assert limited.admit(ANN, now + wait) == 0


def test_a_burst_is_given_back_after_a_minute_and_not_before() -> None:
    limited = CallRates([endpoint(3)])
    assert [limited.admit(ANN, 10.0 + i / 10) for i in range(4)] == [0, 0, 0, 60]
    assert limited.admit(ANN, 69.9) == 1
    assert [limited.admit(ANN, 70.0), limited.admit(ANN, 70.05)] == [0, 1]


def test_memory_is_bounded_however_high_the_limit() -> None:
    window = Window(1_000_000)
    for i in range(200_000):
        assert not window.full(i / 1000)
        window.add(i / 1000)
    assert len(window._times) <= 62
    assert all(later - first >= 0.9 for first, later in pairwise(window._times))


def test_every_user_has_a_minute_of_its_own() -> None:
    limited = CallRates([each(1)])
    assert [limited.admit(who, 0.0) for who in (ANN, BOB, ROBOT)] == [0, 0, 0]
    assert [limited.admit(who, 0.0) for who in (ANN, BOB, ROBOT)] == [60, 60, 60]
    first, second = Caller("anonymous", token="a"), Caller("anonymous", token="b")
    assert [limited.admit(who, 0.0) for who in (first, second, first)] == [0, 0, 60]


def test_a_limit_with_a_name_stands_in_place_of_the_default() -> None:
    limits = [each(1), Limit("user", "ann", 3), Limit("service_principal", "bob", 2)]
    limited = CallRates(limits)
    assert [limited.admit(ANN, 0.0) for _ in range(4)] == [0, 0, 0, 60]
    assert [limited.admit(ROBOT, 0.0) for _ in range(2)] == [0, 60], "the robot ann is not the user ann"
    robot = Caller("bob", Kind.SERVICE_PRINCIPAL)
    assert [limited.admit(robot, 0.0) for _ in range(3)] == [0, 0, 60]


def test_a_group_shares_its_limit_and_others_have_none() -> None:
    limited = CallRates([Limit("user_group", "ops", 2)])
    eve = Caller("eve", groups=frozenset({"ops"}))
    assert [limited.admit(who, 0.0) for who in (BOB, eve, BOB, eve)] == [0, 0, 60, 60]
    assert [limited.admit(ANN, 0.0) for _ in range(9)] == [0] * 9


def test_what_one_limit_refuses_counts_with_none() -> None:
    limited = CallRates([endpoint(3), each(1)])
    assert [limited.admit(ANN, 0.0) for _ in range(5)] == [0, 60, 60, 60, 60]
    assert [limited.admit(Caller(name), 0.0) for name in ("b", "c", "d")] == [0, 0, 60]
    assert limited.refused == 5


def test_the_longest_wait_is_named() -> None:
    limited = CallRates([endpoint(2), each(1)])
    assert limited.admit(ANN, 0.0) == 0
    assert limited.admit(BOB, 30.0) == 0
    assert limited.admit(BOB, 40.0) == 50
    assert limited.admit(ANN, 40.0) == 20


def test_counts_outlive_a_new_table_where_the_limit_is_the_same() -> None:
    before = CallRates([endpoint(1), each(1)])
    assert before.admit(ANN, 0.0) == 0
    assert CallRates([endpoint(1)], before).admit(BOB, 1.0) == 59
    assert CallRates([endpoint(2), each(2)], before).admit(ANN, 1.0) == 0


def test_the_caller_idle_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "DISTINCT_CALLERS", 3)
    limited = CallRates([each(1)])
    callers = [Caller(name) for name in "abcd"]
    assert [limited.admit(who, 0.0) for who in callers[:3]] == [0, 0, 0]
    assert limited.admit(callers[0], 1.0) == 59
    assert limited.admit(callers[3], 2.0) == 0
    assert [limited.admit(who, 3.0) for who in (callers[0], callers[1])] == [57, 0]
