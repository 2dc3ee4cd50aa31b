"""When something that keeps dying is started again, in virtual time."""

from __future__ import annotations

import random

import pytest

from servestate.runtime.backoff import HEALTHY_S, Backoff, nominal_delay_s

DAY_S = 86_400.0
DOUBLING = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


def crash_loop(for_s: float, draw: random.Random) -> list[float]:
    """The delays of something that dies the moment it is started."""
    now, backoff, delays = 0.0, Backoff(), []
    while now < for_s:
        backoff = backoff.failed(now, draw.random)
        assert backoff.next_try is not None
        assert not backoff.due(backoff.next_try - 0.001)
        delays.append(backoff.next_try - now)
        now = backoff.next_try
        assert backoff.due(now)
        backoff = backoff.restarted()
    return delays


def test_delays_double_up_to_five_minutes() -> None:
    assert [nominal_delay_s(n) for n in range(12)] == [*DOUBLING, 300.0, 300.0, 300.0]
    assert nominal_delay_s(10_000) == 300.0


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_jitter_is_a_quarter_at_most(chance: float, factor: float) -> None:
    for restarts in range(12):
        failed = Backoff(restarts).failed(100.0, lambda: chance)
        assert failed.next_try == pytest.approx(100.0 + factor * nominal_delay_s(restarts))


def test_a_day_of_crashes(seeded: random.Random) -> None:
    delays = crash_loop(DAY_S, seeded)
    for nth, delay in enumerate(delays):
        assert 0.75 * nominal_delay_s(nth) <= delay <= 1.25 * nominal_delay_s(nth)
    assert 250 < len(delays) < 400  # one in five minutes, nearly
    assert len(set(delays)) == len(delays)


def test_called_crash_looping_from_the_third_restart_on() -> None:
    backoff, said = Backoff(), []
    for now in range(5):
        backoff = backoff.failed(now, lambda: 0.5).restarted()
        said.append(backoff.crash_looping)
    assert said == [False, False, True, True, True]


def test_ten_minutes_of_health_forget_everything() -> None:
    up = Backoff(restarts=7).healthy(50.0)
    assert up.healthy(50.0 + HEALTHY_S - 1).restarts == 7
    well = up.healthy(50.0 + HEALTHY_S)
    assert (well.restarts, well.crash_looping) == (0, False)
    assert well.failed(1000.0, lambda: 0.5).next_try == 1001.0


def test_health_that_ends_early_forgets_nothing() -> None:
    up = Backoff(restarts=4).healthy(0.0).healthy(HEALTHY_S - 1)
    again = up.failed(HEALTHY_S - 1, lambda: 0.5).restarted().healthy(HEALTHY_S + 20)
    assert again.healthy(2 * HEALTHY_S).restarts == 5


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    waiting = Backoff(2).failed(1_000_000.0, lambda: 0.5)
    assert waiting.due(10.0)
    assert Backoff().healthy(1_000_000.0).healthy(10.0).healthy_since == 10.0
