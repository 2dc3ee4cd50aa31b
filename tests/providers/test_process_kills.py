"""kill -9 of the launching command at any point leaves no orphan, and the next launch makes no duplicate."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servestate.planner.live import LiveStatus
from servestate.providers.protocol import Ready

SCRIPT = Path(__file__).with_name("launch_and_die.py")
ENGINE = Path(__file__).with_name("tiny_engine.py")
NAMES = ("clear", "reserve", "spawn", "record", "replace", "word", "answer", "prune")
BEFORE_THE_WORD = ("clear", "reserve", "spawn", "record", "replace", "word")


def started(site, place):
    """The doomed command, about to launch."""
    argv = [sys.executable, str(SCRIPT), str(site.folder), site.lineage, str(ENGINE), place]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    return process


async def assert_one_after_another_launch(site, kit):
    """What the dead command left is either nothing or one instance that the next launch adopts."""
    provider, spec = site.provider(), kit.tiny()
    before = [one for one in await provider.observe(site.lineage) if one.status is LiveStatus.RUNNING]
    assert len(before) <= 1
    launched = await provider.launch(spec, site.marks())
    if before:
        assert launched.handle == before[0].handle
    assert await kit.settled(provider, launched.handle, spec) == Ready()
    await kit.until(lambda: len(site.trees()) == 1)  # a shim that never got the word ends by itself
    (one,) = await provider.observe(site.lineage)
    assert (one.handle, one.status) == (launched.handle, LiveStatus.RUNNING)
    await provider.stop(launched.handle, 1)
    assert site.pids() == set()
    return before


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_a_point_of_the_launch(site, kit, name, when):
    async def go():
        with started(site, f"{name}.{when}") as process:
            assert process.wait(timeout=20) == -9
        if name in BEFORE_THE_WORD:
            await kit.until(lambda: not site.trees())
            assert await site.provider().observe(site.lineage) == []
        await assert_one_after_another_launch(site, kit)

    asyncio.run(go())


def test_killed_after_the_launch_the_instance_is_adopted(site, kit):
    async def go():
        with started(site, "never") as process:
            assert process.wait(timeout=20) == -9
        assert len(await assert_one_after_another_launch(site, kit)) == 1

    asyncio.run(go())


@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_time(site, kit, rng, rounds):
    async def go():
        for _ in range(rounds):
            with started(site, "delay") as process:
                time.sleep(rng.uniform(0, 0.06))
                process.kill()
            await assert_one_after_another_launch(site, kit)

    asyncio.run(go())


def test_two_commands_at_the_same_time_launch_one_instance(site, kit):
    async def go():
        with started(site, "never") as one, started(site, "never") as two:
            assert (one.wait(timeout=20), two.wait(timeout=20)) == (-9, -9)
            assert one.stdout.read() == two.stdout.read() == "launched\n"
        assert len(await assert_one_after_another_launch(site, kit)) == 1

    asyncio.run(go())
