"""T27, T82, T86: ends, changes by hand, and how soon they are noticed."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import suppress

import pytest

from servestate.planner.live import LiveStatus
from servestate.providers.protocol import Failed, Ready, Starting, TransientError
from tests.docker.engine import OwnEngine

pytestmark = pytest.mark.slow


async def ready(place, spec, settle):
    provider = place.provider()
    launched = await provider.launch(spec, place.marks())
    assert await settle(provider, launched.handle, spec) == Ready()
    return provider, launched


async def changed(provider, place, act):
    """The seconds from an act to hearing of it."""
    await provider.await_change(place.lineage)  # the first one returns at once
    hearing = asyncio.ensure_future(provider.await_change(place.lineage))
    await asyncio.sleep(0.2)
    assert not hearing.done()
    await asyncio.to_thread(act)
    began = time.monotonic()
    await asyncio.wait_for(hearing, 5)
    return time.monotonic() - began


@pytest.mark.parametrize(
    "act",
    [
        lambda one: one.kill(),
        lambda one: one.stop(timeout=0),
        lambda one: one.restart(timeout=0),
        lambda one: one.pause(),
        lambda one: one.rename(f"{one.name}-renamed"),
        lambda one: one.update(mem_limit="64m", memswap_limit="64m"),
        lambda one: one.remove(force=True),
    ],
    ids=["kill", "stop", "restart", "pause", "rename", "update", "remove"],
)
def test_every_change_by_hand_is_heard_within_a_second(place, tiny, settle, act):
    async def go():
        provider, _ = await ready(place, place.spec(tiny), settle)
        assert await changed(provider, place, lambda: act(place.only())) < 1

    asyncio.run(go())


def test_what_happens_between_two_calls_is_heard_by_the_second(place, tiny, settle):
    async def go():
        provider, _ = await ready(place, place.spec(tiny), settle)
        await provider.await_change(place.lineage)
        place.only().kill()
        await asyncio.wait_for(provider.await_change(place.lineage), 1)

    asyncio.run(go())


def test_a_watch_ends_when_it_is_cancelled(place, tiny, settle):
    async def go():
        provider, _ = await ready(place, place.spec(tiny), settle)
        for _ in range(3):
            with suppress(TimeoutError):
                await asyncio.wait_for(provider.await_change(place.lineage), 0.3)

    began = time.monotonic()
    asyncio.run(go())
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("act", "field"),
    [
        (lambda one: one.rename(f"{one.name}-renamed"), "name"),
        (lambda one: one.update(mem_limit="64m", memswap_limit="64m"), "memory"),
        (lambda one: one.update(cpu_quota=50000), "cpus"),
        (lambda one: one.update(restart_policy={"Name": "always"}), "restart"),
        (lambda one: one.client.networks.get("bridge").disconnect(one), "networks"),
    ],
    ids=["rename", "memory", "cpus", "restart", "network"],
)
def test_changes_by_hand_show_in_the_fields(place, tiny, settle, act, field):
    async def go():
        provider, launched = await ready(place, place.spec(tiny), settle)
        act(place.only())
        (one,) = await provider.observe(place.lineage)
        before, after = dict(launched.fields), dict(one.fields)
        assert field in {name for name in before if before[name] != after[name]}
        assert one.handle == launched.handle
        await provider.stop(launched.handle, 1)
        assert place.all() == []

    asyncio.run(go())


def test_one_that_was_restarted_is_another_and_is_not_stopped_for_the_first(place, tiny, settle):
    async def go():
        spec = place.spec(tiny)
        provider, launched = await ready(place, spec, settle)
        place.only().restart(timeout=0)
        (one,) = await provider.observe(place.lineage)
        assert one.handle != launched.handle
        assert one.handle.rpartition("/")[0] == launched.handle.rpartition("/")[0]
        failed = await provider.probe(launched.handle, spec)
        assert isinstance(failed, Failed)
        assert "started again" in failed.why
        await provider.stop(launched.handle, 0)
        assert place.only().status == "running"
        await provider.stop(one.handle, 0)
        assert place.all() == []

    asyncio.run(go())


def test_a_paused_one_ends_by_its_own_will(place, double, settle):
    """It can only hear SIGTERM once it runs again."""

    async def go():
        provider, launched = await ready(place, place.spec(double), settle)
        place.only().pause()
        assert isinstance(await provider.probe(launched.handle, place.spec(double)), Starting)
        began = time.monotonic()
        await provider.stop(launched.handle, 20)
        assert time.monotonic() - began < 5
        assert place.all() == []

    asyncio.run(go())


def test_the_grace_is_given_and_then_it_is_killed(place, double, settle):
    async def go():
        provider, launched = await ready(place, place.spec(double, "--ignore-sigterm"), settle)
        began = time.monotonic()
        await provider.stop(launched.handle, 1.5)
        assert 1.5 <= time.monotonic() - began < 8
        assert place.all() == []

    asyncio.run(go())


@pytest.mark.parametrize(("flags", "code"), [(("--exit-after", "0", "--exit-code", "3"), "exit code 3")])
def test_an_end_before_it_is_ready_is_told_with_its_last_lines(place, double, settle, flags, code):
    async def go():
        provider, lines = place.provider(), [f"line {n}" for n in range(30)]
        spec = place.spec(double, *flags, "--log", *lines)
        launched = await provider.launch(spec, place.marks())
        failed = await settle(provider, launched.handle, spec)
        assert isinstance(failed, Failed)
        assert code in failed.why
        assert failed.why.splitlines()[1:] == [f"| line {n}" for n in range(10, 30)]
        (one,) = await provider.observe(place.lineage)
        assert one.status is LiveStatus.EXITED
        assert one.why.splitlines()[1:] == ["| line 27", "| line 28", "| line 29"]

    asyncio.run(go())


def test_out_of_memory_is_said(place, double, settle):
    """T82."""

    async def go():
        spec = place.spec(double, "--oom", memory=64 << 20)
        provider = place.provider()
        launched = await provider.launch(spec, place.marks())
        failed = await settle(provider, launched.handle, spec)
        assert isinstance(failed, Failed)
        assert failed.code == "SS511"
        assert "memory" in failed.why

    asyncio.run(go())


@pytest.mark.parametrize(
    ("program", "said", "code"),
    [
        ("for i in $(seq 64); do sleep 5 & done; wait", "fork", "SS506"),
        ("dd if=/dev/zero of=/run/x bs=1M count=64", "No space left on device", "SS515"),
        ("echo x > /x", "Read-only file system", "SS506"),
    ],
    ids=["pids", "space", "read-only"],
)
def test_every_limit_is_felt_and_said(place, tiny, settle, program, said, code):
    """T82."""

    async def go():
        provider = place.provider()
        spec = place.spec(tiny, "sh", "-c", f"{program}; exit 7", pids=16)
        launched = await provider.launch(spec, place.marks())
        failed = await settle(provider, launched.handle, spec)
        assert isinstance(failed, Failed)
        assert said in failed.why
        assert failed.code == code

    asyncio.run(go())


# The SDK leaves a socket that could not be connected to the garbage collector, which says so.
LEFT_TO_THE_COLLECTOR = pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")


@LEFT_TO_THE_COLLECTOR
def test_a_killed_daemon_is_not_a_lost_engine(place, socket_folder, tmp_path, tiny, settle):
    """T86: with live-restore the engine runs on, and is the same one when the daemon is back."""
    with OwnEngine(socket_folder / "engine", live_restore=True) as own:
        archive = tmp_path / "tiny.tar"
        archive.write_bytes(b"".join(place.client.images.get(tiny).save(named=True)))
        client = own.client()
        try:
            client.images.load(archive.read_bytes())
        finally:
            client.close()
        place.url = own.host

        async def go():
            spec = place.spec(tiny)
            provider, launched = await ready(place, spec, settle)
            own.kill()
            assert await _silent(provider, place.lineage)
            own.start()
            (one,) = await provider.observe(place.lineage)
            assert (one.handle, one.status) == (launched.handle, LiveStatus.RUNNING)
            assert await settle(provider, launched.handle, spec) == Ready()
            await provider.stop(launched.handle, 1)
            assert await provider.observe(place.lineage) == []

        asyncio.run(go())
        gc.collect()


async def _silent(provider, lineage):
    with pytest.raises(TransientError, match=r"docker\.sock.*does not answer"):
        await provider.observe(lineage)
    with pytest.raises(TransientError):
        await provider.await_change(lineage)
    return True
