"""Upstreams for the router's tests: one that records, and whose answers a test scripts to the byte."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servestate.planner.table import Backend, EndpointRoutes, EntityRoute, RoutingTable


@dataclass
class Received:
    """One request as it arrived."""

    head: bytes
    body: bytes
    connection: int

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def fields(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]


Script = Callable[["Received", asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b'{"ok":true}', status: str = "200 OK", fields: str = "") -> bytes:
    """A whole answer with a length."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


BROKEN = answer(b'{"error":{"message":"boom"}}', "500 Internal Server Error")
BUSY = answer(b'{"error":{"message":"busy"}}', "429 Too Many Requests")
DOWN = "http://127.0.0.1:1"
"""Where nobody listens."""


def sse_head() -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENT = chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
"""The first piece of an event stream behind its head, and its end."""


def says(data: bytes) -> Script:
    """A script that always answers `data`."""

    async def script(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return script


def in_turn(*answers: bytes) -> Script:
    """A script that gives those answers one after the other, the last of them for ever."""
    left = list(answers)

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return script


@dataclass
class Gate:
    """A script that says `begun` and, to all who have asked by then, the rest once it is opened."""

    rest: bytes = answer()
    begun: bytes = b""
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(self.begun)
        await self.opened.wait()
        writer.write(self.rest)

    def open(self) -> None:
        self.opened.set()


async def echo(received: Received, writer: asyncio.StreamWriter) -> None:
    """A script that answers with what it was sent."""
    writer.write(answer(received.body))


async def hangs(received: Received, writer: asyncio.StreamWriter) -> None:
    """A script that never answers."""
    await asyncio.sleep(3600)


async def hangs_up(received: Received, writer: asyncio.StreamWriter) -> None:
    """A script that closes the connection instead of answering."""
    writer.transport.abort()


async def begins(received: Received, writer: asyncio.StreamWriter) -> None:
    """A script of a stream that begins well and says no more."""
    writer.write(sse_head() + EVENT)
    await hangs(received, writer)


async def breaks(received: Received, writer: asyncio.StreamWriter) -> None:
    """A script of a stream that begins well and ends in the middle."""
    writer.write(sse_head() + EVENT)
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.transport.abort()


def streams(*events: bytes, usage: bytes, whole: bool = True) -> Script:
    """A script that sends those events one by one, then `usage` if it is asked for, then the end, or, where
    the stream is not to be whole, breaks off."""

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        asked = (json.loads(received.body).get("stream_options") or {}).get("include_usage")
        writer.write(sse_head())
        for event in (*events, *((usage,) if asked else ())):
            writer.write(chunk(event))
            await writer.drain()
            await asyncio.sleep(0.001)
        if whole:
            writer.write(DONE)
        else:
            writer.transport.abort()

    return script


@dataclass
class Upstream:
    """A server on loopback, or on the unix socket `path`. `received` are the requests, `garbage` bytes that
    were none; `gone` counts connections that the router ended, `open` those that stand."""

    script: Script = field(default_factory=lambda: says(answer()))
    received: list[Received] = field(default_factory=list)
    garbage: list[bytes] = field(default_factory=list)
    path: Path | None = None
    open: int = 0
    gone: int = 0
    connections: int = 0
    port: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Upstream:
        if self.path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=1 << 25)
            return self
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 25)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        while self.writers:
            await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.add(writer)
        number = self.connections
        try:
            while True:
                await self._one(reader, writer, number)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            self.open -= 1
            self.writers.discard(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.garbage.append(error.partial)
            raise
        lengths = [f for f in head.lower().split(b"\r\n") if f.startswith(b"content-length:")]
        if not head.startswith(b"POST /") or len(lengths) != 1 or b"transfer-encoding" in head.lower():
            self.garbage.append(head)
        body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
        request = Received(head, body, number)
        self.received.append(request)
        self.changed.set()
        # Watch for the router's leaving while the script runs: that is what a cancel looks like.
        script = asyncio.ensure_future(self.script(request, writer))
        watch = asyncio.ensure_future(_until_gone(reader))
        try:
            done, _ = await asyncio.wait({script, watch}, return_when=asyncio.FIRST_COMPLETED)
            if script in done:
                _result(script, writer)
                with suppress(ConnectionError):
                    await writer.drain()
                if writer.is_closing():
                    raise ConnectionResetError
                return
            raise ConnectionResetError
        finally:
            script.cancel()
            watch.cancel()
            await asyncio.gather(script, watch, return_exceptions=True)


def _result(script: asyncio.Future[None], writer: asyncio.StreamWriter) -> None:
    """Raise what the script has raised, ConnectionResetError where it wrote to a closed connection."""
    try:
        script.result()
    except RuntimeError:  # uvloop's word for it
        if not writer.transport.is_closing():
            raise
        raise ConnectionResetError from None


@contextmanager
def deaf() -> Iterator[str]:
    """The URL of somebody whose queue is full: connecting there takes for ever."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def _until_gone(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof() and reader.exception() is None:
        if reader._buffer:  # the next request: not for us
            await asyncio.sleep(3600)
        await asyncio.sleep(0.001)


def entity(
    name: str, weight: int, *urls: str, model: str = "engine-model", task: str = "", **more: object
) -> EntityRoute:
    """A served entity with one replica per URL."""
    backends = tuple(Backend(f"{name}#{i}", url) for i, url in enumerate(urls))
    return EntityRoute(name, weight, model, task, bool(more.pop("fixed_path", False)), backends, **more)  # type: ignore[arg-type]


def table(
    *entities: EntityRoute, version: int = 1, name: str = "chat-ep", config: int = 1, **more: Any
) -> RoutingTable:
    """A table of one endpoint."""
    return RoutingTable(version, "lineage-1", (EndpointRoutes(name, config, entities, **more),))
