"""Connections to upstreams: one pool of idle sockets per origin, and the rules by which one is used again.

A socket goes back to its pool only if the request was sent in full, the answer is complete, not a byte came
behind it and both sides keep the connection. Everything else is closed: a doubtful socket would hand one
caller's answer to the next.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from functools import cache
from pathlib import Path
from typing import Final, cast

from servestate.runtime.router.guards import egress
from servestate.runtime.router.http.heads import AnswerHead, BadAnswer
from servestate.runtime.router.http.http1 import AnswerReader
from servestate.runtime.router.limits import Limits

_READ_BYTES: Final = 64 << 10
_READ: Final = memoryview(bytearray(_READ_BYTES))


class Exchange:
    """Whoever waits for an answer. Exactly one of `failed_to_connect`, `lost`, or an `answered` that is
    complete ends it, unless the exchange cancels first; after a cancel nothing is called any more."""

    __slots__ = ()

    def connected(self, connection: UpstreamConnection) -> None:
        """A fresh connection stands and nothing was written to it."""
        raise NotImplementedError

    def failed_to_connect(self, why: str) -> None:
        """No byte was written."""
        raise NotImplementedError

    def answered(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """`payload` is the next piece of a body of `length` bytes (None: delimited otherwise). If
        `complete`, it is the last one and the connection has already been given back."""
        raise NotImplementedError

    def relayed(self, chunk: bytes) -> bool:
        """Offered one whole chunk as it came, in the middle of an answer. False: not taken, to be read."""
        raise NotImplementedError

    def lost(self, why: str, *, bad: bool) -> None:
        """The connection ended before the answer did; `bad`: the upstream broke the protocol."""
        raise NotImplementedError

    def fill(self, full: bool) -> None:
        """What was written waits here, more of it than should, or no longer. Of a request that was written
        at once nobody need know."""


class Origin:
    """Where an upstream is reached, with its idle connections, the most recently used last."""

    __slots__ = ("_retired", "idle", "limits")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.idle: list[UpstreamConnection] = []
        self._retired = False

    def take(self, now: float) -> UpstreamConnection | None:
        """An idle connection that may be used, or None."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.usable(now):
                return connection
            connection.close()
        return None

    def dial(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Open a connection for `exchange`; cancelling the task closes whatever there is of it."""
        return loop.create_task(self._dial(exchange, loop))

    async def _dial(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        connection = UpstreamConnection(self, loop)
        try:
            async with asyncio.timeout(self.limits.connect_s):
                await self._connect(connection, loop)
        except TimeoutError:
            connection.discard()
            exchange.failed_to_connect(f"no connection within {self.limits.connect_s:g} s")
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded
            exchange.failed_to_connect(str(error) or type(error).__name__)
        except asyncio.CancelledError:
            connection.discard()  # it may have been made in the very moment of the cancel
            raise
        else:
            if connection.is_closing():  # accepted and closed at once; nothing was written
                exchange.failed_to_connect("the connection was closed as soon as it was made")
            else:
                exchange.connected(connection)

    async def _connect(self, connection: UpstreamConnection, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError, or ValueError for a name that cannot be one."""
        raise NotImplementedError

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request."""
        if self._retired:
            connection.close()
        else:
            self.idle.append(connection)

    def retire(self) -> None:
        """Keep no connection any more: no table names this origin."""
        self._retired = True
        self.close_idle(before=float("inf"))

    def close_idle(self, before: float) -> None:
        """Close what has been idle since before that time of the loop's clock."""
        stale = [connection for connection in self.idle if connection.idle_since < before]
        if stale:
            self.idle = [connection for connection in self.idle if connection.idle_since >= before]
            for connection in stale:
                connection.close()


class TcpOrigin(Origin):
    """One scheme, host and port. `external`: written by the operator, so only where `Limits.egress` lets it
    go; the engines of this place come from its own providers."""

    __slots__ = ("_external", "_host", "_port", "_tls")

    def __init__(self, host: str, port: int, tls: bool, limits: Limits, *, external: bool = False) -> None:
        super().__init__(limits)
        self._external = external
        self._host = host
        self._port = port
        self._tls = tls

    async def _connect(self, connection: UpstreamConnection, loop: asyncio.AbstractEventLoop) -> None:
        tls = _tls_context() if self._tls else None
        if self._external:
            policy = self.limits.egress
            await egress.connect(loop, connection.as_protocol, self._host, self._port, tls, policy)
            return
        await loop.create_connection(connection.as_protocol, self._host, self._port, ssl=tls)


class UnixOrigin(Origin):
    """A socket in the file system."""

    __slots__ = ("_path",)

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(limits)
        self._path = path

    async def _connect(self, connection: UpstreamConnection, loop: asyncio.AbstractEventLoop) -> None:
        await loop.create_unix_connection(connection.as_protocol, str(self._path))


@cache
def _tls_context() -> ssl.SSLContext:
    """One context for all origins: certificates and host names are verified, loading the roots is slow."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamConnection:
    """One socket to an origin: idle, or busy with one exchange.

    An `asyncio.BufferedProtocol` by its methods; see `client.ClientConnection` for why it does not inherit
    from it. While what comes is small the loop is given a plain `asyncio.Protocol` in its stead: then it
    reads with less ado, though more at once.
    """

    __slots__ = (
        "_exchange",
        "_loop",
        "_made",
        "_origin",
        "_plain",
        "_reader",
        "_transport",
        "idle_since",
        "unsent",
    )

    def __init__(self, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self._origin = origin
        self._loop = loop
        self._exchange: Exchange | None = None
        self._reader = AnswerReader(origin.limits)
        self._transport: asyncio.Transport
        self._made = False
        self._plain = True
        self.idle_since = 0.0
        self.unsent = False  # the end of a request that is sent in pieces

    def as_protocol(self) -> asyncio.BaseProtocol:
        """What is given to a loop at first."""
        return cast(asyncio.BaseProtocol, _Plain(self))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self._transport.set_write_buffer_limits(high=self._origin.limits.write_buffer_bytes)
        self._made = True

    def is_closing(self) -> bool:
        """Whether the connection is no longer one."""
        return self._transport.is_closing()

    def usable(self, now: float) -> bool:
        """Whether a request may be written: after a longer idle time the socket itself is asked."""
        if self._transport.is_closing():
            return False
        if now - self.idle_since < self._origin.limits.upstream_trust_s:
            return True
        return not _readable(self._transport)

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Write a request, or its beginning; the exchange hears of the answer."""
        self._exchange = exchange
        self._reader.restart()
        self._transport.write(request)

    def write(self, more: bytes) -> None:
        """Write the next piece of a request."""
        if not self._transport.is_closing():  # which the exchange will hear of
            self._transport.write(more)

    def cancel(self) -> None:
        """The exchange wants no answer any more: the upstream sees its connection go, at once."""
        self._exchange = None
        self._transport.abort()

    def discard(self) -> None:
        """Drop a connection that nobody will use, made or not."""
        if self._made:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    def pause(self) -> None:
        """Stop reading: the client is slower than the upstream."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go, for all connections the same, since they are taken out at once. A loop's
        own buffer is four times as large, and a client that does not read is owed what one read brought."""
        return _READ

    def buffer_updated(self, count: int) -> None:
        """So many bytes have come."""
        self.data_received(bytes(_READ[:count]))

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer have come."""
        exchange = self._exchange
        if exchange is None:  # nobody asked: what comes now could only poison the next answer
            self._transport.abort()
            return
        reader = self._reader
        decoder = reader.decoder
        if decoder is not None and decoder.is_whole_chunk(data) and exchange.relayed(data):
            if not self._plain:
                self._read_as(self.as_protocol(), plain=True)
            return
        if self._plain and len(data) > _READ_BYTES:
            self._read_as(cast(asyncio.BaseProtocol, self), plain=False)
        try:
            payload = reader.receive(data)
        except BadAnswer as error:
            self.cancel()
            exchange.lost(f"the upstream's answer cannot be used: {error}", bad=True)
            return
        head = reader.head
        if reader.complete and head is not None:
            self._settle(head)
        if head is not None:
            exchange.answered(head, reader.length, payload, reader.complete)

    def _read_as(self, protocol: asyncio.BaseProtocol, *, plain: bool) -> None:
        """Have the loop read in another way, which it does once it begins to read anew."""
        self._plain = plain
        transport = self._transport
        if not transport.is_closing():
            reading = transport.is_reading()
            transport.pause_reading()
            transport.set_protocol(protocol)
            if reading:
                transport.resume_reading()

    def pause_writing(self) -> None:
        """The upstream reads slower than is written."""
        if self._exchange is not None:
            self._exchange.fill(True)

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._exchange is not None:
            self._exchange.fill(False)

    def _settle(self, head: AnswerHead) -> None:
        """The answer is complete: back to the pool, or closed."""
        self._exchange = None
        if head.keep_alive and not self.unsent and self._transport.get_write_buffer_size() == 0:
            self.idle_since = self._loop.time()
            self._origin.give_back(self)
        else:
            self._transport.abort()

    def eof_received(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        reader = self._reader
        reader.end_of_input()
        if reader.complete and reader.head is not None:
            self._exchange = None
            exchange.answered(reader.head, None, b"", True)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self._exchange is not None:
            self._hear_last()
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            if self in self._origin.idle:
                self._origin.idle.remove(self)
            return
        begun = "in the middle of its answer" if self._reader.begun else "before it answered"
        exchange.lost(f"the upstream closed the connection {begun}", bad=False)

    def _hear_last(self) -> None:
        """A write failed, and what had come by then was not read: a server that refuses a request without
        having read its body resets the connection right behind its answer. With TLS it is cipher."""
        if self._transport.get_extra_info("ssl_object") is not None:
            return
        sock: socket.socket = self._transport.get_extra_info("socket")
        try:
            with socket.socket(fileno=os.dup(sock.fileno())) as own:
                own.setblocking(False)
                most = self._origin.limits.error_body_bytes
                while self._exchange is not None and most > 0 and (data := own.recv(most)):
                    most -= len(data)
                    self.data_received(data)
        except (OSError, ValueError):
            return  # nothing more is to be had


class _Plain:
    """A connection without what a loop would know its buffer by: an `asyncio.Protocol` by its attributes."""

    __slots__ = (
        "connection_lost",
        "connection_made",
        "data_received",
        "eof_received",
        "pause_writing",
        "resume_writing",
    )

    def __init__(self, connection: UpstreamConnection) -> None:
        self.connection_made = connection.connection_made
        self.data_received = connection.data_received
        self.eof_received = connection.eof_received
        self.connection_lost = connection.connection_lost
        self.pause_writing = connection.pause_writing
        self.resume_writing = connection.resume_writing


def _readable(transport: asyncio.Transport) -> bool:
    """Whether an idle socket has news, which can only be its end or bytes that nobody asked for."""
    sock: socket.socket = transport.get_extra_info("socket")
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))
