"""Connections from clients: requests in, one at a time, answers out in order.

What comes while a request is in flight waits, within a bound, so that the client's leaving is seen at once:
a socket that is not read never says that it closed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import Protocol, cast

from servestate.runtime.router import browser, dispatch, errors
from servestate.runtime.router.errors import NO_SUCH_PATH, Failure, Refused, Shape, refused
from servestate.runtime.router.heads import RequestHead
from servestate.runtime.router.http1 import CONTINUE, RequestReader
from servestate.runtime.router.proxy import Exchange
from servestate.runtime.router.relay import Relay, request_bytes
from servestate.runtime.router.routes import (
    Invocation,
    ModelList,
    NotFound,
    OpenAICall,
    Route,
    ToManagement,
    resolve,
    resolve_with_management,
)
from servestate.runtime.router.upstream import Origin

NEVER = float("inf")

_QUERIES = (OpenAICall, Invocation)


class Desk(dispatch.Desk, Protocol):
    """What all connections share: what requests are decided by, and who is connected."""

    clients: set[ClientConnection]
    stopping: bool

    def left(self, client: ClientConnection) -> None:
        """The client's socket is closed."""


@dataclass(frozen=True, slots=True)
class Management:
    """What a listener has that answers for the management API as well: where that is, and what it may itself
    be called in Host."""

    api: Origin
    names: frozenset[str]


class _RequestIds:
    """Ids that no caller chose: unique over processes by a random part, within one by a count."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex().encode("ascii")
        self._count = count(1)

    def __next__(self) -> bytes:
        return b"%b-%x" % (self._prefix, next(self._count))


_REQUEST_IDS = _RequestIds()


class ClientConnection(asyncio.Protocol):
    """One client's socket. `deadline` is when `expire` is due, on the loop's clock. `management` is None on
    the listener that has only the models."""

    __slots__ = (
        "_ahead",
        "_desk",
        "_discarded",
        "_exchange",
        "_lingering",
        "_loop",
        "_management",
        "_paused",
        "_reader",
        "_request_began",
        "_resolve",
        "_route",
        "_transport",
        "deadline",
        "keep_alive",
        "write",
    )

    def __init__(
        self, desk: Desk, loop: asyncio.AbstractEventLoop, management: Management | None = None
    ) -> None:
        self._desk = desk
        self._loop = loop
        self._management = management
        self._resolve = resolve if management is None else resolve_with_management
        self._reader = RequestReader(desk.limits)
        self._transport: asyncio.Transport
        self.write: Callable[[bytes], None]
        self._exchange: Exchange | Relay | None = None
        self._route: Route | None = None
        self._ahead = b""
        self._discarded = 0
        self._lingering = False
        self._paused = False
        self.keep_alive = True
        self._request_began = 0.0
        self.deadline = NEVER

    @property
    def http10(self) -> bool:
        """See `proxy.Client`."""
        return self._reader.head is not None and self._reader.head.http10

    @property
    def idle(self) -> bool:
        """Between two requests, with all answers sent."""
        return self._exchange is None and not self._reader.begun and not self._lingering and not self._paused

    # From the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self.write = self._transport.write
        self._transport.set_write_buffer_limits(high=self._desk.limits.write_buffer_bytes)
        self._desk.clients.add(self)
        self.deadline = self._loop.time() + self._desk.limits.header_s
        if len(self._desk.clients) > self._desk.limits.client_sockets:
            self._refuse(Refused(errors.unavailable("too many connections"), close=True))

    def connection_lost(self, error: Exception | None) -> None:
        self._desk.left(self)
        self.deadline = NEVER
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._discard(data)
        elif self._exchange is None and not self._paused:
            self._consume(self._ahead + data if self._ahead else data)
        else:
            self._ahead += data
            if len(self._ahead) > self._desk.limits.ahead_bytes:
                self._transport.pause_reading()

    def eof_received(self) -> None:
        if self._exchange is not None:  # gone: no wait until what it never read is flushed
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._paused = False
        if self._exchange is not None:
            self._exchange.resume()
        elif self._ahead:
            self._consume_ahead()

    # From the sweep.

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = NEVER
        if self._lingering or self._paused:
            self._transport.abort()
        elif self._exchange is not None:
            self._exchange.expire()
        elif self._reader.begun:
            self._refuse(refused("the request did not arrive in time", errors.BAD_REQUEST, close=True))
        else:
            self._transport.close()

    def stop(self) -> None:
        """The router is going: close when nothing is in flight, else after the answer."""
        self.keep_alive = False
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # From the exchange.

    def finished(self, now: float) -> None:
        """See `proxy.Client`."""
        self._exchange = None
        self._next_request(now)

    def fail(self, failure: Failure, answer_fields: bytes) -> None:
        """See `proxy.Client`."""
        self._exchange = None
        self._answer(failure, answer_fields)

    def cut(self, final: bytes) -> None:
        """See `proxy.Client`."""
        self._exchange = None
        if self._paused or self.http10:
            # An HTTP/1.0 client takes an orderly close for the end of the answer.
            self._transport.abort()
            return
        if final:
            self._transport.write(final)
        self._lingering = True
        self.deadline = self._loop.time() + self._desk.limits.linger_s
        self._transport.close()

    # Requests.

    def _consume(self, data: bytes) -> None:
        """Bytes of the request that is being read."""
        self._ahead = b""
        reader = self._reader
        try:
            if reader.receive(data):
                self._dispatch(reader, reader.head)
            else:
                self._await_rest(reader)
        except Refused as refusal:
            self._refuse(refusal)

    def _await_rest(self, reader: RequestReader) -> None:
        limits = self._desk.limits
        now = self._loop.time()
        head = reader.head
        if head is None:
            if not self._request_began and reader.begun:
                self._request_began = now
                self.deadline = now + limits.header_s
            return
        if self._route is None:
            if self._management is not None:
                self._check_browser(self._management, head)
            self._route = self._resolve(head.method, head.target)
            self._request_began = now
            self._check_early(self._route, reader, head)
        self.deadline = self._request_began + limits.body_grace_s + reader.received / limits.body_bytes_per_s

    def _check_browser(self, management: Management, head: RequestHead) -> None:
        browser.check(head, management.names, self._desk.access.keyring.hosts)

    def _check_early(self, route: Route, reader: RequestReader, head: RequestHead) -> None:
        """Answer before the body came, where that spares reading it; else ask for it if the client waits."""
        if head.expects_continue or head.chunked or reader.length > self._desk.limits.drain_bytes:
            if isinstance(route, NotFound | ModelList):
                raise Refused(_no_such_path(), close=True)
            try:
                dispatch.check_head(self._desk, route, head)
            except Refused as refusal:
                raise Refused(refusal.failure, close=True) from None
        if head.expects_continue and not reader.received:
            self._transport.write(CONTINUE)

    def _dispatch(self, reader: RequestReader, head: RequestHead | None) -> None:
        assert head is not None
        self._ahead = reader.surplus
        self.keep_alive = head.keep_alive and not self._desk.stopping
        if self._management is not None:
            self._check_browser(self._management, head)
        route = self._route = self._route or self._resolve(head.method, head.target)
        desk = self._desk
        if isinstance(route, _QUERIES):
            call = dispatch.choose(desk, route, head, reader.body)
            exchange = Exchange(self, call, head.fields, next(_REQUEST_IDS), desk.limits, self._loop)
            self._exchange = exchange
            exchange.start()
        elif isinstance(route, ModelList):
            self._send(200, b"", dispatch.models(desk, head))
        elif isinstance(route, ToManagement):
            self._relay(head, reader.body)
        else:
            self._answer(_no_such_path())

    def _relay(self, head: RequestHead, content: bytes) -> None:
        assert self._management is not None  # no other listener has such a route
        request_id = next(_REQUEST_IDS)
        request = request_bytes(head, content, self._peer(), request_id)
        relay = Relay(self, self._management.api, request, request_id, self._desk.limits, self._loop)
        self._exchange = relay
        relay.start()

    def _peer(self) -> bytes:
        """Who is at the other end, as IP:PORT."""
        host, port = (self._transport.get_extra_info("peername") or ("gone", 0))[:2]
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")

    def _next_request(self, now: float) -> None:
        """The answer is written: go on, or close."""
        if not self.keep_alive:
            self._close_gently()
            return
        self._reader.restart()
        self._route = None
        self._request_began = 0.0
        self.deadline = now + self._desk.limits.idle_s
        if self._ahead and not self._paused:
            # Not from here: a client that sends many requests at once would be served ever deeper.
            self._loop.call_soon(self._consume_ahead)

    def _consume_ahead(self) -> None:
        if self._exchange is not None or self._lingering or self._paused or self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._ahead:
            self._consume(self._ahead)

    # Answers of the router's own.

    def _refuse(self, refusal: Refused) -> None:
        if refusal.close:
            self.keep_alive = False
        self._answer(refusal.failure)

    def _answer(self, failure: Failure, answer_fields: bytes = b"") -> None:
        shape = self._route.shape if self._route is not None else Shape.SERVING
        self._send(failure.status, answer_fields + errors.fields(failure), errors.body(failure, shape))

    def _send(self, status: int, fields: bytes, content: bytes) -> None:
        if self._reader.head is not None and self._reader.head.method == b"HEAD":
            # Its answer has a length and no body; closing leaves no doubt about which it was.
            self.keep_alive, content = False, b""
        if not self.keep_alive:
            fields += b"Connection: close\r\n"
        self._transport.write(
            b"HTTP/1.1 %d %b\r\n%bx-request-id: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, _phrase(status), fields, next(_REQUEST_IDS), len(content), content)
        )
        self._next_request(self._loop.time())

    # Closing.

    def _close_gently(self) -> None:
        """Say that no more comes, and read on a little: closing on unread bytes would destroy the answer."""
        self._lingering = True
        self._discarded = len(self._ahead)
        self._ahead = b""
        self.deadline = self._loop.time() + self._desk.limits.linger_s
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > self._desk.limits.drain_bytes:
            self._transport.abort()


def _no_such_path() -> Failure:
    return Failure(404, NO_SUCH_PATH, "there is no such path or verb")


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")
