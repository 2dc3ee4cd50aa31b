"""Large requests in the making: clients that send them piece by piece, and an upstream that reads them so."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from servestate.planner.table import RoutingTable
from servestate.runtime.router import Limits
from servestate.runtime.router.balance.policy import HealthPolicy
from tests.router.leftovers import nothing_is_left
from tests.router.rig import QUICK, Answer, Rig, read_answer, until
from tests.router.upstreams import answer, entity, table

INVOKE = "/serving-endpoints/chat-ep/invocations"
OPENAI = "/v1/chat/completions"
TEXT = random.Random(7).randbytes(1 << 20).hex().encode()


def text(size: int) -> bytes:
    """So many bytes in which none stands where another might."""
    return (TEXT * (size // len(TEXT) + 1))[:size]


def custom(size: int) -> bytes:
    """A custom model's body of that size, of which nothing is changed."""
    start, end = b'{"inputs":"', b'"}'
    return start + text(size - len(start) - len(end)) + end


def chat(size: int, before: str = '"model":"chat-ep",', behind: str = "") -> bytes:
    """A chat of more than that size, with members on either side of what is large of it."""
    content = text(size).decode()
    return f'{{{before}"messages":[{{"role":"user","content":"{content}"}}]{behind}}}'.encode()


def head(length: int | None, target: str = INVOKE, fields: str = "", version: str = "1.1") -> bytes:
    """Of a request of that length, None: in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {target} HTTP/{version}\r\nHost: localhost\r\n{fields}{framing}\r\n\r\n".encode()


def framed(piece: bytes, chunked: bool, *, last: bool = False) -> bytes:
    """A piece of a body as it is sent."""
    if not chunked:
        return piece
    return (b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"") + (b"0\r\n\r\n" if last else b"")


class Upload:
    """A request as its upstream gets it: `body` so far, and at its end either `whole` or `lost`. `length` is
    what was announced: none goes on in chunks, however it came."""

    def __init__(
        self, head: bytes, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self.connection = connection
        self.body = bytearray()
        self.whole = self.lost = False
        self._reader = reader
        self.writer = writer
        lines = head.lower().split(b"\r\n")
        lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
        assert len(lengths) == 1, f"how long is it? {head!r}"
        assert b"transfer-encoding" not in head.lower()
        self._left = self.length = int(lengths[0])

    def json(self) -> Any:
        return json.loads(self.body)

    async def more(self, most: int = 1 << 16) -> bool:
        """Read the next piece; whether one came. Raises ConnectionError where the rest is lost."""
        try:
            if not self._left:
                self.whole = True
                return False
            piece = await self._reader.read(min(self._left, most))
            if not piece:
                raise ConnectionResetError
            self.body += piece
            self._left -= len(piece)
        except ConnectionError:
            self.lost = True
            raise ConnectionResetError from None
        return True

    async def beginning(self, size: int = 1) -> None:
        """Read no more than it takes to have so much."""
        while len(self.body) < size:
            await self.more(size - len(self.body))

    async def rest(self) -> None:
        while await self.more():
            pass


Script = Callable[[Upload], Awaitable[None]]


async def takes(upload: Upload) -> None:
    """Reads all of it, then answers."""
    await upload.rest()
    upload.writer.write(answer())


def early(said: bytes, *, then: Script | None = None, at: int = 1) -> Script:
    """Answers once so much has come, then does that, or never reads again."""

    async def script(upload: Upload) -> None:
        await upload.beginning(at)
        upload.writer.write(said)
        await (then or waits)(upload)

    return script


async def waits(upload: Upload) -> None:
    """Does nothing, and notices only late that it is alone."""
    await asyncio.sleep(3600)


async def dies(upload: Upload) -> None:
    upload.writer.transport.abort()


async def closes(upload: Upload) -> None:
    upload.writer.close()


class Taker:
    """An upstream on loopback that reads no more than its script does, and a little."""

    def __init__(self, script: Script = takes) -> None:
        self.script = script
        self.uploads: list[Upload] = []
        self.connections = self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Taker:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 15, backlog=512)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def last(self) -> Upload:
        return self.uploads[-1]

    def begun(self, size: int = 1, count: int = 1) -> bool:
        """Whether so many requests have so much of their bodies here."""
        return sum(len(upload.body) >= size for upload in self.uploads) >= count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            while not writer.is_closing():
                upload = Upload(await reader.readuntil(b"\r\n\r\n"), number, reader, writer)
                self.uploads.append(upload)
                await self.script(upload)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # a task of the streams' own that says it was cancelled would be reported as failed
        finally:
            self._tasks.discard(task)
            self.open -= 1
            writer.close()


class Sender:
    """A client's connection whose two directions know nothing of each other: what is read is read, whatever
    became of what is sent. `sent` counts what its socket took."""

    def __init__(self, port: int, send_buffer: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self.socket = socket.socket()
        if send_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.socket.setblocking(False)
        self._port = port
        self._reader = asyncio.StreamReader(limit=1 << 25)
        self.sent = 0
        self._writing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Sender:
        await self._loop.sock_connect(self.socket, ("127.0.0.1", self._port))
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Close, whatever is still to come."""
        for task in (self._reading, self._writing):
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, (self._reading, self._writing)), return_exceptions=True)
        self.socket.close()

    async def send(self, data: bytes) -> None:
        """Send all of it, or as much as the other side takes."""
        view = memoryview(data)
        with suppress(ConnectionError):
            while view:
                await self._loop.sock_sendall(self.socket, view[: 1 << 15])
                self.sent += min(len(view), 1 << 15)
                view = view[1 << 15 :]

    def sending(self, data: bytes) -> asyncio.Future[None]:
        """The same, while something else is done."""
        self._writing = asyncio.ensure_future(self.send(data))
        return self._writing

    async def answer(self, within: float = 10.0) -> Answer:
        return await asyncio.wait_for(read_answer(self._reader), within)

    async def line(self) -> bytes:
        """The next head."""
        return await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)

    async def closed(self) -> bytes:
        """What comes until the end."""
        return await asyncio.wait_for(self._reader.read(), 5)

    async def _read(self) -> None:
        with suppress(ConnectionError):
            while data := await self._loop.sock_recv(self.socket, 1 << 16):
                self._reader.feed_data(data)
        self._reader.feed_eof()


async def ask(r: Rig, raw: bytes, target: str = INVOKE, *, chunked: bool = False, fields: str = "") -> Answer:
    """One large request on a connection of its own."""
    async with Sender(r.port) as sender:
        sender.sending(head(None if chunked else len(raw), target, fields) + framed(raw, chunked, last=True))
        return await sender.answer(30)


async def begin(r: Rig, up: Taker, sender: Sender, raw: bytes, cut: int, target: str = INVOKE) -> bytes:
    """Send the beginning and wait until the upstream has begun to read it; what is left to send."""
    before = len(up.uploads)
    await sender.send(head(len(raw), target) + raw[:cut])
    await until(lambda: len(up.uploads) > before and len(up.last.body) > 0)
    return raw[cut:]


SMALL = replace(QUICK, passed_bytes=4096, large_bytes=1024, health=HealthPolicy(errors=1))
PATIENT = HealthPolicy(errors=1_000_000, window_requests=1_000_000)
CUT = 5000
RAW = custom(8000)
"""Bodies are large early, one failure ejects; where none may, `PATIENT`. So much of `RAW` begins it."""


def to(up: Taker, **more: Any) -> RoutingTable:
    return table(entity("a", 100, up.url), **more)


async def is_clean(r: Rig, *ups: Taker, limits: Limits = SMALL) -> None:
    await nothing_is_left(r, *ups)  # type: ignore[arg-type]
    assert r.router.desk.budget.left == limits.buffered_bytes
    assert r.router.desk.inflight == 0


def blamed(r: Rig) -> list[str]:
    """For what replicas were taken out of use."""
    return [reason for _, _, reason in r.router.books.metrics.ejections.values]
