"""T85: whatever an engine starts and however it hides, nothing of it is left after a stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.live import LiveStatus
from servestate.providers import proc


def alive(pid):
    stat = proc.stat(pid)
    return stat is not None and not stat.dead


async def descendants(provider, handle, count, kit):
    """The pids that a `--tree` engine has printed, once all are there."""
    found = []

    async def complete():
        found[:] = map(int, re.findall(r"descendant (\d+)", await provider.logs(handle, 50)))
        return len(found) == count

    async with asyncio.timeout(5):
        while not await complete():
            await asyncio.sleep(0.005)
    return found


@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_a_stop_leaves_no_descendant(site, kit, rounds):
    async def go():
        for _ in range(rounds):
            provider, launched, _ = await kit.ready(site, "--tree", "3", "--ignore-term")
            pids = await descendants(provider, launched.handle, 3, kit)
            assert all(map(alive, pids))
            await provider.stop(launched.handle, 0.05)
            assert not any(map(alive, pids))
            assert site.pids() == set()
            assert proc.listeners(int(launched.url.rpartition(":")[2])) == set()

    asyncio.run(go())


def test_a_crash_takes_the_descendants_along(site, kit):
    async def go():
        provider, launched, _ = await kit.ready(site, "--tree", "3")
        pids = await descendants(provider, launched.handle, 3, kit)
        (tree,) = site.trees()
        os.kill(next(m.pid for m in tree.members if proc.stat(m.pid).ppid == tree.head.pid), signal.SIGKILL)
        await kit.until(lambda: not any(map(alive, pids)))

    asyncio.run(go())


@pytest.mark.parametrize("record", ["kept", "lost"])
def test_leftovers_of_a_killed_supervisor_are_found_and_stopped(site, kit, record):
    async def go():
        provider, launched, _ = await kit.ready(site, "--tree", "2")
        pids = await descendants(provider, launched.handle, 2, kit)
        os.kill(int(launched.handle.split(".")[0]), signal.SIGKILL)
        await kit.until(lambda: site.pids() == set(pids))  # the engine died with it
        if record == "lost":
            next(site.root.glob("*/run.json")).unlink()
        (one,) = await provider.observe(site.lineage)
        assert one.status is LiveStatus.EXITED
        await provider.stop(one.handle, 0.05)
        assert not any(map(alive, pids))
        assert await provider.observe(site.lineage) == []

    asyncio.run(go())


def test_a_launch_clears_leftovers_first(site, kit):
    async def go():
        provider, launched, _ = await kit.ready(site, "--tree", "2")
        pids = await descendants(provider, launched.handle, 2, kit)
        os.kill(int(launched.handle.split(".")[0]), signal.SIGKILL)
        await kit.until(lambda: site.pids() == set(pids))
        await provider.launch(kit.tiny(), site.marks())
        assert not any(map(alive, pids))
        assert len(site.trees()) == 1

    asyncio.run(go())


def test_an_engine_that_ends_when_asked_is_not_killed(site, kit):
    async def go():
        provider = site.provider()
        script = 'trap "echo asked; exit 0" TERM; echo up {port}; while :; do sleep 0.01; done'
        spec = replace(kit.tiny(), args=("/bin/sh", "-c", script))
        launched = await provider.launch(spec, site.marks())
        async with asyncio.timeout(5):
            while "up" not in await provider.logs(launched.handle, 5):
                await asyncio.sleep(0.005)
        start = time.monotonic()
        await provider.stop(launched.handle, 30)
        assert time.monotonic() - start < 2
        assert (await provider.logs(launched.handle, 5)).endswith("asked")

    asyncio.run(go())


def test_stopping_does_not_hold_up_the_event_loop(site, kit):
    async def go():
        provider, launched, _ = await kit.ready(site, "--ignore-term")
        stopping = asyncio.create_task(provider.stop(launched.handle, 0.3))
        longest = 0.0
        while not stopping.done():
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)
        assert longest < 0.1

    asyncio.run(go())


def test_no_zombie_is_left_to_the_caller(site, kit):
    async def go():
        provider, launched, spec = await kit.ready(site)
        pid = int(launched.handle.split(".")[0])
        assert proc.stat(pid).ppid == os.getpid()
        await provider.stop(launched.handle, 5)
        assert not Path(f"/proc/{pid}").exists()
        second = await provider.launch(kit.tiny("--die-at", "start"), site.marks())
        await kit.settled(provider, second.handle, spec)
        pid = int(second.handle.split(".")[0])
        await kit.until(lambda: not alive(pid))
        await provider.observe(site.lineage)
        assert not Path(f"/proc/{pid}").exists()

    asyncio.run(go())


def test_the_supervisor_is_small_and_leaves_the_terminal(site, kit):
    async def go():
        _, launched, _ = await kit.ready(site)
        pid = int(launched.handle.split(".")[0])
        assert os.getsid(pid) == pid
        (tree,) = site.trees()
        (engine,) = tree.members
        assert os.getpgid(engine.pid) == engine.pid
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) < 25_000
        assert {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")} <= {0, 1, 2, 4}

    asyncio.run(go())
