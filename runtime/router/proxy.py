"""One request on its way: replica, request, answer, and what becomes of it when something breaks.

| event                                    | no content sent to the client yet | after                     |
| ---------------------------------------- | --------------------------------- | ------------------------- |
| no connection, nothing written           | next replica, then 503            | -                         |
| sent, then lost, late or empty           | 504, not safe to repeat           | cut                       |
| not HTTP, surplus bytes                  | 500, not safe to repeat           | cut                       |
| 4xx or 5xx                               | passed on as one of our statuses  | -                         |
| client gone                              | upstream cancelled                | upstream cancelled        |

Cut: an event stream gets one error event and no `[DONE]`, chunks end without the last one, a body of known
length ends short. No case sends a POST twice.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from http import HTTPStatus
from typing import Protocol

from servestate.runtime.router import errors
from servestate.runtime.router.body import Kind
from servestate.runtime.router.chunked import LAST
from servestate.runtime.router.errors import Failure
from servestate.runtime.router.headers import TO_CLIENT, TO_UPSTREAM
from servestate.runtime.router.http1 import AnswerReader, Field
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routing import LiveBackend, LiveEntity
from servestate.runtime.router.sse import EventStream
from servestate.runtime.router.upstream import UpstreamConnection

_STATUS_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode("ascii")) for status in HTTPStatus
}


class Client(Protocol):
    """What an exchange needs of the connection that the request came by."""

    deadline: float
    """When the exchange wants `Exchange.expire` to be called, on the loop's clock."""

    @property
    def http10(self) -> bool:
        """The client knows no chunks: the close delimits."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays after this answer; never for HTTP/1.0."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def finished(self) -> None:
        """The answer is whole."""

    def fail(self, failure: Failure, answer_fields: bytes) -> None:
        """Answer with an error; nothing was written before."""

    def cut(self, final: bytes) -> None:
        """Send `final`, then end the connection so that the answer cannot be taken for whole."""


class Phase(Enum):
    """Where an exchange stands; what may happen is decided by it, and ENDED ignores everything."""

    CONNECTING = 1
    WAITING = 2
    """Sent, and nothing of the answer was passed on."""
    COLLECTING = 3
    """The answer is an error, read for its message."""
    RELAYING = 4
    ENDED = 5


class Exchange:
    """From the choice of a replica to the last byte of the answer."""

    __slots__ = (
        "_backend",
        "_body",
        "_chunked",
        "_client",
        "_dialling",
        "_entity",
        "_error",
        "_events",
        "_fields",
        "_kind",
        "_limits",
        "_loop",
        "_phase",
        "_reader",
        "_request_id",
        "_tried",
        "_upstream",
    )

    def __init__(
        self,
        client: Client,
        entity: LiveEntity,
        kind: Kind,
        body: bytes,
        fields: list[Field],
        request_id: bytes,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._client = client
        self._entity = entity
        self._kind = kind
        self._body = body
        self._fields = fields
        self._request_id = request_id
        self._limits = limits
        self._loop = loop
        self._phase = Phase.CONNECTING
        self._backend: LiveBackend | None = None
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._tried: list[LiveBackend] = []
        self._events: EventStream | None = None
        self._reader: AnswerReader | None = None
        self._error = b""
        self._chunked = False

    def start(self) -> None:
        """Count the request and send it to a replica."""
        counters = self._entity.counters
        counters.requests += 1
        counters.inflight += 1
        now = self._loop.time()
        self._client.deadline = now + self._limits.request_s
        self._try_next(now)

    # From the client.

    def abandon(self) -> None:
        """The client is gone."""
        if self._phase is not Phase.ENDED:
            self._drop_upstream()
            self._end()

    def pause(self) -> None:
        """The client reads slower than the upstream writes."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._upstream is not None:
            self._upstream.resume()
            self._client.deadline = self._loop.time() + self._limits.stall_s

    def expire(self) -> None:
        """The client's `deadline` has passed."""
        if self._phase is Phase.RELAYING:
            self._fail(errors.lost(f"the answer made no progress for {self._limits.stall_s:g} s"))
        elif self._reader is not None and self._phase is Phase.WAITING:
            self._commit(self._reader, b"")  # a good status, but no content so far: pass the status on
        elif self._phase is Phase.CONNECTING:
            self._fail(errors.unavailable("no replica could be reached in time"))
        else:
            self._fail(errors.lost(f"no answer within {self._limits.request_s:g} s"))

    # From the upstream.

    def connected(self, connection: UpstreamConnection) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._send(connection)

    def failed_to_connect(self, why: str) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        now = self._loop.time()
        if self._backend is not None:
            self._backend.gauge.avoid_until = now + self._limits.avoid_s
            self._tried.append(self._backend)
            self._leave_backend()
        self._try_next(now)

    def answered(self, reader: AnswerReader, payload: bytes) -> None:
        """See `upstream.Exchange`."""
        if reader.complete:
            self._upstream = None
        if self._phase is Phase.RELAYING:
            self._relay(reader, payload)
        elif self._phase is Phase.COLLECTING or reader.status >= 300:
            self._collect(reader, payload)
        else:
            self._begin(reader, payload)

    def lost(self, why: str, *, bad: bool) -> None:
        """See `upstream.Exchange`."""
        self._upstream = None
        self._fail(errors.broken(why) if bad else errors.lost(why))

    # The way there.

    def _try_next(self, now: float) -> None:
        backend = self._entity.choose(self._tried, now)
        if backend is None:
            self._fail(errors.unavailable(self._why_unreachable()))
            return
        self._backend = backend
        backend.gauge.inflight += 1
        connection = backend.origin.take(now)
        if connection is not None:
            self._send(connection)
        else:
            self._dialling = backend.origin.dial(self, self._loop)

    def _why_unreachable(self) -> str:
        name = self._entity.route.name
        if not self._tried:
            return f"the served entity {name!r} is not ready"
        return f"no replica of the served entity {name!r} accepts connections"

    def _send(self, connection: UpstreamConnection) -> None:
        assert self._backend is not None
        self._upstream = connection
        self._phase = Phase.WAITING
        body = self._body
        fields = b"".join([b"%b: %b\r\n" % (TO_UPSTREAM[name], value) for name, value in self._fields])
        connection.send(
            self,
            b"%b%bx-request-id: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (self._backend.heads[self._kind], fields, self._request_id, len(body), body),
        )
        self._body = b""  # never needed again: nothing is sent twice

    # The way back.

    def _begin(self, reader: AnswerReader, payload: bytes) -> None:
        """A good status: hold it back until there is content, so that a dead stream is a clean error."""
        if self._reader is None:
            self._reader = reader
            self._client.deadline = min(self._client.deadline, self._loop.time() + self._limits.peek_s)
            if _is_event_stream(reader.fields):
                self._events = EventStream(self._limits.sse_line_bytes)
        if self._events is not None:
            payload = self._events.feed(payload)
            if reader.complete:
                payload += self._events.finish()
        if payload or reader.complete:
            self._commit(reader, payload)

    def _commit(self, reader: AnswerReader, payload: bytes) -> None:
        """Write the head, with what there is of the body."""
        self._phase = Phase.RELAYING
        framing = self._framing(reader)
        fields = b"".join([b"%b: %b\r\n" % (TO_CLIENT[name], value) for name, value in reader.fields])
        if self._chunked:
            payload = _chunk(payload, reader.complete)
        self._client.write(
            b"%b%b%bx-request-id: %b\r\n%b\r\n%b"
            % (_status_line(reader.status), fields, self._answer_fields(), self._request_id, framing, payload)
        )
        self._after_write(reader)

    def _framing(self, reader: AnswerReader) -> bytes:
        close = b"" if self._client.keep_alive else b"Connection: close\r\n"
        if reader.status == 204:
            return close
        if reader.length is not None and self._events is None:
            return b"Content-Length: %d\r\n%b" % (reader.length, close)
        if self._client.http10:
            return close
        self._chunked = True
        return b"Transfer-Encoding: chunked\r\n" + close

    def _relay(self, reader: AnswerReader, payload: bytes) -> None:
        if self._events is not None:
            payload = self._events.feed(payload)
            if reader.complete:
                payload += self._events.finish()
        if self._chunked:
            payload = _chunk(payload, reader.complete)
        if payload:
            self._client.write(payload)
        self._after_write(reader)

    def _after_write(self, reader: AnswerReader) -> None:
        if not reader.complete:
            self._client.deadline = self._loop.time() + self._limits.stall_s
        else:
            self._end()
            self._client.finished()

    def _collect(self, reader: AnswerReader, payload: bytes) -> None:
        """An error answer: read it, within bounds, and answer in our own words and shape."""
        self._phase = Phase.COLLECTING
        self._error += payload
        if reader.complete or len(self._error) > self._limits.error_body_bytes:
            self._drop_upstream()
            self._fail(errors.from_upstream(reader.status, self._error, reader.retry_after))

    # Ends.

    def _fail(self, failure: Failure) -> None:
        """The one way out with an error, before or after the answer has begun."""
        if self._phase is Phase.ENDED:
            return
        begun = self._phase is Phase.RELAYING
        answer_fields = self._answer_fields()
        self._drop_upstream()
        if begun or failure.status >= 500:
            self._entity.counters.errors += 1
        self._end()
        if not begun:
            self._client.fail(failure, answer_fields)
        else:
            self._client.cut(self._last_event(failure))

    def _last_event(self, failure: Failure) -> bytes:
        if self._events is None:
            return b""
        data = self._events.before_error() + errors.event(failure)
        return _chunk(data, last=False) if self._chunked else data

    def _answer_fields(self) -> bytes:
        return self._backend.answer_fields if self._backend is not None else self._entity.answer_fields

    def _drop_upstream(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.cancel()
            self._upstream = None

    def _leave_backend(self) -> None:
        if self._backend is not None:
            self._backend.gauge.inflight -= 1
            self._backend = None

    def _end(self) -> None:
        self._phase = Phase.ENDED
        self._leave_backend()
        self._entity.counters.inflight -= 1


def _status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def _chunk(payload: bytes, last: bool) -> bytes:
    framed = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
    return framed + LAST if last else framed


def _is_event_stream(fields: list[Field]) -> bool:
    """A compressed one is none to us: its lines cannot be read."""
    found = dict(fields)
    kind = found.get(b"content-type", b"")
    return kind[:17].lower() == b"text/event-stream" and b"content-encoding" not in found
