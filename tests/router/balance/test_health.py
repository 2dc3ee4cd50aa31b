"""The health of a replica: every short life of it, against a table written down a second time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.balance.health import HEALTH, Ejected, Health, Trial, Well
from servestate.runtime.router.balance.policy import HealthPolicy

SMALL = HealthPolicy(errors=2, ejection_s=2, max_ejection_s=5, trial_s=3, window_requests=1000)
START = 100.0

# Whether a replica of that state is due (of a trial: has lapsed), the event, and what becomes of it.
ORACLE = {
    ("well", True, "ok"): "forget errors",
    ("well", True, "fail"): "count an error",
    ("well", True, "left"): "nothing",
    ("well", True, "chosen"): "nothing",
    ("well", True, "probe ok"): "nothing",
    ("well", True, "probe fail"): "eject for health, first time",
    ("ejected", False, "ok"): "be well",
    ("ejected", False, "fail"): "nothing",
    ("ejected", False, "left"): "nothing",
    ("ejected", False, "chosen"): "nothing",
    ("ejected", False, "probe ok"): "be due if for health",
    ("ejected", False, "probe fail"): "put off for health",
    ("ejected", True, "ok"): "be well",
    ("ejected", True, "fail"): "eject again",
    ("ejected", True, "left"): "nothing",
    ("ejected", True, "chosen"): "try",
    ("ejected", True, "probe ok"): "nothing",
    ("ejected", True, "probe fail"): "put off for health",
    ("trial", False, "ok"): "be well",
    ("trial", False, "fail"): "eject again",
    ("trial", False, "left"): "be due",
    ("trial", False, "chosen"): "nothing",
    ("trial", False, "probe ok"): "nothing",
    ("trial", False, "probe fail"): "put off for health",
    ("trial", True, "ok"): "be well",
    ("trial", True, "fail"): "eject again",
    ("trial", True, "left"): "be due",
    ("trial", True, "chosen"): "try",
    ("trial", True, "probe ok"): "nothing",
    ("trial", True, "probe fail"): "put off for health",
}
EVENTS = ("ok", "fail", "tick", "left", "chosen", "probe ok", "probe fail")
LENGTHS = {1: 2.0, 2: 4.0}
"""Of the first and the second ejection in a row, in seconds; of all that follow `max_ejection_s`."""


@dataclass
class Expected:
    """What the oracle knows."""

    state: str = "well"
    until: float = -inf
    reason: str = ""
    times: int = 0
    errors: int = 0

    def event(self, event: str, now: float) -> None:
        match ORACLE[self.state, self.until <= now, event]:
            case "forget errors":
                self.errors = 0
            case "count an error":
                self.errors += 1
                if self.errors == 2:
                    self.eject(now, "5xx", 1)
            case "be well":
                self.state, self.until, self.reason, self.times, self.errors = "well", -inf, "", 0, 0
            case "eject again":
                self.eject(now, "5xx", self.times + 1)
            case "eject for health, first time":
                self.eject(now, HEALTH, 1)
            case "put off for health":
                until = now + 2 if self.state == "trial" else max(self.until, now + 2)
                self.state, self.until, self.reason = "ejected", until, HEALTH
            case "be due if for health":
                self.until = now if self.reason == HEALTH else self.until
            case "be due":
                self.state, self.until = "ejected", now
            case "try":
                self.state, self.until = "trial", now + 3

    def eject(self, now: float, reason: str, times: int) -> None:
        self.state, self.until, self.reason, self.times = (
            "ejected",
            now + LENGTHS.get(times, 5.0),
            reason,
            times,
        )


def feed(health: Health, event: str, now: float) -> None:
    match event:
        case "ok":
            health.succeeded(now)
        case "fail":
            health.failed(now, "5xx")
        case "left":
            health.abandoned()
        case "chosen":
            health.chosen(now)
        case "probe ok":
            health.probe_succeeded(now)
        case "probe fail":
            health.probe_failed(now)


def assert_agrees(health: Health, expected: Expected, now: float) -> None:
    assert health.well == (expected.state == "well")
    assert (health.closed_until <= now) == (expected.until <= now)
    match health.state:
        case Well():
            assert expected.state == "well"
        case Ejected(_, until, reason, times):
            assert (expected.state, expected.reason, expected.times) == ("ejected", reason, times)
            # Of one that is due it does not matter since when.
            assert until == expected.until or (until <= now and expected.until <= now)
        case Trial(_, lapses, ejection):
            assert (expected.state, expected.until) == ("trial", lapses)
            assert (expected.reason, expected.times) == (ejection.reason, ejection.times)


def live(events: tuple[str, ...], policy: HealthPolicy = SMALL) -> None:
    health, expected, now = Health(policy), Expected(), START
    for event in events:
        if event == "tick":
            now += 1
        else:
            feed(health, event, now)
            expected.event(event, now)
        assert_agrees(health, expected, now)


def test_every_life_of_eight_answers_and_ticks() -> None:
    for events in itertools.product(("ok", "fail", "tick"), repeat=8):
        live(events)


def test_every_life_of_six_events_of_all_kinds() -> None:
    for events in itertools.product(EVENTS, repeat=6):
        live(events)


@given(st.lists(st.sampled_from(EVENTS), max_size=60))
def test_longer_lives(events: list[str]) -> None:
    live(tuple(events))


def test_the_oracle_sees_another_policy() -> None:
    """The negative control: one error more before an ejection, and a life disagrees."""
    with pytest.raises(AssertionError):
        live(("fail", "fail"), HealthPolicy(errors=3, ejection_s=2, max_ejection_s=5, trial_s=3))


def test_ejections_double_up_to_their_bound_and_start_anew_after_a_success() -> None:
    health, now = Health(HealthPolicy()), START
    lengths = []
    for count in range(1, 6):
        assert health.failed(now, "connect") == (count == 5)
    for _ in range(2000):  # more doublings than a float can hold
        lengths.append(health.closed_until - now)
        now = health.closed_until
        health.chosen(now)
        assert health.failed(now, "connect")
    assert lengths[:7] == [10, 20, 40, 80, 160, 300, 300]
    assert set(lengths[7:]) == {300.0}
    now = health.closed_until
    health.chosen(now)
    health.succeeded(now)
    assert health.state == Well()
    for _ in range(5):
        health.failed(now, "connect")
    assert health.closed_until - now == 10


def test_half_of_twenty_within_the_window_ejects() -> None:
    health = Health(HealthPolicy())
    for n in range(9):
        health.succeeded(START + n / 10)
        assert not health.failed(START + n / 10, "5xx")
    health.succeeded(START + 1)
    assert health.failed(START + 1, "5xx")
    assert health.report(START + 3) == {
        "state": "ejected",
        "reason": "5xx",
        "times": 1,
        "for_s": 2.0,
        "left_s": 8.0,
    }
    assert health.report(START + 10.9999)["left_s"] == 0.001, "0 is told only when it is over"
    assert health.report(START + 11)["left_s"] == 0


def test_fewer_than_half_do_not_and_the_past_is_forgotten() -> None:
    health = Health(HealthPolicy())
    for n in range(3000):  # a third fails, for 300 s
        now = START + n / 10
        assert n % 3 != 0 or not health.failed(now, "5xx")
        if n % 3:
            health.succeeded(now)
    health, now = Health(HealthPolicy()), START
    for _ in range(4):  # 16 failures of 20, but never 20 requests in a window
        for n in range(4):
            assert not health.failed(now + n, "5xx")
        health.succeeded(now + 4)
        now += 31
    assert health.well


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 40)), max_size=80))
def test_the_window_never_counts_what_is_older_than_it_says(steps: list[tuple[bool, float]]) -> None:
    """Ejected only if some span within the window holds enough failures; without the rule of the row."""
    policy = HealthPolicy(errors=1000, window_requests=4)
    health, now = Health(policy), START
    past: list[tuple[float, bool]] = []
    for good, wait in steps:
        now += wait
        past.append((now, good))
        if good:
            health.succeeded(now)
        elif health.failed(now, "5xx"):
            spans = [past[i:] for i in range(len(past)) if now - past[i][0] <= policy.window_s]
            assert any(len(s) >= 4 and 2 * sum(not g for _, g in s) >= len(s) for s in spans)
            return


def test_late_answers_to_older_requests_decide_nothing() -> None:
    health = Health(HealthPolicy())
    for _ in range(5):
        health.failed(START, "lost", sent=START - 1)
    ejected = health.state
    health.succeeded(START + 1, sent=START - 1)
    assert health.state == ejected
    health.chosen(START + 10)
    trial = health.state
    assert isinstance(trial, Trial)
    assert not health.failed(START + 11, "lost", sent=START - 1)
    health.succeeded(START + 11, sent=START - 1)
    health.abandoned(sent=START - 1)
    assert health.state == trial
    assert health.report(START + 11) == {"state": "trial", "reason": "lost", "times": 1, "for_s": 1.0}
    health.succeeded(START + 12, sent=START + 10)
    assert health.report(START + 12) == {"state": "healthy"}
