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
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from servestate.runtime.router import errors
from servestate.runtime.router.chunked import encode
from servestate.runtime.router.dispatch import Call
from servestate.runtime.router.errors import Failure
from servestate.runtime.router.heads import STATUS_LINES, AnswerHead
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routing import LiveBackend
from servestate.runtime.router.sse import EventStream
from servestate.runtime.router.upstream import UpstreamConnection

_REQUEST_ID = b"x-request-id: "
_CONTENT_LENGTH = b"\r\nContent-Length: "


class Client(Protocol):
    """What an exchange needs of the connection that the request came by."""

    deadline: float
    """When the exchange wants `Exchange.expire` to be called, on the loop's clock."""

    write: Callable[[bytes], None]
    """Send bytes."""

    @property
    def http10(self) -> bool:
        """The client knows no chunks: the close delimits."""

    keep_alive: bool
    """Whether the connection stays after this answer; never for HTTP/1.0."""

    def finished(self, now: float) -> None:
        """The answer is whole, `now` on the loop's clock."""

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


# As globals: the look-up through the class costs more than the comparison.
_CONNECTING, _WAITING, _COLLECTING = Phase.CONNECTING, Phase.WAITING, Phase.COLLECTING
_RELAYING, _ENDED = Phase.RELAYING, Phase.ENDED


class Exchange:
    """From the choice of a replica to the last byte of the answer."""

    __slots__ = (
        "_backend",
        "_began",
        "_body",
        "_chunked",
        "_client",
        "_dialling",
        "_entity",
        "_error",
        "_events",
        "_fields",
        "_held",
        "_kind",
        "_limits",
        "_loop",
        "_phase",
        "_request_id",
        "_tried",
        "_upstream",
    )

    def __init__(
        self,
        client: Client,
        call: Call,
        fields: bytes,
        request_id: bytes,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._client = client
        self._entity, self._kind, self._body = call
        self._fields = fields
        self._request_id = request_id
        self._limits = limits
        self._loop = loop
        self._phase = _CONNECTING
        self._began = 0.0
        self._backend: LiveBackend | None = None
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._tried: tuple[LiveBackend, ...] = ()
        self._held: AnswerHead | None = None  # a good head that waits for content
        self._events: EventStream | None = None
        self._chunked = False
        self._error = b""

    def start(self) -> None:
        """Count the request and send it to a replica."""
        counters = self._entity.counters
        counters.requests += 1
        counters.inflight += 1
        self._began = now = self._loop.time()
        self._client.deadline = now + self._limits.request_s
        self._try_next(now)

    # From the client.

    def abandon(self) -> None:
        """The client is gone."""
        if self._phase is not _ENDED:
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
        if self._phase is _RELAYING:
            self._fail(errors.lost(f"the answer made no progress for {self._limits.stall_s:g} s"))
        elif self._held is not None:
            self._commit(self._held, self._held.length, b"", False)  # no content so far: pass the status on
        elif self._phase is _CONNECTING:
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
            self._tried += (self._backend,)
            self._backend.gauge.inflight -= 1
            self._backend = None
        self._try_next(now)

    def answered(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """See `upstream.Exchange`."""
        if complete:
            self._upstream = None
            if length is None and not head.chunked and self._broke_off(head):
                self._fail(errors.lost("the upstream closed the connection before its answer was whole"))
                return
        if self._phase is _RELAYING:
            self._relay(payload, complete)
        elif head.status >= 300:
            self._collect(head, payload, complete)
        elif head.event_stream:
            self._begin_stream(head, payload, complete)
        elif payload or complete:
            self._commit(head, length, payload, complete)
        else:
            self._hold(head)

    def relayed(self, chunk: bytes) -> bool:
        """See `upstream.Exchange`."""
        events = self._events
        if events is None or not self._chunked or not events.passes(chunk):
            return False
        client = self._client
        client.write(chunk)
        client.deadline = self._loop.time() + self._limits.stall_s
        return True

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
        self._phase = _WAITING
        body = self._body
        self._body = b""  # never needed again: nothing is sent twice
        head = self._backend.heads[self._kind]
        length = b"%d" % len(body)
        connection.send(
            self,
            b"".join(
                (
                    head,
                    self._fields,
                    _REQUEST_ID,
                    self._request_id,
                    _CONTENT_LENGTH,
                    length,
                    b"\r\n\r\n",
                    body,
                )
            ),
        )

    # The way back.

    def _hold(self, head: AnswerHead) -> None:
        """A good status without content: wait for some, so that a dead stream is still a clean error."""
        if self._held is None:
            self._held = head
            self._client.deadline = min(self._client.deadline, self._loop.time() + self._limits.peek_s)

    def _begin_stream(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        if self._events is None:
            self._events = EventStream(self._limits.sse_line_bytes)
        payload = self._events.feed(payload)
        if complete:
            payload += self._events.finish()
        if payload:
            self._commit(head, None, payload, complete)
        elif complete:
            self._fail(errors.lost("the upstream's event stream was empty"))
        else:
            self._hold(head)

    def _commit(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """Write the head, with what there is of the body."""
        assert self._backend is not None
        self._phase = _RELAYING
        framing = self._framing(head, length)
        if self._chunked:
            payload = encode(payload, complete)
        status = STATUS_LINES.get(head.status) or b"HTTP/1.1 %d \r\n" % head.status
        fields = self._backend.answer_fields
        self._client.write(
            b"".join(
                (status, head.fields, fields, _REQUEST_ID, self._request_id, framing, b"\r\n\r\n", payload)
            )
        )
        self._after_write(complete)

    def _framing(self, head: AnswerHead, length: int | None) -> bytes:
        close = b"" if self._client.keep_alive else b"\r\nConnection: close"
        if length is not None and self._events is None:
            return close if head.status == 204 else b"\r\nContent-Length: %d%b" % (length, close)
        if self._client.http10:
            return close
        self._chunked = True
        return b"\r\nTransfer-Encoding: chunked" + close

    def _relay(self, payload: bytes, complete: bool) -> None:
        if self._events is not None:
            payload = self._events.feed(payload)
            if complete:
                payload += self._events.finish()
        if self._chunked:
            payload = encode(payload, complete)
        if payload:
            self._client.write(payload)
        self._after_write(complete)

    def _after_write(self, complete: bool) -> None:
        now = self._loop.time()
        if complete:
            self._entity.counters.answered(2, now - self._began)
            self._end()
            self._client.finished(now)
        else:
            self._client.deadline = now + self._limits.stall_s

    def _broke_off(self, head: AnswerHead) -> bool:
        """Whether an answer that only the end of the connection ends stopped where it cannot end: without
        any content, or as an event stream that did not say that it is done."""
        if head.event_stream:
            return self._events is None or not self._events.said_done()
        return head.status < 300 and self._phase is _WAITING

    def _collect(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        """An error answer: read it, within bounds, and answer in our own words and shape."""
        self._phase = _COLLECTING
        self._error += payload
        if complete or len(self._error) > self._limits.error_body_bytes:
            self._drop_upstream()
            self._fail(errors.from_upstream(head.status, self._error, head.retry_after))

    # Ends.

    def _fail(self, failure: Failure) -> None:
        """The one way out with an error, before or after the answer has begun."""
        if self._phase is _ENDED:
            return
        begun = self._phase is _RELAYING
        answer_fields = self._answer_fields()
        self._drop_upstream()
        if begun or failure.status >= 500:
            self._entity.counters.errors += 1
        hundreds = 5 if begun else failure.status // 100
        self._entity.counters.answered(hundreds, self._loop.time() - self._began)
        self._end()
        if not begun:
            self._client.fail(failure, answer_fields)
        else:
            self._client.cut(self._last_event(failure))

    def _last_event(self, failure: Failure) -> bytes:
        if self._events is None:
            return b""
        data = self._events.before_error() + errors.event(failure)
        return encode(data, last=False) if self._chunked else data

    def _answer_fields(self) -> bytes:
        return self._backend.answer_fields if self._backend is not None else self._entity.answer_fields

    def _drop_upstream(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.cancel()
            self._upstream = None

    def _end(self) -> None:
        self._phase = _ENDED
        self._entity.counters.inflight -= 1
        backend = self._backend
        if backend is not None:
            backend.gauge.inflight -= 1
            self._backend = None
