"""Two callers over shared upstream connections: however the one frames, the other gets its own answer.

The upstream is the most lenient there is: whatever has `chunked` anywhere in its head is read as chunks, and
a chunk that is none ends the body. A router that relays what it parsed would be desynchronised by it at once,
which the last test shows with one that does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from tests.router import rig
from tests.router.rig import bounded, read_answer, request, serving
from tests.router.upstreams import answer, entity, table

LINE = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n"
NAME = b"Transfer-Encoding"
_ODD_BYTES = (*range(0x21), 0x7F, 0x80, 0xA0, 0xFF)
_CODINGS = (b"xchunked", b"chunkedx", b"chunked, identity", b"identity, chunked", b"chunked, chunked")
_CODINGS += (
    b"gzip, chunked",
    b'"chunked"',
    b"'chunked'",
    b"chunked;q=1",
    b"CHUNKED",
    b"chunKed",
    b"x, chunked",
)
_NAMES = (b"transfer-encoding", b"TRANSFER-ENCODING", b"Transfer_Encoding", b" Transfer-Encoding")
_NAMES += (
    b"X: y\nTransfer-Encoding",
    b"X: y\rTransfer-Encoding",
    b"Transfer Encoding",
)
_FOLDED = (
    NAME + b":\r\n chunked",
    NAME + b":\r\n\tchunked",
    NAME + b":chunked",
    b"X: y\r\n " + NAME + b": chunked",
)


def spellings() -> list[bytes]:
    """Header lines that some server takes for `Transfer-Encoding: chunked`, without their ends."""
    found = [NAME + b": " + coding for coding in _CODINGS]
    found += [name + b": chunked" for name in _NAMES]
    found += _FOLDED
    for number in _ODD_BYTES:
        byte = bytes([number])
        found += [NAME + b":" + byte + b"chunked", NAME + b": chunked" + byte, NAME + byte + b": chunked"]
    return found


def framings(spelling: bytes, number: int) -> Iterator[tuple[str, bytes]]:
    """The five ways to disagree about where the body ends; what is hidden behind it asks as the attacker."""
    hidden = request(_body(f"attack-{number}"))
    visible = _body(f"cover-{number}")
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(visible), visible)
    coding = spelling + b"\r\n"
    length = b"Content-Length: %d\r\n"
    yield "length, then coding", LINE + length % len(chunks + hidden) + coding + b"\r\n" + chunks + hidden
    yield "coding, then length", LINE + coding + length % 4 + b"\r\n" + chunks + hidden
    yield "coding twice", LINE + b"Transfer-Encoding: chunked\r\n" + coding + b"\r\n" + chunks + hidden
    yield "coding alone", LINE + coding + b"\r\n" + chunks + hidden
    # A JSON body under its length, the next request of the connection by any other reading.
    cover = visible + b"\r\n" * 2
    yield "length of a good body", LINE + length % len(cover) + coding + b"\r\n" + cover + hidden


def _body(marker: str) -> bytes:
    return b'{"model":"chat-ep","messages":[{"role":"user","content":"%b"}]}' % marker.encode()


@dataclass
class Lenient:
    """The worst back end: answers what it takes for the body, and remembers every connection's requests."""

    connections: list[list[bytes]] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen: list[bytes] = []
        self.connections.append(seen)
        with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                content = await self._content(reader, head.lower())
                seen.append(content)
                writer.write(answer(json.dumps({"saw": content.decode("latin-1")}).encode()))
        writer.close()

    async def _content(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        if b"chunked" in head:
            return await _lenient_chunks(reader)
        length = head.partition(b"content-length:")[2].split(b"\r\n")[0].strip()
        return await reader.readexactly(int(length)) if length.isdigit() else b""


async def _lenient_chunks(reader: asyncio.StreamReader) -> bytes:
    content = b""
    while True:
        line = (await reader.readuntil(b"\n")).strip()
        size = int(line, 16) if line and all(c in b"0123456789abcdefABCDEF" for c in line) else 0
        if not size:
            await reader.readuntil(b"\n")
            return content
        content += await reader.readexactly(size)
        await reader.readuntil(b"\n")


@asynccontextmanager
async def lenient() -> AsyncIterator[Lenient]:
    upstream = Lenient()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=1 << 22)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()


async def attack(port: int, data: bytes) -> None:
    """Send it all, take what comes at once, leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    with suppress(TimeoutError, ConnectionError):
        await bounded(reader.read(1), 0.25)
    writer.transport.abort()


async def victim(port: int, number: int) -> str:
    """Ask with a marker; what is wrong with the answer, or ""."""
    body = _body(f"victim-{number}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(body))
    try:
        got = await bounded(read_answer(reader), 2)
    except TimeoutError:
        return "no answer"
    finally:
        writer.close()
    if got.status != 200:
        return f"status {got.status}"
    saw = got.json().get("saw", "")
    return "" if saw.encode() == body else f"was answered about {saw[:80]!r}"


async def desynchronised(port: int, spelled: list[bytes]) -> list[str]:
    """The victims that did not get their own answer, each after the attack before it."""
    found, number = [], 0
    for spelling in spelled:
        for name, data in framings(spelling, number):
            await attack(port, data)
            wrong = await victim(port, number)
            if wrong:
                found.append(f"{spelling!r}, {name}: the victim {wrong}")
            number += 1
    return found


def test_there_are_as_many_spellings_as_the_catalogue_says() -> None:
    assert len(set(spellings())) == len(spellings()) == 134
    assert len(list(framings(NAME + b": chunked", 0))) == 5


def test_the_victim_always_gets_its_own_answer() -> None:
    async def body() -> None:
        async with lenient() as up:
            url = f"http://127.0.0.1:{up.port}"
            async with serving(table(entity("a", 100, url, model=""))) as r:
                assert await desynchronised(r.port, spellings()) == []
                seen = [content for connection in up.connections for content in connection]
                assert sum(b"victim-" in content for content in seen) == 670
                # Attacks do come through where they are good HTTP, and over the victims' connections.
                shared = [
                    one
                    for one in up.connections
                    if any(b"cover-" in c for c in one) and any(b"victim-" in c for c in one)
                ]
                assert shared
                assert all(
                    content == _body(json.loads(content)["messages"][0]["content"])
                    for content in map(bytes.strip, seen)
                )
                assert r.inflight() == 0

    rig.run(body())


class Relay:
    """What the router is not: it parses as the router's parser does and passes the bytes on as they came,
    over one connection."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]
                content = await reader.readexactly(int(length)) if length.isdigit() else b""
                writer.write(await self._passed_on(head + content))
        writer.close()

    async def _passed_on(self, data: bytes) -> bytes:
        async with self._lock:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._upstream)
            reader, writer = self._streams
            writer.write(data)
            got = await bounded(read_answer(reader), 0.5)
            return answer(got.body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def test_the_check_notices_a_router_that_relays_what_it_parsed() -> None:
    async def body() -> None:
        async with lenient() as up:
            relay = Relay(up.port)
            server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            found = await desynchronised(port, [NAME + b": xchunked", NAME + b" : chunked"])
            assert any("answered about" in wrong for wrong in found), found
            server.close()
            relay.close()

    rig.run(body())


@pytest.mark.parametrize("hidden", [b"G", b"POST /v1/chat/completions HTTP/1.1\r\nX: "])
def test_the_beginning_of_a_request_is_not_glued_to_the_victims(hidden: bytes) -> None:
    """What a client leaves unfinished stays on its own connection."""

    async def body() -> None:
        async with lenient() as up:
            url = f"http://127.0.0.1:{up.port}"
            async with serving(table(entity("a", 100, url, model=""))) as r:
                for number in range(20):
                    await attack(r.port, request(_body("cover")) + hidden)
                    assert await victim(r.port, number) == ""

    rig.run(body())
