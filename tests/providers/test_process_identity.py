"""T83, T26, T87: only what is ours is signalled or reported; a pid or a name proves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from servestate.planner.live import LiveStatus
from servestate.providers import identity, labels
from servestate.providers.labels import Worn
from servestate.providers.protocol import Failed

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def can_choose_pids():
    try:
        LAST_PID.write_text(LAST_PID.read_text())
    except OSError:
        return False
    return True


needs_pid_choice = pytest.mark.skipif(
    not can_choose_pids(), reason="ns_last_pid is not writable here, so no pid can be forced"
)


@contextmanager
def stranger_at(pid):
    """A process of somebody else that has exactly this pid."""
    for _ in range(200):
        LAST_PID.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
        try:
            if process.pid == pid:
                yield process
                return
        finally:
            process.kill()
            process.wait()
    pytest.skip(f"pid {pid} could not be had: other processes start too often")


async def dead_launch(site, kit):
    """A launch that is over but still on record; its pid is free."""
    provider, spec = site.provider(), kit.tiny("--never-bind")
    launched = await provider.launch(spec, site.marks())
    pid = int(launched.handle.split(".")[0])
    (tree,) = site.trees()
    os.kill(tree.members[0].pid, signal.SIGKILL)
    await kit.until(lambda: not identity.alive(identity.parse(launched.handle)))  # which collects our child
    assert not Path(f"/proc/{pid}").exists()
    return provider, spec, launched.handle, pid


async def stop_with_a_stranger_at_its_pid(site, kit):
    provider, spec, handle, pid = await dead_launch(site, kit)
    with stranger_at(pid) as stranger:
        assert isinstance(await provider.probe(handle, spec), Failed)
        (one,) = await provider.observe(site.lineage)
        assert one.status is LiveStatus.EXITED
        await provider.stop(handle, 0.05)
        assert stranger.poll() is None


@needs_pid_choice
@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_reused_pid_is_never_signalled(site, kit, rounds):
    async def go():
        for _ in range(rounds):
            await stop_with_a_stranger_at_its_pid(site, kit)

    asyncio.run(go())


@needs_pid_choice
def test_without_the_start_time_check_the_stranger_would_be_signalled(site, kit, monkeypatch):
    """The negative control: proves that the test above can fail."""

    async def go():
        provider, _, handle, pid = await dead_launch(site, kit)
        with stranger_at(pid) as stranger:
            monkeypatch.setattr(identity, "matches", lambda one: True)
            await provider.stop(handle, 0.05)
            stranger.wait(timeout=5)
            assert not Path(f"/proc/{pid}").exists()

    asyncio.run(go())


def strangers(site, kit, count):
    """Processes with our address under another lineage, with part of our marks, or with a similar name."""
    marks = site.marks()
    ours = labels.to_env(Worn(marks, "0" * 32, 21000))
    other_lineage = {**ours, labels.LINEAGE: marks.lineage + "x", labels.ROLE: labels.SHIM_ROLE}
    no_nonce = {name: value for name, value in ours.items() if name != labels.NONCE}
    bad_address = {**ours, labels.ADDRESS: "multi-model"}
    named = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import signal; signal.pause()",
        "servestate-run",
        str(site.root),
    ]
    for number in range(count):
        env = (other_lineage, no_nonce, bad_address, {})[number % 4]
        yield subprocess.Popen(["sleep", "60"] if number % 2 else named, env={**os.environ, **env})


def test_strangers_are_neither_reported_nor_touched(site, kit):
    async def go():
        foreign = list(strangers(site, kit, 12))
        try:
            for _ in range(3):
                provider, launched, _ = await kit.ready(site)
                assert len(await provider.observe(site.lineage)) == 1
                await provider.stop(launched.handle, 1)
            assert [process.poll() for process in foreign] == [None] * len(foreign)
        finally:
            for process in foreign:
                process.kill()
                process.wait()

    asyncio.run(go())


def test_another_lineage_in_the_same_folder_is_left_alone(site, kit):
    async def go():
        provider, launched, spec = await kit.ready(site)
        other = type(site)(site.folder)
        try:
            second = await other.provider().launch(spec, other.marks())
            assert second.handle != launched.handle
            await other.provider().stop(second.handle, 1)
            (one,) = await provider.observe(site.lineage)
            assert (one.handle, one.status) == (launched.handle, LiveStatus.RUNNING)
        finally:
            other.kill_everything()

    asyncio.run(go())


def test_after_a_reboot_nothing_on_record_is_alive(site, kit):
    """The record of another boot names a pid and even a start time that somebody else has now."""

    async def go():
        provider, *_ = await dead_launch(site, kit)
        with subprocess.Popen(["sleep", "60"]) as stranger:
            found = identity.identify(stranger.pid)
            old = f"{found.pid}.{found.start}.00000000"
            (path,) = site.root.glob("*/run.json")
            next(site.root.glob("*/exit.*.json")).unlink()  # a reboot leaves no time to write one
            path.write_text(json.dumps({**json.loads(path.read_text()), "handle": old}))
            (one,) = await provider.observe(site.lineage)
            assert (one.handle, one.status) == (old, LiveStatus.EXITED)
            assert "restarted" in one.why
            await provider.stop(old, 0.05)
            assert await provider.observe(site.lineage) == []
            assert stranger.poll() is None
            stranger.kill()

    asyncio.run(go())


def test_a_handle_prints_and_parses():
    me = identity.identify(os.getpid())
    assert identity.parse(str(me)) == me
    assert identity.alive(me)
    for text in ("", "1", "1.2", "1.2.xyz", f"{me} ", f"{me}.1", "-1.2.00000000", "0.1.00000000"):
        assert identity.parse(text) is None
