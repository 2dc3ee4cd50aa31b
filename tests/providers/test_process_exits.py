"""T80: an engine that ends is noticed at once, with how it ended, why, and its last log lines."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from servestate.planner.live import LiveStatus
from servestate.providers.protocol import Failed, PermanentError, Ready
from servestate.providers.readiness import await_ready

HOWS = {"0": "exit code 0", "1": "exit code 1", "137": "exit code 137", "segfault": "signal 11 (SIGSEGV)"}
NOTICED_WITHIN_S = 1.0


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("when", ["start", "load"])
def test_an_engine_that_dies_before_it_is_ready_is_noticed(site, kit, how, when):
    async def go():
        provider, spec = site.provider(), kit.tiny("--die-at", when, "--how", how)
        launched = await provider.launch(spec, site.marks())
        start = time.monotonic()
        with pytest.raises(PermanentError, match="SS506") as caught:
            await await_ready(provider, launched.handle, spec, 60, lambda text: None)
        assert time.monotonic() - start < NOTICED_WITHIN_S + 0.1  # it dies 0.1 s after "load" began
        assert HOWS[how] in caught.value.what
        assert f"| dying: {how}" in caught.value.what

    asyncio.run(go())


@pytest.mark.parametrize("how", HOWS)
def test_an_engine_that_dies_after_it_was_ready_is_noticed(site, kit, how):
    async def go():
        provider, launched, spec = await kit.ready(site, "--how", how)
        start = time.monotonic()
        await ask(launched.url + "/die")
        while not isinstance(seen := await provider.probe(launched.handle, spec), Failed):
            assert time.monotonic() - start < NOTICED_WITHIN_S
        assert HOWS[how] in seen.why
        (one,) = await provider.observe(site.lineage)
        assert one.status is LiveStatus.EXITED
        assert HOWS[how] in one.why

    asyncio.run(go())


def test_the_supervisor_killed_alone_takes_its_engine_along(site, kit):
    async def go():
        provider, launched, spec = await kit.ready(site)
        os.kill(int(launched.handle.split(".")[0]), signal.SIGKILL)
        await kit.until(lambda: not site.pids())
        seen = await provider.probe(launched.handle, spec)
        assert isinstance(seen, Failed)
        assert "killed from outside" in seen.why
        (one,) = await provider.observe(site.lineage)
        assert one.status is LiveStatus.EXITED

    asyncio.run(go())


def test_answers_other_than_200_are_not_ready_yet(site, kit):
    async def go():
        provider, spec, said = site.provider(), kit.tiny("--answers-503", "2"), []
        launched = await provider.launch(spec, site.marks())
        await await_ready(provider, launched.handle, spec, 10, said.append)
        assert "answers 503" in said
        assert await provider.probe(launched.handle, spec) == Ready()

    asyncio.run(go())


def test_the_deadline_names_what_it_waited_for_and_shows_the_log(site, kit):
    async def go():
        provider, spec = site.provider(), kit.tiny("--never-bind", "--say", "loading weights")
        launched = await provider.launch(spec, site.marks())
        with pytest.raises(PermanentError, match=r"SS508 not ready after 0\.2 s: loading weights") as caught:
            await await_ready(provider, launched.handle, spec, 0.2, lambda text: None)
        assert "| loading weights" in caught.value.what

    asyncio.run(go())


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("no-such-program-anywhere", "{port}"), "cannot execute no-such-program-anywhere: No such file"),
        (("/", "{port}"), "cannot execute /: Permission denied"),
        (("true", "{port}", "x\0y"), "cannot execute true: Invalid argument"),
    ],
)
def test_a_program_that_cannot_be_executed_fails_the_launch(site, kit, argv, text):
    from dataclasses import replace

    async def go():
        provider = site.provider()
        with pytest.raises(PermanentError, match="SS505") as caught:
            await provider.launch(replace(kit.tiny(), args=argv), site.marks())
        assert text in caught.value.what
        assert await provider.observe(site.lineage) == []
        assert site.pids() == set()

    asyncio.run(go())


async def ask(url):
    import httpx

    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(url)
