"""Calls that hang leave one thread behind, however often they are tried again."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from servestate.providers.docker.threads import Calls


def test_while_a_call_hangs_there_are_no_new_ones():
    free, begun = threading.Event(), []

    def hang():
        begun.append(1)
        free.wait(30)

    async def go():
        calls = Calls()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await calls.call(hang, 0.05)
        assert len(begun) == 1
        assert await Calls().call(lambda: "of another host", 5) == "of another host"
        free.set()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert await calls.call(lambda: "answers", 5) == "answers"
            except TimeoutError:
                await asyncio.sleep(0.01)
            else:
                return
        raise AssertionError("a call that has ended is still waited for")

    asyncio.run(go())


def test_calls_within_their_limits_do_not_wait_for_each_other():
    async def go():
        calls, meeting = Calls(), threading.Barrier(4)
        met = await asyncio.gather(*(calls.call(lambda: meeting.wait(10), 20) for _ in range(4)))
        assert sorted(met) == [0, 1, 2, 3]

    asyncio.run(go())
