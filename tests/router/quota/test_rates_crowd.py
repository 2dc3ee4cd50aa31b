"""Limits under a crowd at virtual time: exact for each of sixteen callers and for all, over workers that come
and go, and whoever waits as long as it is told is let in."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from servestate.planner.access import Caller
from servestate.planner.table import Limit
from servestate.runtime.router.quota.memory import Memory
from servestate.runtime.router.quota.rates import Admission, Denied, Rates
from tests.router.quota.spans import most_in_a_span

CALLERS = [Caller(f"caller-{number}") for number in range(16)]
EACH, MINUTES = 150, 5
BEGAN_S = 1000.0


@dataclass
class Crew:
    """The workers of one router, which count in what `memory` holds."""

    memory: Memory
    limits: list[Limit]
    workers: list[Rates] = field(default_factory=list)

    def start(self, count: int) -> None:
        self.workers = [self._worker(number) for number in range(count)]

    def restart(self, number: int) -> None:
        """A worker is killed; another one takes its number."""
        self.memory.forget_worker(number)
        self.workers[number] = self._worker(number)

    def _worker(self, number: int) -> Rates:
        assert self.memory.fd is not None
        return Rates("ep", self.limits, 0, False, Memory.attach(self.memory.fd, number), None)


@contextmanager
def crew(workers: int, *limits: Limit) -> Iterator[Crew]:
    memory = Memory.create(workers)
    try:
        made = Crew(memory, list(limits))
        made.start(workers)
        yield made
    finally:
        memory.close()


def stormed(found: Crew, chance: random.Random, restarts: bool = False) -> dict[str, list[float]]:
    """Three times as many calls as callers are allowed, each at any worker: when whose were admitted."""
    times: dict[str, list[float]] = defaultdict(list)
    now, pace = BEGAN_S, 60.0 / (3 * EACH * len(CALLERS))
    while now < BEGAN_S + 60.0 * MINUTES:
        now += chance.expovariate(1 / pace)
        if restarts and chance.random() < 0.002:
            found.restart(chance.randrange(len(found.workers)))
        caller = chance.choice(CALLERS)
        got = chance.choice(found.workers).admit(caller, 12, now)
        if isinstance(got, Admission):
            times[caller.name].append(now)
            got.ended(9, now)
    return times


def all_of(times: dict[str, list[float]]) -> list[float]:
    return sorted(at for own in times.values() for at in own)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
def test_each_caller_gets_what_is_its_own_and_no_more(workers: int, restarts: bool) -> None:
    limits = Limit("endpoint", "", EACH * len(CALLERS)), Limit("user", "", EACH, EACH * 10)
    with crew(workers, *limits) as found:
        times = stormed(found, random.Random(workers), restarts)
    assert set(times) == {caller.name for caller in CALLERS}
    for own in times.values():
        assert most_in_a_span(own) <= EACH
        assert len(own) >= 0.99 * EACH * MINUTES
    assert most_in_a_span(all_of(times)) <= EACH * len(CALLERS)


@pytest.mark.parametrize("workers", [1, 4])
def test_what_all_share_is_exact_and_nobody_is_left_out(workers: int) -> None:
    shared = 600
    with crew(workers, Limit("endpoint", "", shared)) as found:
        times = stormed(found, random.Random(workers))
    assert most_in_a_span(all_of(times)) <= shared
    assert len(all_of(times)) >= 0.99 * shared * MINUTES
    for caller in CALLERS:
        assert len(times[caller.name]) >= 0.5 * shared * MINUTES / len(CALLERS)


@pytest.mark.parametrize("workers", [1, 4])
def test_whoever_waits_as_long_as_it_is_told_is_let_in(workers: int) -> None:
    chance, waited = random.Random(workers), 0
    with crew(workers, Limit("user", "", 20)) as found:
        due = {caller: BEGAN_S + chance.random() for caller in CALLERS}
        told: set[Caller] = set()
        while (now := min(due.values())) < BEGAN_S + 60.0 * MINUTES:
            caller = min(due, key=due.__getitem__)
            got = chance.choice(found.workers).admit(caller, 0, now)
            if isinstance(got, Denied):
                assert caller not in told, "it had waited"
                assert 1 <= got.wait_s <= 60
                told.add(caller)
                due[caller], waited = now + got.wait_s, waited + 1
            else:
                told.discard(caller)
                due[caller] = now + chance.expovariate(1.0)
    assert waited >= len(CALLERS) * (MINUTES - 1)


def test_the_check_notices_workers_that_count_for_themselves() -> None:
    apart = [Rates("ep", [Limit("user", "", EACH)], 0, False, Memory.private(), None) for _ in range(4)]
    with crew(4) as found:
        found.workers = apart
        times = stormed(found, random.Random(4))
    assert {name for name, own in times.items() if most_in_a_span(own) > EACH} == {c.name for c in CALLERS}
