"""A proxy in front of a Docker socket that fails as it is told to, and remembers what was asked."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import assert_never

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Cut:
    """The daemon acts and begins its reply; the caller's connection ends without a byte of it."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The request reaches the daemon only after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The caller gets this and the daemon nothing."""

    status: int
    message: str = "said by the proxy"
    body: dict[str, object] | None = None
    """The whole reply, in place of the message."""


Fault = Cut | Delay | Answer


@dataclass
class Rule:
    """Which requests a fault befalls."""

    method: str
    path: str
    """A pattern found anywhere in the target; the API's version is not part of that."""
    fault: Fault
    nth: int | None = None
    """Only the nth request that matches, counted from 1; every one if None."""
    seen: int = 0

    def befalls(self, asked: Asked) -> bool:
        """Whether this request is the one. Counts it."""
        if asked.method != self.method or not re.search(self.path, asked.target):
            return False
        self.seen += 1
        return self.nth in (None, self.seen)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: the target is without the API's version, `/containers/create?name=x`."""

    method: str
    target: str
    fault: Fault | None = None


@dataclass
class SocketProxy:
    """Listens at `socket` in a thread of its own. Without rules everything passes.

    Hijacked connections and event streams pass too: after the head of a reply, bytes are carried as they
    come, and an end of one side's stream is carried to the other.
    """

    socket: Path
    upstream: Path
    rules: list[Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def host(self) -> str:
        """As DOCKER_HOST has it."""
        return f"unix://{self.socket}"

    @contextmanager
    def running(self) -> Iterator[SocketProxy]:
        """Serve until the block ends, then cut all connections."""
        ready, stop = threading.Event(), asyncio.Event()
        thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(ready, stop)))
        thread.start()
        try:
            assert ready.wait(5), f"no listener at {self.socket}"
            yield self
        finally:
            self._loop.call_soon_threadsafe(stop.set)
            thread.join()
            self._loop.close()

    def fault(self, method: str, path: str, fault: Fault, nth: int | None = 1) -> Rule:
        """Add a rule; it counts from now."""
        rule = Rule(method, path, fault, nth)
        self.rules.append(rule)
        return rule

    def count(self, method: str, path: str) -> int:
        """How many requests matched so far."""
        return sum(asked.method == method and bool(re.search(path, asked.target)) for asked in self.asked)

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        open_now: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            open_now.add(task)
            task.add_done_callback(open_now.discard)

        server = await asyncio.start_unix_server(accept, self.socket)
        ready.set()
        await stop.wait()
        server.close()
        for task in open_now:
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, FileNotFoundError, asyncio.IncompleteReadError):
                up_reader, up_writer = await asyncio.open_unix_connection(str(self.upstream))
                try:
                    await _Exchange(self, reader, writer, up_reader, up_writer).carry()
                finally:
                    up_writer.transport.abort()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def befallen(self, method: str, target: str) -> Asked:
        """Note a request and say which fault befalls it: that of the first rule."""
        plain = Asked(method, re.sub(r"^/v\d+\.\d+/", "/", target))
        befalling = [rule.fault for rule in self.rules if rule.befalls(plain)]
        noted = Asked(method, plain.target, befalling[0] if befalling else None)
        self.asked.append(noted)
        return noted


@dataclass
class _Exchange:
    """One caller's connection and the one to the daemon that belongs to it."""

    proxy: SocketProxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    up_reader: asyncio.StreamReader
    up_writer: asyncio.StreamWriter
    cut: bool = False
    awaited: deque[asyncio.Future[int]] = field(default_factory=deque)
    """The status of every reply that has not begun, in the order of the requests."""

    async def carry(self) -> None:
        """Carry both ways until the daemon's side has ended or a fault cuts."""
        asking = asyncio.ensure_future(self._requests())
        try:
            await self._replies()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _requests(self) -> None:
        while head := await _head(self.reader):
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            fields = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines[1:])}
            match self.proxy.befallen(method, target).fault:
                case Answer() as answer:
                    await _pass_body(self.reader, fields, None)
                    self.writer.write(_spelled(answer))
                    continue
                case Delay(seconds):
                    await asyncio.sleep(seconds)
                case Cut():
                    self.cut = True
                case None:
                    pass
                case other:
                    assert_never(other)
            status = asyncio.get_running_loop().create_future()
            self.awaited.append(status)
            self.up_writer.write(head)
            await _pass_body(self.reader, fields, self.up_writer)
            if "upgrade" in fields and await status in (101, 200):
                await _pump(self.reader, self.up_writer)  # hijacked: no more requests, only bytes
                return
        if self.up_writer.can_write_eof():
            self.up_writer.write_eof()

    async def _replies(self) -> None:
        """The daemon speaks only when asked, so the first bytes after a request are the head of its reply."""
        while data := await self.up_reader.read(65536):
            if self.cut:
                return
            if self.awaited:
                while HEAD_END not in data:
                    data += await self.up_reader.readuntil(b"\n")
                self.awaited.popleft().set_result(int(data.split(b" ", 2)[1]))
            self.writer.write(data)
            await self.writer.drain()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """The head of the next request; nothing at the end of the stream."""
    try:
        return await reader.readuntil(HEAD_END)
    except asyncio.IncompleteReadError:
        return b""


async def _pass_body(
    reader: asyncio.StreamReader, fields: dict[str, str], to: asyncio.StreamWriter | None
) -> None:
    """Carry the body of a request as it is framed; with nowhere to carry it, read it away."""
    if fields.get("transfer-encoding") == "chunked":
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            await _pass(reader, size + 2, to, before=line)
    else:
        await _pass(reader, int(fields.get("content-length", "0")), to)


async def _pass(
    reader: asyncio.StreamReader, size: int, to: asyncio.StreamWriter | None, before: bytes = b""
) -> None:
    data = before
    while True:
        if to:
            to.write(data)
            await to.drain()
        if not size:
            return
        data = await reader.read(min(size, 65536))
        if not data:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(data)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _spelled(answer: Answer) -> bytes:
    body = json.dumps(answer.body if answer.body is not None else {"message": answer.message}).encode()
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
