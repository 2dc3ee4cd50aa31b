"""A POST is executed at most once, whatever the upstream's sockets do at the moment of reuse."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from servestate.runtime.router import Limits, proxy
from servestate.runtime.router.http import upstream
from tests.router import rig
from tests.router.rig import QUICK, Rig, bounded, past_the_loop, read_answer, request, serving
from tests.router.upstreams import Received, Upstream, answer, entity, table


class Flaky:
    """Executes, then answers or not; or ends the socket before, behind or instead of its answer. `ran`
    counts executions by id."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ran: Counter[str] = Counter()
        self.waiting: list[asyncio.StreamWriter] = []

    async def __call__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        # A socket left by an earlier answer is closed at the instant that another request runs.
        if self.waiting and self.random.random() < 0.5:
            self._end(self.waiting.pop())
        fate = self.random.random()
        if fate < 0.1:  # unread as far as the caller can know
            self._end(writer)
            return
        self.ran[json.loads(received.body)["messages"][0]["content"]] += 1
        if fate < 0.15:  # executed, and no answer
            self._end(writer)
            return
        writer.write(answer())
        if fate < 0.3:
            self._end(writer)
        elif fate < 0.6:
            self.waiting.append(writer)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if self.random.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()


async def posts(r: Rig, first: int, count: int, results: dict[str, int]) -> None:
    reader, writer = await r.connect()
    for number in range(first, first + count):
        body = b'{"model":"chat-ep","messages":[{"role":"user","content":"id-%d"}]}' % number
        writer.write(request(body))
        got = await read_answer(reader)
        results[f"id-{number}"] = got.status if got.whole else 0
        if got.status == 504:
            assert got.fields["servestate-retry"] == "unsafe"
            assert got.fields["x-should-retry"] == "false"
        if got.closed:
            writer.close()
            reader, writer = await r.connect()
    writer.close()


async def violations(total: int, seed: int) -> list[str]:
    """Send `total` POSTs over 10 connections; what broke the promise."""
    flaky, results, clients = Flaky(seed), dict[str, int](), 10
    async with Upstream(flaky) as up, serving(table(entity("a", 50, up.url), entity("b", 50, up.url))) as r:
        each = total // clients
        await asyncio.gather(*(posts(r, i * each, each, results) for i in range(clients)))
        assert r.inflight() == 0
        assert up.garbage == []
    found = [f"{name} ran {times} times" for name, times in flaky.ran.items() if times > 1]
    answered = [name for name, status in results.items() if status == 200]
    found += [f"{name}: 200 without having run" for name in answered if flaky.ran[name] == 0]
    found += [f"{name}: status {s}" for name, s in results.items() if s not in (200, 503, 504)]
    assert Counter(results.values())[504] > 0
    assert len(results) == total
    return found


def check(total: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)

    async def body() -> None:
        assert await violations(total, seed) == []

    rig.run(body())


def test_ten_thousand_posts() -> None:
    check(10_000)


def test_the_check_notices_a_router_that_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """With POSTs sent again when their connection is lost, an id must run twice."""
    real_send, real_lost = upstream.UpstreamConnection.send, proxy.Exchange.lost
    sent: dict[proxy.Exchange, bytes] = {}

    def send(self: upstream.UpstreamConnection, exchange: proxy.Exchange, data: bytes) -> None:
        sent[exchange] = data
        real_send(self, exchange, data)

    def lost(self: proxy.Exchange, why: str, *, bad: bool) -> None:
        async def again() -> None:
            assert self._backend is not None
            connection = upstream.UpstreamConnection(self._backend.origin, self._loop)
            port = self._backend.origin._port
            await self._loop.create_connection(lambda: connection, "127.0.0.1", port)
            self._upstream = connection
            real_send(connection, self, data)

        data = sent.pop(self, b"")
        if data:
            task = self._loop.create_task(again())
            tasks.append(task)
        else:
            real_lost(self, why, bad=bad)

    tasks: list[asyncio.Task[None]] = []
    monkeypatch.setattr(upstream.UpstreamConnection, "send", send)
    monkeypatch.setattr(proxy.Exchange, "lost", lost)

    async def body() -> None:
        assert any("ran 2 times" in found for found in await violations(300, 1))

    rig.run(body())


Dying = Callable[[socket.socket, socket.socket], None]
"""Writes a request to the first socket, and has the second end."""


async def meet_dead_sockets(rounds: int, dying: Dying, limits: Limits) -> list[tuple[int, bytes]]:
    """The answers to requests, each of which the loop finds together with the idle upstream's end."""
    found = []
    async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
        reader, writer = await r.connect()
        writer.write(request())
        assert (await read_answer(reader)).status == 200
        for _ in range(rounds):
            (idle,) = up.writers
            with past_the_loop(writer) as asks, past_the_loop(idle) as dies:
                dying(asks, dies)
            got = await bounded(read_answer(reader))
            found.append((got.status, got.body))
            await rig.until(lambda: len(up.writers) == 1)
        writer.close()
    return found


def ends_before(asks: socket.socket, dies: socket.socket) -> None:
    dies.shutdown(socket.SHUT_WR)
    asks.sendall(request())


def ends_behind(asks: socket.socket, dies: socket.socket) -> None:
    asks.sendall(request())
    dies.shutdown(socket.SHUT_WR)


def poisons(asks: socket.socket, dies: socket.socket) -> None:
    asks.sendall(request())
    dies.sendall(answer(b"POISON"))
    dies.shutdown(socket.SHUT_WR)


GOOD = b'{"ok":true}'
DISTRUSTS = replace(QUICK, upstream_trust_s=0.0)


@pytest.mark.parametrize(
    ("dying", "limits"), [(ends_before, QUICK), (ends_behind, DISTRUSTS), (poisons, DISTRUSTS)]
)
def test_a_socket_that_died_unseen_is_not_written_to(dying: Dying, limits: Limits) -> None:
    """One that is closing never; idle for longer than it is trusted, it is asked first. The request goes by
    a fresh one."""

    async def body() -> None:
        assert await meet_dead_sockets(20, dying, limits) == [(200, GOOD)] * 20

    rig.run(body())


@pytest.mark.parametrize(("dying", "outcome"), [(ends_behind, (504, False)), (poisons, (200, True))])
def test_the_check_notices_a_router_that_does_not_ask(
    dying: Dying, outcome: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "_readable", lambda transport: False)

    async def body() -> None:
        ((status, content),) = await meet_dead_sockets(1, dying, DISTRUSTS)
        assert (status, content == b"POISON") == outcome

    rig.run(body())
