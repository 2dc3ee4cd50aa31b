"""Connections from clients: requests in, one at a time, answers out in order.

What comes while a request is in flight waits, within a bound, so that the client's leaving is seen at once:
a socket that is not read never says that it closed. Neither does one of which a large body is left unread
until its upstream takes more: its end stands behind all that it has sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, cast

from servestate.runtime.router import dispatch
from servestate.runtime.router.dispatch import Call
from servestate.runtime.router.guards.judging import Judging
from servestate.runtime.router.http import browser, errors
from servestate.runtime.router.http.errors import NO_SUCH_PATH, Failure, Refused, Shape, refused
from servestate.runtime.router.http.heads import RequestHead
from servestate.runtime.router.http.http1 import CONTINUE, RequestReader
from servestate.runtime.router.http.upstream import Origin
from servestate.runtime.router.parties import Client, Desk
from servestate.runtime.router.proxy import Exchange
from servestate.runtime.router.records.ids import REQUEST_IDS
from servestate.runtime.router.relay import Relay, request_bytes
from servestate.runtime.router.routes import (
    HealthCheck,
    Invocation,
    MetricsPage,
    ModelList,
    NotFound,
    OpenAICall,
    Route,
    ToManagement,
    resolve,
    resolve_with_management,
)

perf_counter: Final = time.perf_counter

NEVER: Final = float("inf")

_QUERIES: Final = (OpenAICall, Invocation)
_AT_ONCE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Management:
    """What a listener has that answers for the management API as well: where that is, where the whole router
    is asked for its metrics, and what it may itself be called in Host."""

    api: Origin
    reports: Origin
    names: frozenset[str]


class ClientConnection(Client):
    """One client's socket. `deadline` is when `expire` is due. `management` is None on the listener that has
    only the models.

    An `asyncio.Protocol` by its methods. It does not inherit from it: a class that does cannot be compiled
    to more than methods, and each of its attributes would be looked up by name.
    """

    __slots__ = (
        "_ahead",
        "_desk",
        "_discarded",
        "_exchange",
        "_held_since",
        "_lingering",
        "_loop",
        "_management",
        "_paused",
        "_reader",
        "_request_began",
        "_reserved",
        "_resolve",
        "_route",
        "_transport",
        "_upload",
        "_waiting",
        "_whole",
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
        self._exchange: Exchange | Relay | Judging | None = None
        self._route: Route | None = None
        self._ahead = b""
        self._discarded = 0
        self._lingering = False
        self._paused = False
        self._reserved = 0  # of the budget for large bodies
        self._waiting = False  # for room in it
        self._whole = False  # a large body has to be, before anything is done with it
        self._upload: Exchange | None = None  # where the rest of the body goes as it comes
        self._held_since = NEVER  # since when it is not read
        self.keep_alive = True
        self._request_began = 0.0
        self.deadline = NEVER
        self.moves_s = 0.0

    @property
    def http10(self) -> bool:
        """See `parties.Client`."""
        return self._reader.head is not None and self._reader.head.http10

    @property
    def shape(self) -> Shape:
        """See `parties.Client`."""
        return self._route.shape if self._route is not None else Shape.SERVING

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
        self._give_room()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._discard(data)
        elif self._exchange is None and not self._paused:
            self._consume(self._ahead + data if self._ahead else data)
        elif self._upload is not None:
            self._consume(data)
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
            self._reset()
        elif self._exchange is not None:
            self._exchange.expire()
        elif self._waiting:
            self._refuse(Refused(errors.unavailable("too many large requests are on their way"), close=True))
        elif self._reader.begun:
            self._refuse(refused("the request did not arrive in time", errors.BAD_REQUEST, close=True))
        else:
            self._transport.close()

    def stop(self) -> None:
        """The router is going: close when nothing is in flight, else after the answer that says so. One that
        has begun can no longer say it: the client would meet a closed socket with its next request, which
        is answered instead."""
        if self._exchange is None or not self._exchange.begun:
            self.keep_alive = False
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # From the exchange.

    def finished(self, now: float) -> None:
        """See `parties.Client`."""
        self._exchange = None
        self._end_upload()
        self._next_request(now)

    def fail(self, failure: Failure, answer_fields: bytes, request_id: bytes) -> None:
        """See `parties.Client`."""
        self._exchange = None
        self._end_upload()
        self._answer(failure, answer_fields, request_id)

    def cut(self, final: bytes) -> None:
        """See `parties.Client`."""
        self._exchange = None
        self._end_upload()
        if self._paused or self.http10:
            # An HTTP/1.0 client takes an orderly close for the end of the answer.
            self._reset()
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
            whole = reader.receive(data)
            if self._upload is not None:
                self._pass_on(self._upload, reader, whole)
            elif whole:
                self._dispatch(reader, reader.head)
            else:
                self._await_rest(reader)
        except Refused as refusal:
            if self._upload is not None:
                self._upload.refuse(refusal.failure)
            else:
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
            if reader.length <= limits.large_bytes:
                self._ask_for_body(reader, head)
        if reader.length > limits.large_bytes and not self._reserved:
            self._take_room(reader, head)
        if self._waiting:
            return
        self._await_body(reader)
        most = limits.passed_bytes
        held = reader.held
        if (
            not (self._whole or head.chunked)  # there are servers that know no chunks
            and held >= limits.large_bytes
            and reader.length > most
        ):
            self._begin_upload(self._route, reader, head)

    def _await_body(self, reader: RequestReader) -> None:
        """No slower than that."""
        limits = self._desk.limits
        allowed = limits.body_grace_s + reader.received / limits.body_bytes_per_s
        self.deadline = self._request_began + allowed

    # A large body that goes on before it is whole.

    def _begin_upload(self, route: Route, reader: RequestReader, head: RequestHead) -> None:
        """Take the request on now, if nothing needs the rest of its body for that."""
        desk = self._desk
        call: Call | None = None
        if isinstance(route, _QUERIES):
            began = perf_counter()
            try:
                call = dispatch.ask_early(desk, route, head, reader.peek(), reader.length)
                if call is not None:
                    self._check_room()
            except Refused as refusal:
                raise Refused(refusal.failure, close=True) from None
        if call is None:
            self._whole = True
            return
        reader.take()
        self._keep_room(desk.limits.passing_bytes)
        self.keep_alive = head.keep_alive and not desk.stopping
        self._take_on(call, began)

    def _pass_on(self, exchange: Exchange, reader: RequestReader, whole: bool) -> None:
        """The next piece of the body."""
        upload = exchange.upload
        assert upload is not None, "it is where the body goes"
        upload.more(reader.body if whole else reader.take(), self._loop.time(), last=whole)
        if whole:
            self.hold(False)
            self._upload = None
            self._ahead = reader.surplus
            self._keep_room(self._desk.limits.write_buffer_bytes)
            exchange.uploaded()
        elif self._held_since == NEVER and exchange.awaits_body:
            self._await_body(reader)

    def hold(self, held: bool) -> None:
        """See `parties.Client`."""
        if self._upload is None or held == (self._held_since != NEVER):
            return
        now = self._loop.time()
        if held:
            self._held_since = now
            self._transport.pause_reading()
        else:
            self._request_began += now - self._held_since  # it was not the client who was slow
            self._held_since = NEVER
            if self._upload.awaits_body:
                self._await_body(self._reader)
            self._transport.resume_reading()

    def _end_upload(self) -> None:
        """The exchange is over; a rest of the body that is still to come is nobody's."""
        self._held_since = NEVER
        if self._upload is not None:
            self._upload = None
            self.keep_alive = False

    def _check_browser(self, management: Management, head: RequestHead) -> None:
        browser.check(head, management.names, self._desk.access.keyring.hosts)

    def _check_early(self, route: Route, reader: RequestReader, head: RequestHead) -> None:
        """Answer before the body came, where that spares reading it."""
        if head.expects_continue or head.chunked or reader.length > self._desk.limits.large_bytes:
            if isinstance(route, NotFound | ModelList | HealthCheck):
                raise Refused(_no_such_path(), close=True)
            try:
                dispatch.check_head(self._desk, route, head)
            except Refused as refusal:
                raise Refused(refusal.failure, close=True) from None

    def _take_room(self, reader: RequestReader, head: RequestHead) -> None:
        """Room for the whole of a large body before more of it is read. How large one in chunks will be,
        nobody knows."""
        self._reserved = self._desk.limits.body_bytes if head.chunked else reader.length
        if self._desk.budget.take(self._reserved, self._has_room):
            self._ask_for_body(reader, head)
            return
        self._waiting = True
        self.deadline = self._loop.time() + self._desk.limits.body_grace_s
        self._transport.pause_reading()

    def _has_room(self) -> None:
        self._waiting = False
        head = self._reader.head
        assert head is not None, "the room is for its body"
        self._request_began = self._loop.time()
        self.deadline = self._request_began + self._desk.limits.body_grace_s
        self._ask_for_body(self._reader, head)
        self._transport.resume_reading()
        self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """What is here of a body that has got its room may be enough to begin, though no more comes."""
        if self._exchange is not None or self._lingering or self._paused or self._waiting:
            return
        if not self._reserved:
            return
        if not self._transport.is_closing():
            self._consume(b"")

    def _ask_for_body(self, reader: RequestReader, head: RequestHead) -> None:
        if head.expects_continue and not reader.received:
            self._transport.write(CONTINUE)

    def _keep_room(self, size: int) -> None:
        """No more than that of what is held."""
        if self._reserved > size:
            self._desk.budget.give(self._reserved - size)
            self._reserved = size

    def _give_room(self) -> None:
        if self._waiting:
            self._waiting = False
            self._desk.budget.leave(self._has_room)
        elif self._reserved:
            self._desk.budget.give(self._reserved)
        self._reserved = 0

    def _dispatch(self, reader: RequestReader, head: RequestHead | None) -> None:
        assert head is not None
        self._ahead = reader.surplus
        self.keep_alive = head.keep_alive and not self._desk.stopping
        if self._management is not None:
            self._check_browser(self._management, head)
        route = self._route = self._route or self._resolve(head.method, head.target)
        desk = self._desk
        if isinstance(route, _QUERIES):
            self._check_room()
            began = perf_counter()
            call = dispatch.ask(desk, route, head, reader.body)
            if call.endpoint.guard_input is None:
                self._take_on(call, began)
            else:
                self._exchange = judging = Judging(self, call, began, desk, self._loop)
                judging.start(call.endpoint.guard_input)
        elif isinstance(route, ModelList):
            self._send(200, b"", dispatch.models(desk, head), REQUEST_IDS.new())
        elif isinstance(route, HealthCheck):
            status, said = (503, b"stopping") if desk.stopping else (200, b"ok")
            self._send(status, b"", b'{"status":"%b"}' % said, REQUEST_IDS.new())
        elif isinstance(route, ToManagement):
            self._relay(head, reader.body)
        elif isinstance(route, MetricsPage):
            dispatch.check_metrics(desk, head)
            self._relay_metrics()
        else:
            raise Refused(_no_such_path())

    def _check_room(self) -> None:
        """Raises Refused (503)."""
        if self._desk.inflight >= self._desk.limits.inflight:
            raise Refused(errors.unavailable("the router has as many requests under way as it may"))

    def judged(self, call: Call, began: float) -> None:
        """A guard has nothing against the request."""
        self._exchange = None
        self._take_on(call, began)

    def refused(self, refusal: Refused, call: Call) -> None:
        """A guard has refused the request."""
        self._exchange = None
        self._refuse(refusal, call.endpoint.name)

    def _take_on(self, call: Call, began: float) -> None:
        desk = self._desk
        try:
            dispatch.choose(desk, call)
        except Refused as refusal:
            if call.passage is not None:
                self.keep_alive = False
            self._refuse(refusal, call.endpoint.name)
            return
        exchange = Exchange(self, call, REQUEST_IDS.new(), began, desk, self._loop)
        self._exchange = exchange
        if call.passage is not None:
            self._upload = exchange
            exchange.start()
            if self._upload is not None and exchange.upload is not None:
                if exchange.upload.flows:  # over a connection that stood: nobody has told it to go on
                    self._await_body(self._reader)
                else:
                    self.hold(True)
            return
        exchange.start()
        mirror = call.endpoint.mirror
        if mirror is not None:
            mirror.offered(call, desk, self._loop)

    def _relay(self, head: RequestHead, content: bytes) -> None:
        assert self._management is not None  # no other listener has such a route
        request_id = REQUEST_IDS.new()
        request = request_bytes(head, content, self._peer(), request_id)
        self._relay_to(self._management.api, request, request_id)

    def _relay_metrics(self) -> None:
        assert self._management is not None  # no other listener has such a route
        request_id = REQUEST_IDS.new()
        self._relay_to(self._management.reports, b"GET /metrics HTTP/1.1\r\nHost: router\r\n\r\n", request_id)

    def _relay_to(self, origin: Origin, request: bytes, request_id: bytes) -> None:
        relay = Relay(self, origin, request, request_id, self._desk.limits, self._loop)
        self._exchange = relay
        relay.start()

    def _peer(self) -> bytes:
        """Who is at the other end, as IP:PORT."""
        host, port = (self._transport.get_extra_info("peername") or ("gone", 0))[:2]
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")

    def _next_request(self, now: float) -> None:
        """The answer is written: go on, or close."""
        if self._reserved:
            self._give_room()
        if not self.keep_alive:
            self._close_gently()
            return
        self._reader.restart()
        self._route = None
        self._whole = False
        self._request_began = 0.0
        limits = self._desk.limits
        self.deadline = now + (limits.farewell_s if self._desk.stopping else limits.idle_s)
        if self._ahead and not self._paused:
            # Not from here: a client that sends many requests at once would be served ever deeper.
            self._loop.call_soon(self._consume_ahead)

    def _consume_ahead(self) -> None:
        if self._exchange is not None or self._lingering or self._paused or self._waiting:
            return
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._ahead:
            self._consume(self._ahead)

    # Answers of the router's own.

    def _refuse(self, refusal: Refused, endpoint: str = "") -> None:
        if refusal.close:
            self.keep_alive = False
        request_id = REQUEST_IDS.new()
        failure = refusal.failure
        self._desk.books.refused(endpoint or self._endpoint(), failure.status, failure.code, request_id)
        # Only of a call that was let in: to others a name in the path must not be confirmed.
        named = b"x-servestate-endpoint: %b\r\n" % endpoint.encode("ascii") if endpoint else b""
        self._answer(failure, named, request_id)

    def _endpoint(self) -> str:
        """The endpoint that is meant, as far as the path says so and there is one."""
        route = self._route
        named = route.endpoint if isinstance(route, Invocation) else ""
        return named if named in self._desk.table.endpoints else ""

    def _answer(self, failure: Failure, answer_fields: bytes, request_id: bytes) -> None:
        fields = answer_fields + errors.fields(failure)
        self._send(failure.status, fields, errors.body(failure, self.shape), request_id)

    def _send(self, status: int, fields: bytes, content: bytes, request_id: bytes) -> None:
        if self._reader.head is not None and self._reader.head.method == b"HEAD":
            # Its answer has a length and no body; closing leaves no doubt about which it was.
            self.keep_alive, content = False, b""
        if not self.keep_alive:
            fields += b"Connection: close\r\n"
        self._transport.write(
            b"HTTP/1.1 %d %b\r\n%bx-request-id: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, _phrase(status), fields, request_id, len(content), content)
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

    def _reset(self) -> None:
        """Close so that the client notices, and so that the system keeps nothing: what it has not taken yet
        would stay in memory for minutes, megabytes of it (`SO_LINGER` of socket(7) with a time of 0)."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._transport.abort()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > self._desk.limits.drain_bytes:
            self._transport.abort()


def _no_such_path() -> Failure:
    return Failure(404, NO_SUCH_PATH, "there is no such path or verb")


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")
