"""A client that leaves takes its request along: the upstream is cancelled, every gauge goes back to 0."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from servestate.runtime.router.proxy import Exchange
from tests.router import rig
from tests.router.rig import CHAT, Rig, request, serving
from tests.router.upstreams import Received, Upstream, chunk, deaf, entity, sse_head, table

STAGES = ("head", "body", "first token", "mid-stream", "json")


async def stream_for_ever(received: Received, writer: asyncio.StreamWriter) -> None:
    if b"wait-" in received.body:
        await asyncio.sleep(3600)
    writer.write(sse_head())
    while True:
        writer.write(chunk(b'data: {"a":1}\n\n'))
        await writer.drain()
        await asyncio.sleep(0.001)


async def leave(r: Rig, up: Upstream, stage: str, number: int) -> None:
    """Come as far as `stage`, then go: every other client abruptly."""
    reader, writer = await r.connect()
    data = request()
    if stage == "head":
        writer.write(data[:30])
    elif stage == "body":
        writer.write(data[:-5])
    elif stage == "mid-stream":
        writer.write(data)
        await reader.readuntil(b'data: {"a":1}')
    else:
        mark = b"wait-%d" % number if stage == "first token" else b"wait-json-%d" % number
        writer.write(request(CHAT.replace(b"hi", mark)))
        await rig.until(lambda: any(mark + b'"' in received.body for received in up.received))
    if number % 2:
        writer.transport.abort()
    else:
        writer.close()


async def sweep(times: int) -> None:
    async with Upstream(stream_for_ever) as up, serving(table(entity("current", 100, up.url))) as r:
        for stage in STAGES:
            for first in range(0, times, 25):
                count = min(25, times - first)
                seen = len(up.received)
                await asyncio.gather(*(leave(r, up, stage, first + i) for i in range(count)))
                await rig.until(lambda: r.inflight() == 0 and not r.router.desk.clients, within=1)
                await rig.until(lambda: up.open == 0, within=1)
                expected = 0 if stage in ("head", "body") else count
                assert len(up.received) - seen == expected, stage
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        await rig.until(lambda: not [t for t in tasks if not t.done()], within=1)


def test_five_hundred_at_each_stage() -> None:
    rig.run(sweep(500))


def test_the_check_notices_a_router_that_does_not_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exchange, "abandon", lambda self: None)

    async def body() -> None:
        async with Upstream(stream_for_ever) as up, serving(table(entity("current", 100, up.url))) as r:
            await leave(r, up, "json", 1)
            with pytest.raises(AssertionError, match="did not happen"):
                await rig.until(lambda: up.open == 0, within=0.2)

    rig.run(body(), spoilt=True)


def test_leaving_while_the_connection_is_being_made() -> None:
    """Nobody accepts: the upstream's queue is full, so connecting takes for ever."""

    async def body() -> None:
        with deaf() as url:
            async with serving(table(entity("current", 100, url))) as r:
                for _ in range(5):
                    _, writer = await r.connect()
                    writer.write(request())
                    await rig.until(lambda: r.inflight() == 2)
                    writer.close()
                    await rig.until(lambda: r.inflight() == 0, within=1)

    rig.run(body())


def test_a_client_that_does_not_read_stops_the_upstream_and_then_goes() -> None:
    """Back-pressure: the router holds a bounded part of an endless answer, and not for ever."""

    async def body() -> None:
        sent = 0

        async def flood(received: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(sse_head())
            piece = chunk(b"data: " + b"x" * 60_000 + b"\n\n")
            while True:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)

        limits = replace(rig.QUICK, stall_s=0.3)
        async with Upstream(flood) as up, serving(table(entity("current", 100, up.url)), limits) as r:
            _, writer = await r.connect()
            writer.transport.pause_reading()
            writer.write(request())
            await rig.until(lambda: up.open == 1)
            await rig.until(lambda: up.open == 0, within=3)
            # What the kernel's buffers of two sockets hold, and a little more.
            assert sent < 40_000_000
            assert r.inflight() == 0
            writer.transport.abort()

    rig.run(body())
