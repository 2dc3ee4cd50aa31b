"""Waiting for readiness, on the fake world and a clock that only sleep moves."""

from __future__ import annotations

import asyncio
import time

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import LaunchSpec
from servestate.providers.fake import Behaviour, FakeProvider, FakeWorld, Fault
from servestate.providers.protocol import Marks, PermanentError, TransientError
from servestate.providers.readiness import await_ready

ADDRESS = InstanceAddress("e", "a", "ab")
SPEC = LaunchSpec("fake", "command", "m")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 3))
        self.now += seconds


def wait(world, timeout_s=10.0):
    """What was reported, and the clock afterwards."""
    clock, said = Clock(), []

    async def go():
        provider = FakeProvider(world)
        launched = await provider.launch(SPEC, Marks("l", ADDRESS, 1, "op"))
        await await_ready(provider, launched.handle, SPEC, timeout_s, said.append, clock.sleep, clock)

    try:
        asyncio.run(go())
    finally:
        world.said, world.clock = said, clock


def test_ready_at_once_waits_for_nothing():
    world = FakeWorld()
    wait(world, timeout_s=0)
    assert world.clock.pauses == []
    assert world.said == []


def test_pauses_double_up_to_the_longest():
    world = FakeWorld()
    world.behave(ADDRESS, Behaviour(ready_after=8))
    wait(world)
    assert world.clock.pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]
    assert world.said == [f"probe {n}" for n in range(1, 9)]


def test_the_deadline_is_kept_to_the_moment():
    world = FakeWorld()
    world.behave(ADDRESS, Behaviour(ready_after=None))
    with pytest.raises(PermanentError, match=r"SS508 not ready after 3 s: probe") as caught:
        wait(world, timeout_s=3)
    assert world.clock.now == pytest.approx(103)
    assert caught.value.what.endswith("| fake log of e/a@ab#0")


def test_a_failure_ends_the_wait_at_once():
    world = FakeWorld()
    world.behave(ADDRESS, Behaviour(ready_after=None, dies_after=2))
    with pytest.raises(PermanentError, match="SS506 exit code 1"):
        wait(world)
    assert len(world.clock.pauses) == 2


def test_a_transient_error_is_tried_again():
    world = FakeWorld()
    for nth in (1, 2):
        world.fail("probe", ADDRESS, nth, Fault(TransientError("try later")))
    wait(world)
    assert world.said == ["try later"]
    assert world.calls["probe", str(ADDRESS)] == 3


def test_a_transient_error_until_the_deadline_is_named():
    world = FakeWorld()
    for nth in range(1, 100):
        world.fail("probe", ADDRESS, nth, Fault(TransientError("try later")))
    with pytest.raises(PermanentError, match="SS508 not ready after 1 s: try later"):
        wait(world, timeout_s=1)


def test_a_permanent_error_of_a_probe_is_passed_on():
    world = FakeWorld()
    world.fail("probe", ADDRESS, 1, Fault(PermanentError("SS599", "no")))
    with pytest.raises(PermanentError, match="SS599 no"):
        wait(world)


def test_waiting_uses_real_time_by_default():
    async def go():
        world = FakeWorld()
        world.behave(ADDRESS, Behaviour(ready_after=2))
        provider = FakeProvider(world)
        launched = await provider.launch(SPEC, Marks("l", ADDRESS, 1, "op"))
        start = time.monotonic()
        await await_ready(provider, launched.handle, SPEC, 5, lambda text: None)
        assert 0.05 < time.monotonic() - start < 1

    asyncio.run(go())
