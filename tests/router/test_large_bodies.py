"""Large bodies and answers: what they cost in memory, and that neither side can make the router hold more."""

from __future__ import annotations

import asyncio
import hashlib
import socket

import pytest

from servestate.runtime.router import Limits
from servestate.runtime.router import client as client_module
from tests.router import rig
from tests.router.apart import Apart, apart
from tests.router.rig import QUICK, bounded, read_answer, request, serving
from tests.router.upstreams import Received, Upstream, answer, entity, table

MIB = 1 << 20
BODY_BYTES = Limits().body_bytes
INVOKE = "/serving-endpoints/chat-ep/invocations"


def instances(size: int) -> bytes:
    """A custom model's body of that size, which goes upstream byte for byte."""
    start, end = b'{"inputs":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


async def counted(received: Received, writer: asyncio.StreamWriter) -> None:
    told = b'{"sha256":"%b"}' % hashlib.sha256(received.body).hexdigest().encode()
    received.body = b""
    writer.write(answer(told))


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_body_at_its_bound(off: int) -> None:
    async def body() -> None:
        raw = instances(BODY_BYTES + off)
        async with Upstream(counted) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            reading = asyncio.ensure_future(read_answer(reader))
            head = request(raw, INVOKE)
            for at in range(0, len(head), MIB):
                if writer.transport.is_closing():
                    break
                writer.write(head[at : at + MIB])
                await asyncio.sleep(0)
            got = await bounded(reading, 30)
            if off > 0:
                assert (got.status, got.closed, up.received) == (400, True, [])
            else:
                assert (got.status, got.json()["sha256"]) == (200, hashlib.sha256(raw).hexdigest())
            writer.close()

    rig.run(body())


PIECE = b"y" * 65_536
PIECES = 100 * MIB // len(PIECE)


async def a_hundred_mib(received: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (PIECES * len(PIECE)))
    for _ in range(PIECES):
        writer.write(PIECE)
        await writer.drain()


async def read_slowly(r: Apart | rig.Rig, pause_s: float) -> int:
    """Read the large answer in small pieces with rests between; how many bytes came."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", r.port))
        await loop.sock_sendall(sock, request(fields="Connection: close\r\n"))
        came = pieces = 0
        while data := await loop.sock_recv(sock, MIB):
            came += len(data)
            pieces += 1
            if pieces % 20 == 0:
                await asyncio.sleep(pause_s)
        return came


def test_a_slow_reader_of_a_large_answer_costs_no_memory() -> None:
    async def body() -> None:
        async with Upstream(a_hundred_mib) as up, apart(table(entity("a", 100, up.url))) as r:
            assert (await read_slowly(r, 0.001)) > 100 * MIB
            before = r.memory()
            came = await asyncio.gather(*(read_slowly(r, 0.001) for _ in range(4)))
            assert min(came) > 100 * MIB
            grown = r.most_memory() - before
            print(f"grown by {grown / MIB:.1f} MiB")
            assert grown < 10 * MIB

    rig.run(body())


def test_the_check_notices_a_router_without_back_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client's pauses do not reach the upstream, what it does not read is held here."""
    monkeypatch.setattr(client_module.ClientConnection, "pause_writing", lambda self: None)
    monkeypatch.setattr(client_module.ClientConnection, "resume_writing", lambda self: None)

    async def body() -> None:
        async with Upstream(a_hundred_mib) as up, serving(table(entity("a", 100, up.url)), QUICK) as r:
            reading = asyncio.create_task(read_slowly(r, 3600))
            held = 0

            def much() -> bool:
                nonlocal held
                sizes = [c._transport.get_write_buffer_size() for c in r.router.desk.clients]
                held = max([held, *sizes])
                return held > 50 * MIB

            await rig.until(much)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    rig.run(body())


async def status_of(r: Apart, data: bytes) -> int:
    """The status of the answer to a large request."""
    reader, writer = await r.connect()
    writer.write(data)
    got = await bounded(read_answer(reader), 60)
    writer.close()
    return int(got.status)


@pytest.mark.slow
def test_fifty_large_bodies_at_once() -> None:
    """A body is held whole until it is known whose it is. All fit in by turns, and what those cost that are
    held together stays within a few times the budget."""

    async def body() -> None:
        data, count, bound = request(instances(BODY_BYTES), INVOKE), 50, Limits().buffered_bytes
        assert count * BODY_BYTES > 3 * bound
        async with Upstream(counted) as up, apart(table(entity("a", 100, up.url))) as r:
            before = r.memory()
            assert set(await asyncio.gather(*(status_of(r, data) for _ in range(count)))) == {200}
            most = r.most_memory() - before
            print(f"MiB: {most / MIB:.0f} at most")
            # Bytes as they came, once more whole and as sent, and what upstreams have not read yet.
            assert most < 5 * bound

    rig.run(body())
