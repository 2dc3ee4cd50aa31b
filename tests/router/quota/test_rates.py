"""Limits of calls, of tokens and of requests in flight: never more than allowed, in any 60 s."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.planner.access import Caller, Kind
from servestate.planner.table import Limit
from servestate.runtime.router.quota import memory as memory_module
from servestate.runtime.router.quota import windows
from servestate.runtime.router.quota.memory import MOST_ENTRIES, Memory
from servestate.runtime.router.quota.rates import Admission, Denied, Rates
from servestate.runtime.router.quota.windows import Window
from tests.router.quota.spans import most_in_a_span

ANN, BOB = Caller("ann"), Caller("bob", groups=frozenset({"ops", "all"}))
ROBOT = Caller("ann", Kind.SERVICE_PRINCIPAL)
STEPS = st.sampled_from([0.0, 0.0, 0.001, 0.4, 0.499, 0.5, 0.999, 1.0, 7.3, 29.5, 60.0, 61.0])
MEMORY = Memory.private()
"""One for all pure tests; each has an endpoint of its own."""
made = 0


def rates(*limits: Limit, concurrency: int = 0, shadow: bool = False) -> Rates:
    """The limits of an endpoint that nobody has called yet."""
    global made
    made += 1
    return Rates(f"ep-{made}", limits, concurrency, shadow, MEMORY, None)


def again(before: Rates, *limits: Limit, concurrency: int = 0) -> Rates:
    return Rates(before._endpoint, limits, concurrency, False, before._memory, before)


def endpoint(calls: int = 0, tokens: int = 0) -> Limit:
    return Limit("endpoint", "", calls, tokens)


def each(calls: int = 0, tokens: int = 0) -> Limit:
    return Limit("user", "", calls, tokens)


def wait(limited: Rates, caller: Caller, now: float, tokens: int = 0) -> int:
    """0 if the call is admitted, else for how long it is not."""
    got = limited.admit(caller, tokens, now)
    return got.wait_s if isinstance(got, Denied) else 0


def admitted(limited: Rates, caller: Caller, now: float, tokens: int = 0) -> Admission:
    got = limited.admit(caller, tokens, now)
    assert isinstance(got, Admission)
    return got


def denied(limited: Rates, caller: Caller, now: float, tokens: int = 0) -> Denied:
    got = limited.admit(caller, tokens, now)
    assert isinstance(got, Denied)
    return got


def calls_let_through(limited: Rates, steps: list[float]) -> list[float]:
    now, times = 1000.0, []
    for step in steps:
        now += step
        if isinstance(limited.admit(ANN, 0, now), Admission):
            times.append(now)
    return times


@given(st.lists(STEPS, max_size=300), st.integers(1, 190))
def test_no_minute_holds_more_calls_than_the_limit_nor_less_than_it_could(
    steps: list[float], most: int
) -> None:
    limited, now, times = rates(endpoint(most)), 1000.0, []
    for step in steps:
        now += step
        seconds = wait(limited, ANN, now)
        if seconds == 0:
            times.append(now)
        else:
            assert 1 <= seconds <= 60
            assert len([t for t in times if now - t < 60.5]) >= most, "refused though there was room"
    assert most_in_a_span(times) <= most


def test_the_check_notices_a_window_that_forgets_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SPAN_S", 59.0)
    assert most_in_a_span(calls_let_through(rates(endpoint(5)), [59.5 / 5] * 100)) > 5


def test_the_check_notices_a_window_that_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "left", lambda window, now: window.most)
    assert most_in_a_span(calls_let_through(rates(endpoint(5)), [0.1] * 10)) == 10


@given(st.integers(1, 200), st.floats(0.0, 120.0))
def test_the_named_wait_is_enough(most: int, idle: float) -> None:
    limited, now = rates(endpoint(most)), 50.0 + idle
    while (seconds := wait(limited, ANN, now)) == 0:
        now += 0.05
    assert wait(limited, ANN, now + seconds) == 0


def test_a_burst_is_given_back_after_a_minute_and_not_before() -> None:
    limited = rates(endpoint(3))
    assert [wait(limited, ANN, 10.0 + i / 10) for i in range(4)] == [0, 0, 0, 60]
    assert wait(limited, ANN, 69.9) == 1
    assert [wait(limited, ANN, 70.0), wait(limited, ANN, 70.05)] == [0, 1]


def test_nearly_all_that_a_limit_gives_is_given_under_higher_demand() -> None:
    for demand in (1.02, 1.2, 8.0):
        limited, most = rates(endpoint(1200)), 1200
        times = calls_let_through(limited, [60.0 / most / demand] * int(most * demand * 10))
        assert most_in_a_span(times) <= most
        assert len(times) >= 0.99 * most * 10, demand


def test_memory_is_bounded_however_high_the_limit() -> None:
    for most, amounts in ((1_000_000, 1), (100, 0)):
        digest = MEMORY.digest("bounded", str(most))
        window = Window(MEMORY, digest, most, lasting=True)
        for i in range(100_000):
            assert window.left(i / 1000) > 0
            window.add(amounts, i / 1000)
        at = MEMORY.windows.find(digest, 0.0)
        kept = range(MEMORY.integers[at + memory_module.TAIL], MEMORY.integers[at + memory_module.HEAD])
        assert len(kept) <= MOST_ENTRIES
        times = [MEMORY.times[at + memory_module.ENTRIES + 2 * (n % MOST_ENTRIES)] for n in kept]
        assert all(later > first for first, later in pairwise(times))


@dataclass(frozen=True)
class Ask:
    """A request: after how long it comes, what it reserves, and what it has used (None: unknown) after how
    many further requests."""

    step: float
    reserved: int
    used: int | None
    later: int


ASKS = st.builds(Ask, STEPS, st.integers(0, 60), st.one_of(st.none(), st.integers(0, 80)), st.integers(0, 5))


@given(st.lists(ASKS, max_size=120), st.integers(1, 400))
def test_tokens_reserved_or_used_stay_within_the_limit(asks: list[Ask], most: int) -> None:
    limited, now = rates(endpoint(tokens=most)), 1000.0
    counted: list[list[float]] = []  # time of admission, tokens as they are known now
    open_until: list[tuple[int, Admission, int | None, list[float]]] = []
    for turn, ask in enumerate(asks):
        now += ask.step
        for _, admission, used, entry in [one for one in open_until if one[0] <= turn]:
            admission.ended(used, now)
            entry[1] = entry[1] if used is None else used
        open_until = [one for one in open_until if one[0] > turn]
        in_span = sum(tokens for at, tokens in counted if now - at < 60.0)
        got = limited.admit(ANN, ask.reserved, now)
        if isinstance(got, Admission):
            assert in_span + ask.reserved <= most
            counted.append([now, ask.reserved])
            open_until.append((turn + 1 + ask.later, got, ask.used, counted[-1]))
        else:
            lately = sum(tokens for at, tokens in counted if now - at < 60.5)
            assert lately + ask.reserved > most, "refused though there was room"
            assert got.never == (ask.reserved > most)


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed() -> None:
    limited = rates(endpoint(tokens=1000))
    first = admitted(limited, ANN, 0.0, 900)
    assert wait(limited, ANN, 1.0, 200) == 59, "what is in flight counts"
    first.ended(100, 2.0)
    second = admitted(limited, ANN, 3.0, 900)
    second.ended(5000, 4.0)
    assert denied(limited, ANN, 5.0, 0).limit == "endpoint tokens"
    assert wait(limited, ANN, 62.9, 1) == 1
    assert wait(limited, ANN, 63.0, 1000) == 0, "counted at the time of the admission"


def test_a_request_that_says_nothing_of_what_it_used_counts_as_reserved() -> None:
    limited = rates(endpoint(tokens=10))
    admitted(limited, ANN, 0.0, 10).ended(None, 1.0)
    assert wait(limited, ANN, 2.0, 1) == 58


def test_the_end_of_a_request_that_counts_no_more_changes_nothing() -> None:
    limited = rates(endpoint(tokens=10))
    first = admitted(limited, ANN, 0.0, 10)
    admitted(limited, ANN, 60.0, 10)
    first.ended(0, 61.0)
    assert wait(limited, ANN, 62.0, 1) == 58


def test_more_than_a_limit_ever_gives_is_refused_as_such() -> None:
    limited = rates(endpoint(tokens=10), each(tokens=100))
    got = denied(limited, ANN, 0.0, 11)
    assert (got.limit, got.wait_s, got.never) == ("endpoint tokens", 60, True)
    assert wait(limited, ANN, 0.0, 10) == 0
    assert denied(limited, ANN, 0.0, 10).never is False


def test_every_user_has_a_minute_of_its_own() -> None:
    limited = rates(each(1))
    assert [wait(limited, who, 0.0) for who in (ANN, BOB, ROBOT)] == [0, 0, 0]
    assert [wait(limited, who, 0.0) for who in (ANN, BOB, ROBOT)] == [60, 60, 60]
    first, second = Caller("anonymous", token="a"), Caller("anonymous", token="b")
    assert [wait(limited, who, 0.0) for who in (first, second, first)] == [0, 0, 60]
    assert wait(limited, Caller("ann", groups=frozenset({"new"})), 0.0) == 60, "the same user, read anew"


def test_a_limit_with_a_name_stands_in_place_of_the_default() -> None:
    limits = [each(1), Limit("user", "ann", 3), Limit("service_principal", "bob", 2)]
    limited = rates(*limits)
    assert [wait(limited, ANN, 0.0) for _ in range(4)] == [0, 0, 0, 60]
    assert [wait(limited, ROBOT, 0.0) for _ in range(2)] == [0, 60], "the robot ann is not the user ann"
    robot = Caller("bob", Kind.SERVICE_PRINCIPAL)
    assert [wait(limited, robot, 0.0) for _ in range(3)] == [0, 0, 60]
    assert limited.refused == {"user calls": 2, "service_principal calls": 1}


def test_a_group_shares_its_limit_and_others_have_none() -> None:
    limited = rates(Limit("user_group", "ops", 2, 100))
    eve = Caller("eve", groups=frozenset({"ops"}))
    assert [wait(limited, who, 0.0, 10) for who in (BOB, eve, BOB, eve)] == [0, 0, 60, 60]
    assert [wait(limited, ANN, 0.0, 1000) for _ in range(9)] == [0] * 9


def test_two_limits_for_the_same_are_the_lower_of_both() -> None:
    limited = rates(endpoint(4), endpoint(2, 30), endpoint(tokens=20))
    assert [wait(limited, ANN, 0.0, 15), wait(limited, ANN, 0.0, 15), wait(limited, ANN, 0.0, 5)] == [
        0,
        60,
        0,
    ]
    assert wait(limited, ANN, 0.0, 0) == 60


def test_what_one_limit_refuses_counts_with_none() -> None:
    limited = rates(endpoint(3, 100), each(1), concurrency=9)
    assert [wait(limited, ANN, 0.0, 10) for _ in range(5)] == [0, 60, 60, 60, 60]
    assert wait(limited, BOB, 0.0, 91) == 60
    assert [wait(limited, Caller(name), 0.0, 45) for name in ("b", "c", "d")] == [0, 0, 60]
    assert sum(limited.refused.values()) == 6
    assert MEMORY.integers[limited._gauge._at + memory_module.TOTAL] == 3  # type: ignore[union-attr]


def test_the_longest_wait_is_named() -> None:
    limited = rates(endpoint(2), each(1))
    assert wait(limited, ANN, 0.0) == 0
    assert wait(limited, BOB, 30.0) == 0
    assert (denied(limited, BOB, 40.0).wait_s, denied(limited, BOB, 40.0).limit) == (50, "user calls")
    assert (denied(limited, ANN, 40.0).wait_s, denied(limited, ROBOT, 40.0).limit) == (20, "endpoint calls")


def test_as_many_are_in_flight_as_may_be() -> None:
    limited = rates(concurrency=2)
    first, _ = admitted(limited, ANN, 0.0), admitted(limited, BOB, 0.0)
    got = denied(limited, ANN, 500.0)
    assert (got.limit, got.wait_s, got.fields) == ("concurrency", 1, b"")
    first.ended(None, 500.0)
    assert admitted(limited, ANN, 500.0).fields == b""
    assert wait(limited, ANN, 500.0) == 1
    assert wait(again(limited, endpoint(9), concurrency=2), ANN, 501.0) == 1, "a new table frees nobody"


def test_shadow_refuses_nothing_and_counts_what_would_be() -> None:
    limited = rates(endpoint(2, 50), concurrency=5, shadow=True)
    requests = [admitted(limited, ANN, 0.0, 20) for _ in range(5)]
    assert limited.shadowed == {"endpoint calls": 3}
    assert limited.refused == {}
    assert {one.fields for one in requests} == {b""}
    for one in requests:
        one.ended(20, 1.0)
    assert isinstance(again(limited, endpoint(9), concurrency=1).admit(ANN, 0, 2.0), Admission), (
        "none is left"
    )


def test_the_tightest_limit_of_each_unit_is_told() -> None:
    limited = rates(endpoint(10, 1000), each(5, 5000))
    assert admitted(limited, ANN, 0.0, 100).fields == (
        b"x-ratelimit-limit-requests: 5\r\nx-ratelimit-remaining-requests: 4\r\n"
        b"x-ratelimit-reset-requests: 1m0s\r\n"
        b"x-ratelimit-limit-tokens: 1000\r\nx-ratelimit-remaining-tokens: 900\r\n"
        b"x-ratelimit-reset-tokens: 1m0s\r\n"
    )
    assert denied(limited, ANN, 30.5, 901).fields == (
        b"x-ratelimit-limit-requests: 5\r\nx-ratelimit-remaining-requests: 4\r\n"
        b"x-ratelimit-reset-requests: 30s\r\n"
        b"x-ratelimit-limit-tokens: 1000\r\nx-ratelimit-remaining-tokens: 900\r\n"
        b"x-ratelimit-reset-tokens: 30s\r\n"
    )
    assert b"reset-tokens: 250ms\r\n" in denied(limited, ANN, 59.75, 901).fields
    assert b"reset-tokens: 0ms\r\n" in denied(limited, ANN, 60.0, 1001).fields


def test_counts_outlive_a_new_table_and_a_changed_limit_looks_back() -> None:
    before = rates(endpoint(1), each(1))
    assert [wait(before, ANN, 0.0) for _ in range(2)] == [0, 60]
    assert wait(again(before, endpoint(1)), BOB, 1.0) == 59
    assert wait(again(before, endpoint(2), each(2)), ANN, 1.0) == 0
    assert wait(again(before, endpoint(1), each(2)), ANN, 2.0) == 59
    after = again(before, endpoint(2))
    assert wait(after, BOB, 2.0) == 58
    assert after.refused["endpoint calls"] == 4


def test_the_end_of_a_request_is_counted_though_the_table_has_changed() -> None:
    before = rates(endpoint(tokens=100), concurrency=1)
    running = admitted(before, ANN, 0.0, 100)
    after = again(before, endpoint(tokens=100), concurrency=1)
    running.ended(1, 1.0)
    assert wait(after, ANN, 2.0, 99) == 0


def test_the_caller_last_admitted_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "WINDOWS", 4)
    monkeypatch.setattr(memory_module, "_REACH", 4)
    limited = Rates("ep", [endpoint(100), each(1)], 0, False, Memory.private(), None)
    a, b, c, d = (Caller(name) for name in "abcd")
    assert [wait(limited, who, now) for now, who in enumerate((a, b, c), start=1)] == [0, 0, 0]
    assert wait(limited, d, 4.0) == 0
    assert [wait(limited, who, 5.0) for who in (b, c, d)] == [57, 58, 59]
    assert wait(limited, a, 5.0) == 0
    left = admitted(limited, Caller("e"), 6.0).fields.split(b"\r\n")[1]
    assert left == b"x-ratelimit-remaining-requests: 0", "of one's own"
    assert wait(limited, Caller("f"), 7.0) == 0
    everybody = again(limited, endpoint(8))
    assert [wait(everybody, a, 8.0), wait(everybody, a, 8.0)] == [0, 53], "what is for all is kept"


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + jumps[-1])

    def let_through(clock: Callable[[], float]) -> int:
        limited, admissions = rates(endpoint(10)), 0
        for jump in (0.0, 3600.0, -3600.0, 0.0):
            jumps.append(jump)
            admissions += sum(wait(limited, ANN, clock()) == 0 for _ in range(20))
        return admissions

    assert let_through(time.monotonic) == 10
    assert let_through(lambda: time.time()) == 20, "the check would notice"
