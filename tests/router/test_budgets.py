"""Budgets at their edges: one less, exactly, one more; and what is left of the router when files run out."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from servestate.runtime.router import Limits
from tests.router import rig
from tests.router.apart import Apart, apart
from tests.router.corpus import HOST, LENGTH, LINE
from tests.router.rig import CHAT, QUICK, bounded, read_answer, request, serving
from tests.router.upstreams import Upstream, entity, table

BODY_BYTES = 200_000
LIMITS = replace(QUICK, body_bytes=BODY_BYTES)


@dataclass(frozen=True)
class Edge:
    """A request that is `off` from a budget, and its status on either side of it."""

    name: str
    off: int
    data: bytes
    refused: int
    accepted: int = 200

    @property
    def status(self) -> int:
        return self.refused if self.off > 0 else self.accepted


def edges() -> Iterator[Edge]:
    for off in (-1, 0, 1):
        yield Edge("head", off, head_of(LIMITS.head_bytes + off), 431)
        yield Edge("head in one field", off, head_of(LIMITS.head_bytes + off, in_one=True), 431)
        yield Edge("fields", off, fields_of(LIMITS.head_fields + off), 431)
        yield Edge("path", off, target_of(b"/", LIMITS.target_bytes + off), 414, 404)
        yield Edge("query", off, target_of(b"/v1/chat/completions?", LIMITS.target_bytes + off), 414)
        yield Edge("body", off, request(content_of(BODY_BYTES + off)), 400)
        yield Edge("body in chunks", off, chunks_of(BODY_BYTES + off, 1000), 400)
        yield Edge("body in one chunk", off, chunks_of(BODY_BYTES + off, BODY_BYTES * 2), 400)


def head_of(size: int, in_one: bool = False) -> bytes:
    start, end = LINE + HOST + LENGTH, b"\r\n"
    left = size - len(start) - len(end)
    fields = []
    while left:
        line = left if in_one or left < 1010 else 1000
        fields.append(b"X-A: " + b"a" * (line - 7) + b"\r\n")
        left -= line
    return start + b"".join(fields) + end + CHAT


def fields_of(count: int) -> bytes:
    return LINE + HOST + LENGTH + b"X-A: 1\r\n" * (count - 2) + b"\r\n" + CHAT


def target_of(start: bytes, size: int) -> bytes:
    target = start + b"a" * (size - len(start))
    return b"POST " + target + b" HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n" + CHAT


def content_of(size: int) -> bytes:
    start, end = b'{"model":"chat-ep","messages":[{"content":"', b'"}]}'
    return start + b"x" * (size - len(start) - len(end)) + end


def chunks_of(size: int, each: int) -> bytes:
    content = content_of(size)
    pieces = [content[at : at + each] for at in range(0, size, each)]
    sized = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + sized + b"0\r\n\r\n"


async def wrong_at(r: rig.Rig, edge: Edge, piece: int, after_good: bool) -> str:
    """What is wrong with the answer to an edge sent in pieces of that size, or ""."""
    reader, writer = await r.connect()
    try:
        if after_good:
            writer.write(request())
            assert (await bounded(read_answer(reader))).status == 200
        reading = asyncio.ensure_future(read_answer(reader))  # a refusal may be followed by a reset
        for at in range(0, len(edge.data), piece):
            if writer.transport.is_closing():  # refused, and closed after what it still read
                break
            writer.write(edge.data[at : at + piece])
            await asyncio.sleep(0)
        got = await bounded(reading)
    finally:
        writer.close()
    if (got.status, got.closed) == (edge.status, edge.off > 0):
        return ""
    return f"{edge.name} {edge.off:+}: {got.status}, closed {got.closed}"


@pytest.mark.parametrize(("piece", "after_good"), [(1 << 20, False), (1000, False), (1 << 20, True)])
def test_each_budget_is_exact(piece: int, after_good: bool) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), LIMITS) as r:
            found = [await wrong_at(r, edge, piece, after_good) for edge in edges()]
            assert [wrong for wrong in found if wrong] == []
            # Nothing that was refused left anything behind.
            assert r.inflight() == 0
            assert (await rig.ask(r, request())).status == 200

    rig.run(body())


def test_the_check_notices_a_budget_that_is_not_there() -> None:
    async def body() -> None:
        none = Limits(head_bytes=1 << 30, head_fields=1 << 30, target_bytes=1 << 30, body_bytes=1 << 30)
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), none) as r:
            found = [await wrong_at(r, edge, 1 << 20, False) for edge in edges()]
            assert len([wrong for wrong in found if wrong]) >= 6

    rig.run(body())


def allow_files(count: int) -> None:
    """Let this process open so many, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"needs {count} open files, the hard limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Idle(asyncio.Protocol):
    """A socket that says nothing. `got` is what it was told, `lost` whether it was closed."""

    def __init__(self) -> None:
        self.got = b""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


@asynccontextmanager
async def idle_sockets(port: int, count: int) -> AsyncIterator[list[Idle]]:
    """So many connections, 100 being made at a time; all closed at the end."""
    loop = asyncio.get_running_loop()
    sockets: list[Idle] = []

    async def one() -> None:
        with suppress(OSError):
            _, protocol = await loop.create_connection(Idle, "127.0.0.1", port)
            sockets.append(protocol)

    try:
        for first in range(0, count, 100):
            await asyncio.gather(*(one() for _ in range(min(100, count - first))))
        yield sockets
    finally:
        for protocol in sockets:
            protocol.transport.abort()  # type: ignore[attr-defined]


async def recovers(r: Apart, within: float) -> None:
    """A new client is served again in that time."""
    async with asyncio.timeout(within):
        while True:
            with suppress(OSError):
                reader, writer = await r.connect()
                writer.write(request())
                got = await read_answer(reader)
                writer.close()
                if got.status == 200:
                    return
            await asyncio.sleep(0.02)


async def keeps_serving(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    reader, writer = streams
    writer.write(request())
    return bool((await bounded(read_answer(reader))).status == 200)


@pytest.mark.slow
def test_ten_thousand_sockets() -> None:
    """4,096 are held, the others are told so; who was there before is served as before."""

    async def body() -> None:
        allow_files(10_500)
        limits = Limits()
        async with Upstream() as up, apart(table(entity("a", 100, up.url)), limits) as r:
            friend = await r.connect()
            assert await keeps_serving(friend)
            before = r.memory()
            async with idle_sockets(r.port, 10_000) as sockets:
                assert len(sockets) == 10_000
                assert await keeps_serving(friend)
                # All but those that are held are told, or dropped where even that would be too much.
                away = 10_000 - limits.client_sockets
                await rig.until(lambda: sum(bool(s.got) or s.lost for s in sockets) >= away)
                told = [s.got for s in sockets if s.got]
                assert told
                assert all(got.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1\r\n" in got for got in told)
                # Who was told and stays is not kept for long.
                await rig.until(lambda: sum(s.lost for s in sockets) >= away, limits.linger_s + 3)
                assert (await r.report())["connections"] <= limits.client_sockets + 1
                assert await keeps_serving(friend)
                print(f"memory: {before >> 20} MiB before, {r.memory() >> 20} MiB with all of them")
                assert r.memory() - before < 100 << 20
            await recovers(r, 1)
            friend[1].close()

    rig.run(body())


@pytest.mark.slow
@pytest.mark.parametrize("foreseen", [True, False])
def test_no_more_files(foreseen: bool) -> None:
    """The accept loop does not spin, and who is connected is served: where the router knew from the start
    how many descriptors there are, and where they run out all the same."""

    async def body() -> None:
        files = 256 if foreseen else 0
        async with Upstream() as up, apart(table(entity("a", 100, up.url)), files=files) as r:
            friend = await r.connect()
            assert await keeps_serving(friend)
            if not foreseen:
                most = r.files() + 20
                resource.prlimit(r.pid, resource.RLIMIT_NOFILE, (most, most))
            try:
                async with idle_sockets(r.port, 500) as sockets:
                    # All but the few that there is room for are told so, or dropped.
                    await rig.until(lambda: sum(bool(s.got) or s.lost for s in sockets) >= 500 - 64)
                    share = await _busy_with(r, friend)
                    print(f"processor: {share:.1%} with {r.files()} files")
                    assert share < 0.2
                await recovers(r, 1)
            finally:
                friend[1].close()

    rig.run(body())


SPINS = """
import resource, selectors, socket
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
listener.setblocking(False)
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
print(listener.getsockname()[1], flush=True)
selector = selectors.EpollSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        try:
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif key.fileobj.recv(65536):
                key.fileobj.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
        except OSError:
            pass  # whoever waits goes on waiting, and is there at the next look
"""


@pytest.mark.slow
def test_the_check_notices_an_accept_loop_that_spins() -> None:
    async def body() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SPINS, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            spinning = Apart(process.pid, int(await bounded(process.stdout.readline())), Path())
            friend = await spinning.connect()
            assert await keeps_serving(friend)
            async with idle_sockets(spinning.port, 100):
                assert await _busy_with(spinning, friend) > 0.2
            friend[1].close()
        finally:
            process.kill()
            await process.wait()

    rig.run(body())


async def _busy_with(r: Apart, friend: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> float:
    """The share of a processor that the router uses while hardly anybody asks for anything."""
    began = r.processor_s()
    for _ in range(10):
        assert await keeps_serving(friend)
        await asyncio.sleep(0.15)
    return (r.processor_s() - began) / 1.5
