"""A client connection over its life: kept alive, pipelined, waiting for 100 Continue, by IPv6, odd verbs."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from servestate.runtime.router import Limits
from servestate.runtime.router import client as client_module
from tests.router import rig
from tests.router.rig import (
    CHAT,
    QUICK,
    Answer,
    Rig,
    ask,
    bounded,
    past_the_loop,
    read_answer,
    request,
    serving,
    until,
)
from tests.router.upstreams import (
    DONE,
    EVENT,
    Received,
    Script,
    Upstream,
    answer,
    breaks,
    chunk,
    echo,
    entity,
    hangs,
    says,
    sse_head,
    table,
)

EXPECT = "Expect: 100-continue\r\n"


def marked(number: int) -> bytes:
    return request(CHAT.replace(b"hi", b"mark-%d" % number))


def mark_of(got: Answer) -> str:
    content: str = got.json()["messages"][0]["content"]
    return content


def test_a_connection_serves_many_requests() -> None:
    async def body() -> None:
        async with Upstream(echo) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            for number in range(1000):
                writer.write(marked(number))
                got = await read_answer(reader)
                assert (mark_of(got), got.closed) == (f"mark-{number}", False)
            assert up.connections == 1
            writer.close()

    rig.run(body())


@pytest.mark.parametrize("count", [2, 3, 50])
@pytest.mark.parametrize("pieces", [1, 7])
def test_pipelined_requests_are_answered_in_order(count: int, pieces: int) -> None:
    """All in one segment, or cut where it does not suit; one at a time goes upstream."""

    async def body() -> None:
        at_once = most = 0

        async def slowly(received: Received, writer: asyncio.StreamWriter) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.001)
            at_once -= 1
            writer.write(answer(received.body))

        async with Upstream(slowly) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            data = b"".join(map(marked, range(count)))
            step = len(data) // pieces + 1
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await asyncio.sleep(0)
            found = [mark_of(await bounded(read_answer(reader))) for _ in range(count)]
            assert found == [f"mark-{number}" for number in range(count)]
            assert (most, len(up.received)) == (1, count)
            writer.close()

    rig.run(body())


def test_requests_that_come_together_with_an_answer_wait_their_turn() -> None:
    """One is read already, and to be taken on at the loop's next turn, when more come in this one."""

    async def body() -> None:
        answered = asyncio.Event()

        async def script(received: Received, writer: asyncio.StreamWriter) -> None:
            if answered.is_set():
                writer.write(answer(received.body))
            await answered.wait()

        async with Upstream(script) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(marked(0) + marked(1))
            await until(lambda: len(up.received) == 1)
            (busy,) = up.writers
            with past_the_loop(busy) as engine, past_the_loop(writer) as client:
                engine.sendall(answer(up.received[0].body))
                client.sendall(marked(2) + marked(3))
            answered.set()
            found = [mark_of(await bounded(read_answer(reader), 2)) for _ in range(4)]
            assert found == [f"mark-{number}" for number in range(4)]
            assert (len(up.received), r.inflight()) == (4, 0)
            writer.close()

    rig.run(body())


def test_what_is_pipelined_is_bounded() -> None:
    """Behind a request that is never answered the router stops reading: the rest stays with the sender."""

    async def body() -> None:
        async with Upstream(hangs) as up, serving(table(entity("a", 100, up.url))) as r:
            with socket.create_connection(("127.0.0.1", r.port)) as sock:
                sock.setblocking(False)
                sent = await _sent_until_refused(sock, r)
                (held,) = r.router.desk.clients
                await until(lambda: len(up.received) == 1)
                # One read of the loop may go over the bound.
                assert len(held._ahead) <= QUICK.ahead_bytes + 262_144
                assert sent > len(held._ahead)
                assert len(up.received) == 1

    rig.run(body())


async def _sent_until_refused(sock: socket.socket, r: Rig) -> int:
    """Send until the router has stopped reading and what lies between is full; the bytes that went."""
    sent = 0

    def full() -> bool:
        nonlocal sent
        try:
            while True:
                sent += sock.send(request() * 1000)
        except BlockingIOError:
            return any(not client._transport.is_reading() for client in r.router.desk.clients)

    await until(full)
    return sent


def test_a_pipelined_refusal_ends_the_connection_after_the_answers_before_it() -> None:
    async def body() -> None:
        async with Upstream(echo) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(marked(0) + b"GET / HTTP/9.9\r\n\r\n" + marked(1))
            assert mark_of(await bounded(read_answer(reader))) == "mark-0"
            refused = await bounded(read_answer(reader))
            assert (refused.status, refused.fields["connection"]) == (400, "close")
            assert await bounded(reader.read()) == b""
            assert len(up.received) == 1
            writer.close()

    rig.run(body())


def test_the_check_notices_pipelined_requests_that_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module.ClientConnection, "_consume_ahead", lambda self: None)

    async def body() -> None:
        async with Upstream(echo) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(marked(0) + marked(1))
            assert mark_of(await bounded(read_answer(reader))) == "mark-0"
            with pytest.raises(TimeoutError):
                await bounded(read_answer(reader), 0.2)
            writer.close()

    rig.run(body())


def head_and_body(data: bytes) -> tuple[bytes, bytes]:
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def test_who_does_not_wait_for_100_gets_the_answer_alone() -> None:
    """RFC 9110 section 10.1.1: 100 may be omitted where the body has already begun to come."""

    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            got = await ask(r, request(fields=EXPECT))
            assert got.status == 200
            head, content = head_and_body(request(fields=EXPECT))
            reader, writer = await r.connect()
            writer.write(head + content[:5])
            await asyncio.sleep(0.02)
            writer.write(content[5:])
            assert (await bounded(read_answer(reader))).status == 200
            # The connection goes on, also for one who does wait.
            writer.write(head)
            assert (await bounded(read_answer(reader))).status == 100
            writer.write(content)
            assert (await bounded(read_answer(reader))).status == 200
            assert len(up.received) == 3
            writer.close()

    rig.run(body())


def test_chunked_and_waiting() -> None:
    async def body() -> None:
        async with Upstream(echo) as up, serving(table(entity("a", 100, up.url, model=""))) as r:
            reader, writer = await r.connect()
            line = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n"
            writer.write(line + b"Transfer-Encoding: chunked\r\n\r\n")
            assert (await bounded(read_answer(reader))).status == 100
            writer.write(chunk(CHAT) + b"0\r\n\r\n")
            assert (await bounded(read_answer(reader))).json() == json.loads(CHAT)
            assert b"expect" not in up.received[0].head.lower()
            writer.close()

    rig.run(body())


@pytest.mark.parametrize(
    ("target", "fields", "length", "token", "status"),
    [
        ("/nope", "", 100, True, 404),
        ("/v1/chat/completions", "", 100, False, 401),
        ("/serving-endpoints/nope/invocations", "", 100, True, 404),
        ("/v1/chat/completions", "", QUICK.body_bytes + 1, True, 400),
    ],
)
def test_who_waits_is_refused_before_the_body(
    target: str, fields: str, length: int, token: bool, status: int
) -> None:
    """And closed: what the client then sends could be the body, or not."""

    async def body() -> None:
        keys = rig.keyring(ann={"user_name": "ann", "rights": ["query"]})
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), keyring=keys) as r:
            lines = (rig.bearer("ann") if token else "") + fields + EXPECT
            head = f"POST {target} HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {length}\r\n\r\n"
            got = await bounded(ask(r, head.encode()))
            assert (got.status, got.fields.get("connection")) == (status, "close")
            assert up.connections == 0

    rig.run(body())


async def told_while_sending(limits: Limits, size: int) -> Answer:
    """What a client hears that sends all of a large body to a path that is none before it reads."""
    async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
        reader, writer = await r.connect()
        data = request(b"x" * size, "/nope")
        with suppress(ConnectionError):
            for at in range(0, len(data), 1 << 18):
                writer.write(data[at : at + (1 << 18)])
                await writer.drain()
        try:
            return await bounded(read_answer(reader))
        finally:
            writer.close()


def test_who_does_not_wait_hears_the_refusal_too() -> None:
    """The rest of its body is read, else the refusal would be lost with the connection."""

    async def body() -> None:
        got = await told_while_sending(QUICK, 12_000_000)
        assert (got.status, got.whole, got.fields["connection"]) == (404, True, "close")

    rig.run(body())


def test_no_more_than_that_is_read_of_a_refused_body() -> None:
    async def body() -> None:
        assert (await told_while_sending(replace(QUICK, drain_bytes=65_536), 12_000_000)).status == 0

    rig.run(body())


def test_expectations_of_http_1_0_are_ignored() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            head, content = head_and_body(request(fields=EXPECT).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            reader, writer = await r.connect()
            writer.write(head)
            with pytest.raises(TimeoutError):
                await bounded(reader.read(1), 0.05)
            writer.write(content)
            assert (await bounded(read_answer(reader))).status == 200
            writer.close()

    rig.run(body())


def test_a_stream_that_breaks_does_not_look_whole_to_http_1_0() -> None:
    """Its framing is the end of the connection: only a reset tells that something is missing."""

    async def body() -> None:
        async with Upstream(breaks) as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(request().replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            with pytest.raises(ConnectionResetError):
                await bounded(reader.read())
            writer.close()

    rig.run(body())


def test_a_large_body_that_waited_reaches_the_replica_that_is_there() -> None:
    """The first replica refuses connections: the body, asked for once, goes to the next whole."""

    async def body() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
            async with Upstream(echo) as up, serving(table(entity("a", 100, dead, up.url, model=""))) as r:
                for _ in range(4):
                    raw = b'{"model":"chat-ep","messages":[{"content":"%b"}]}' % (b"y" * 3_000_000)
                    head, content = head_and_body(request(raw, fields=EXPECT))
                    reader, writer = await r.connect()
                    writer.write(head)
                    assert (await bounded(read_answer(reader))).status == 100
                    writer.write(content)
                    got = await bounded(read_answer(reader))
                    assert (got.status, got.body == raw) == (200, True)
                    writer.close()

    rig.run(body())


def test_an_upstream_by_ipv6() -> None:
    async def body() -> None:
        async with Upstream() as up:
            try:
                relay = await asyncio.start_server(up._serve, "::1", 0)
            except OSError as error:
                pytest.skip(f"no IPv6 on loopback: {error}")
            port = relay.sockets[0].getsockname()[1]
            async with serving(table(entity("a", 100, f"http://[::1]:{port}"))) as r:
                assert (await ask(r, request())).status == 200
                assert dict(up.received[0].fields)["host"] == f"[::1]:{port}"
            relay.close()

    rig.run(body())


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/v1/models", 404),
        ("HEAD", "/v1/chat/completions", 404),
        ("HEAD", "/nope", 404),
        ("OPTIONS", "/v1/chat/completions", 404),
        ("OPTIONS", "*", 400),
    ],
)
def test_odd_verbs_reach_nobody(method: str, target: str, status: int) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            reader, writer = await r.connect()
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            if method == "HEAD":
                await _check_head(reader, status)
            else:
                got = await bounded(read_answer(reader))
                assert (got.status, got.whole) == (status, True)
                # No origin is told that it may call: browsers read the absence as a refusal.
                assert not [name for name in got.fields if name.startswith("access-control")]
            assert up.connections == 0
            writer.close()

    rig.run(body())


async def _check_head(reader: asyncio.StreamReader, status: int) -> None:
    """A head with the length of what GET would show, then nothing, then the end."""
    raw = await bounded(reader.read())
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()
    assert rest == b""


async def packed(r: Rig, up: Upstream, content: bytes, fields: str) -> Answer:
    up.script = says(answer(content, fields=fields))
    return await bounded(ask(r, request(fields="Accept-Encoding: gzip\r\n")))


def test_compressed_answers_pass_untouched() -> None:
    async def body() -> None:
        plain = b'{"text":"%b"}' % (b"x" * 5000)
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            for coding, content in (
                ("gzip", gzip.compress(plain)),
                ("br", b"\x0b\x02\x80{}\x03"),
                ("x", b"\0"),
            ):
                got = await packed(r, up, content, f"Content-Encoding: {coding}\r\n")
                assert (got.status, got.body, got.fields["content-encoding"]) == (200, content, coding)
                assert b"accept-encoding" not in up.received[-1].head.lower()

    rig.run(body())


def test_a_compressed_event_stream_passes_untouched() -> None:
    """Its lines cannot be read, so its bytes are left alone."""

    async def body() -> None:
        content = gzip.compress(b"data: {}\n\n: ping\n\ndata: [DONE]\n\n")
        head = sse_head().replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        data = head + b"".join(chunk(content[i : i + 7]) for i in range(0, len(content), 7)) + b"0\r\n\r\n"
        async with Upstream(says(data)) as up, serving(table(entity("a", 100, up.url))) as r:
            got = await bounded(ask(r, request()))
            assert (got.whole, gzip.decompress(got.body)) == (True, gzip.decompress(content))

    rig.run(body())


def test_an_idle_connection_is_closed_in_time_and_not_before() -> None:
    async def body() -> None:
        limits: Limits = replace(QUICK, idle_s=0.3)
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
            reader, writer = await r.connect()
            loop = asyncio.get_running_loop()
            for _ in range(3):
                writer.write(request())
                assert (await bounded(read_answer(reader))).status == 200
                await asyncio.sleep(0.1)
            began = loop.time()
            assert await bounded(reader.read()) == b""
            assert 0.1 < loop.time() - began < 1.0
            writer.close()

    rig.run(body())


def paced(count: int, pause_s: float, *, ends: bool = True) -> Script:
    """A script of a stream of so many events with rests between, which then ends or says no more."""

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head())
        for _ in range(count):
            writer.write(EVENT)
            await asyncio.sleep(pause_s)
        if ends:  # right behind the last event, before any sweep
            writer.write(EVENT)
            await asyncio.sleep(0.001)
            writer.write(DONE)
        else:
            await hangs(received, writer)

    return script


QUICK_STALL = replace(QUICK, stall_s=0.15)


def test_a_stream_that_moves_lasts_longer_than_one_that_stalls_may() -> None:
    async def body() -> None:
        async with (
            Upstream(paced(20, 0.02)) as up,
            serving(table(entity("a", 100, up.url)), QUICK_STALL) as r,
        ):
            reader, writer = await r.connect()
            writer.write(request())
            got = await bounded(read_answer(reader))
            assert (got.status, got.whole, got.body.count(b"data:")) == (200, True, 22)
            await asyncio.sleep(2 * QUICK_STALL.stall_s)
            writer.write(request())
            got = await bounded(read_answer(reader))
            assert (got.status, got.whole) == (200, True), "between two requests nothing stalls"
            writer.close()

    rig.run(body())


def test_a_stream_that_moved_and_stalls_ends() -> None:
    async def body() -> None:
        async with (
            Upstream(paced(20, 0.02, ends=False)) as up,
            serving(table(entity("a", 100, up.url)), QUICK_STALL) as r,
        ):
            began = time.monotonic()
            got = await bounded(ask(r, request()))
            assert 0.4 < time.monotonic() - began < 2
            assert not got.whole
            assert b'"error"' in got.body

    rig.run(body())
