"""Room for large bodies: who gets it, who waits, and that none of it is lost."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from servestate.runtime.router.quota.budget import Budget
from tests.router import rig
from tests.router.rig import QUICK, ask, read_answer, request, serving
from tests.router.upstreams import Upstream, entity, table

LARGE = json.dumps({"model": "chat-ep", "messages": [{"content": "x" * 200_000}]}).encode()
TIGHT = replace(QUICK, body_bytes=300_000, buffered_bytes=450_000, body_grace_s=0.5)


def no_call() -> None:
    raise AssertionError("there was room at once")


def test_those_that_wait_get_theirs_in_order() -> None:
    budget, got = Budget(10), list[str]()
    assert budget.take(6, no_call)
    assert not budget.take(6, lambda: got.append("first"))
    assert not budget.take(1, lambda: got.append("second")), "nobody overtakes"
    budget.give(6)
    assert got == ["first", "second"]
    assert budget.left == 3


def test_whoever_leaves_makes_way() -> None:
    budget, got = Budget(10), list[str]()
    assert budget.take(6, no_call)

    def never() -> None:
        raise AssertionError("it has left")

    assert not budget.take(6, never)
    assert not budget.take(4, lambda: got.append("next"))
    budget.leave(never)
    assert got == ["next"]
    assert budget.left == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10)), max_size=60))
def test_no_room_is_lost_or_given_twice(steps: list[tuple[bool, int]]) -> None:
    budget, held = Budget(20), list[int]()
    for takes, size in steps:
        if takes:

            def ready(size: int = size) -> None:
                held.append(size)

            if budget.take(size, ready):
                held.append(size)
        elif held:
            budget.give(held.pop(0))
        assert budget.left + sum(held) == 20
        assert budget.left >= 0


async def _send(r: rig.Rig, chunked: bool) -> int:
    reader, writer = await r.connect()
    if chunked:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE))
    else:
        writer.write(request(LARGE))
    got = await read_answer(reader)
    writer.close()
    return got.status


def test_many_large_bodies_all_arrive_a_few_at_a_time() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), TIGHT) as r:
            statuses = await asyncio.gather(*(_send(r, i % 3 == 0) for i in range(24)))
            assert statuses == [200] * 24
            assert sorted({len(got.body) for got in up.received}) == [
                len(LARGE.replace(b"chat-ep", b"engine-model"))
            ]
            await rig.until(lambda: r.router.desk.budget.left == TIGHT.buffered_bytes)

    rig.run(body())


async def _hold_the_room(r: rig.Rig) -> list[asyncio.StreamWriter]:
    """Two clients that have begun large bodies and do not go on: there is no room for a third."""
    held = []
    for _ in range(2):
        _, writer = await r.connect()
        writer.write(request(LARGE)[:70_000])
        held.append(writer)
    await rig.until(lambda: r.router.desk.budget.left < len(LARGE))
    return held


def test_whoever_finds_no_room_in_time_may_come_again() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), TIGHT) as r:
            held = await _hold_the_room(r)
            got = await ask(r, request(LARGE))
            assert (got.status, got.fields["retry-after"]) == (503, "1")
            assert (await ask(r, request())).status == 200, "small ones need no room"
            for writer in held:
                writer.transport.abort()
            await rig.until(lambda: r.router.desk.budget.left == TIGHT.buffered_bytes)
            assert (await ask(r, request(LARGE))).status == 200

    rig.run(body())


def test_a_client_that_waits_to_be_asked_is_asked_when_there_is_room() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), TIGHT) as r:
            held = await _hold_the_room(r)
            reader, writer = await r.connect()
            whole = request(LARGE, fields="Expect: 100-continue\r\n")
            head, _, rest = whole.partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            await asyncio.sleep(0.1)
            assert not reader._buffer, "not yet"
            held[0].transport.abort()
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(rest)
            assert (await read_answer(reader)).status == 200
            held[1].transport.abort()
            writer.close()

    rig.run(body())
