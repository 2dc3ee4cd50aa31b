"""One request on its way: entity, replica, request, answer, and what becomes of it when something breaks.

| event                              | no content sent to the client yet                      | after     |
| ---------------------------------- | ------------------------------------------------------ | --------- |
| no connection, nothing written     | next replica, then the next entity, then 503           | -         |
| 429, 5xx; 408 of an external model | the next entity, then one of our statuses              | -         |
| a stream that begins with an error | as its status                                          | -         |
| any other 4xx                      | one of our statuses                                    | -         |
| sent, then lost, late or empty     | 504, not safe to repeat; `after_send`: the next entity | cut       |
| not HTTP, surplus bytes            | 500, not safe to repeat                                | cut       |
| client gone                        | upstream cancelled                                     | cancelled |

An entity of which all replicas are ejected is passed over for the next one that is not, if there is one; it
is tried after all others.

The next entity: only where the endpoint falls back and the request named none, in declared order, each once,
within one deadline for all. Where none is left and the last of them asked for a pause that fits the deadline,
it gets one more try after that. `after_send` is the operator's word that a request may run twice.

Cut: an event stream gets one error event and no `[DONE]`, chunks end without the last one, a body of known
length ends short.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from functools import partial
from typing import Final

from servestate.runtime.router import scan
from servestate.runtime.router.dispatch import Call
from servestate.runtime.router.http import errors, upstream
from servestate.runtime.router.http.chunked import encode
from servestate.runtime.router.http.errors import Failure, Refused
from servestate.runtime.router.http.heads import STATUS_LINES, AnswerHead
from servestate.runtime.router.http.sse import EventStream
from servestate.runtime.router.http.upstream import UpstreamConnection
from servestate.runtime.router.messages import tokens
from servestate.runtime.router.messages.tokens import Meter
from servestate.runtime.router.parties import Client, Desk, framing_of
from servestate.runtime.router.records.measures import measures
from servestate.runtime.router.records.record import Record, Usage
from servestate.runtime.router.routing import LiveBackend, LiveEntity
from servestate.runtime.router.upload import Upload

is_plain_event: Final = scan.is_plain_event
perf_counter: Final = time.perf_counter
monotonic: Final = time.monotonic
wall_clock: Final = time.time

_NEVER: Final = float("inf")
_REQUEST_ID: Final = b"x-request-id: "
_CONTENT_LENGTH: Final = b"\r\nContent-Length: "


class Phase(Enum):
    """Where an exchange stands; what may happen is decided by it, and ENDED ignores everything."""

    CONNECTING = 1
    WAITING = 2
    """Sent, and nothing of the answer was passed on."""
    COLLECTING = 3
    """The answer is an error, read for its message."""
    PAUSING = 4
    """Every entity failed, and one of them asked to be tried again in a while."""
    GUARDING = 5
    """The answer is read whole, since a guard has to see it first."""
    RELAYING = 6
    ENDED = 7


# As globals: the look-up through the class costs more than the comparison.
_CONNECTING: Final = Phase.CONNECTING
_WAITING: Final = Phase.WAITING
_COLLECTING: Final = Phase.COLLECTING
_PAUSING: Final = Phase.PAUSING
_GUARDING: Final = Phase.GUARDING
_RELAYING: Final = Phase.RELAYING
_ENDED: Final = Phase.ENDED


class Exchange(upstream.Exchange):
    """From the choice of a replica to the last byte of the answer."""

    __slots__ = (
        "_backend",
        "_body",
        "_call",
        "_chunked",
        "_client",
        "_deadline",
        "_desk",
        "_dialling",
        "_entities_tried",
        "_entity",
        "_error",
        "_events",
        "_failure",
        "_fields",
        "_held",
        "_held_length",
        "_kept",
        "_kind",
        "_limits",
        "_looking",
        "_loop",
        "_mark",
        "_may_have_run",
        "_meter",
        "_passed_over",
        "_pause",
        "_phase",
        "_record",
        "_request_id",
        "_sent_at",
        "_stall_s",
        "_tried",
        "_upstream",
        "_whole",
        "upload",
    )

    def __init__(
        self,
        client: Client,
        call: Call,
        request_id: bytes,
        began: float,
        desk: Desk,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`began` is when all was known of the request that it takes to serve it, by `time.perf_counter`.
        Where its body goes on as it comes, `upload` wants the rest."""
        self._client = client
        self._call = call
        self._entity = call.entity
        self._kind = call.kind
        self._body = call.body
        self._fields = call.head.fields
        self._request_id = request_id
        self._desk = desk
        self._limits = desk.limits
        self._loop = loop
        self._record = Record(request_id, call.endpoint, call.entity, call.kind, call.how, began)
        self._mark = began
        self._phase = _CONNECTING
        self._stall_s = call.endpoint.stall_s
        self._deadline = self._sent_at = 0.0
        self._backend: LiveBackend | None = None
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._tried: tuple[LiveBackend, ...] = ()
        self._entities_tried: tuple[LiveEntity, ...] = ()
        self._passed_over: tuple[LiveEntity, ...] = ()
        self._pause: asyncio.TimerHandle | None = None
        self._failure: Failure | None = None  # before the one pause that may be taken
        self._held: AnswerHead | None = None  # a good head that waits for content
        self._held_length: int | None = None
        self._may_have_run = False
        self._looking: asyncio.Future[bytes] | None = None
        self._events: EventStream | None = None
        self._meter: Meter | None = None
        self._whole: bytearray | None = None  # so far, of an answer that a guard has to see
        self._kept: bytearray | None = None  # of an answer that is written down
        self._chunked = False
        self._error = b""
        self.upload: Upload | None = None
        if call.passage is not None:
            self.upload = Upload(call.passage, call.body, client)

    def start(self) -> None:
        """Count the request and send it to a replica."""
        record, call = self._record, self._call
        record.caller = call.caller
        record.sent = len(self._body)
        if call.head.traceparent:
            record.traceparent = call.head.traceparent
        begun = self._desk.books.begun
        if begun is not None:
            self._fields = begun(record, self._fields)
        if call.kept is not None or call.endpoint.usage:
            self._take_down(call)
        self._desk.inflight += 1
        now = self._loop.time()
        self._deadline = now + call.endpoint.deadline_s
        self._client.deadline = self._deadline
        self._enter(self._entity)
        self._try_next(now)

    def _take_down(self, call: Call) -> None:
        """What the caller says of the request itself, and its body if that is wanted."""
        record, document = self._record, call.document
        name, context = document.get("client_request_id"), document.get("usage_context")
        if isinstance(name, str):
            record.client_request_id = name
        if isinstance(context, dict):
            record.usage_context = context
        if call.kept is not None:
            record.request, self._kept = call.kept, bytearray()

    # From the client.

    @property
    def begun(self) -> bool:
        """Whether the head of the answer is on its way."""
        return self._phase is _RELAYING

    @property
    def awaits_body(self) -> bool:
        """Whether it is for the client to go on with its body: not once the answer is an error."""
        phase = self._phase
        return phase is _WAITING or phase is _RELAYING or (phase is _GUARDING and self._whole is not None)

    def abandon(self) -> None:
        """The client is gone."""
        if self._phase is not _ENDED:
            self._record.gone = True
            if self._phase is _RELAYING:
                self._well()
            else:
                self._says_nothing()
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
            self._client.deadline = self._loop.time() + self._stall_s

    def expire(self) -> None:
        """The client's `deadline` has passed."""
        phase = self._phase
        upload = self.upload
        if upload is not None and not upload.done and self.awaits_body:
            self._interrupted(upload)
        elif phase is _RELAYING:
            self._blame("stalled")
            self._fail(errors.lost(f"the answer made no progress for {self._stall_s:g} s"), "stalled")
        elif phase is _COLLECTING:
            self._collected()  # its status says enough
        elif phase is _GUARDING:
            self._unguarded()
        elif phase is _PAUSING:
            assert self._failure is not None, "a pause follows a failure"
            self._fail(self._failure, "late")
        elif self._held is not None:
            self._mark = perf_counter()
            self._commit(self._held, self._held_length, b"", False)  # no content so far: pass the status on
        elif phase is _CONNECTING:
            self._blame("unreachable", "no connection in time")
            self._fail(errors.unavailable("no replica could be reached in time"), "unreachable")
        else:
            self._blame("timeout")
            self._fail(errors.lost(f"no answer within {self._call.endpoint.deadline_s:g} s"), "late")

    def uploaded(self) -> None:
        """The last of a body that went on as it came is written: now the answer is waited for."""
        now = self._loop.time()
        self._deadline = now + self._call.endpoint.deadline_s
        if not self.awaits_body:
            return
        if self._phase is not _WAITING:
            self._client.deadline = now + self._stall_s
        elif self._held is not None:
            self._client.deadline = min(self._deadline, now + self._limits.peek_s)
        else:
            self._client.deadline = self._deadline

    def refuse(self, failure: Failure) -> None:
        """The rest of a body that went on as it came does not: the upstream sees its connection go."""
        self._says_nothing()
        self._fail(failure, "body")

    def _interrupted(self, upload: Upload) -> None:
        if upload.full:
            self._blame("stalled")
            self._fail(errors.lost("the upstream took no more of the request in time"), "stalled")
        else:
            self.refuse(Failure(400, errors.BAD_REQUEST, "the request did not arrive in time"))

    # From the upstream.

    def fill(self, full: bool) -> None:
        """See `upstream.Exchange`."""
        if self.upload is not None:
            self.upload.fill(full)
            if full and not self.upload.done and self.awaits_body:
                # One that is busy begins to read when it comes to this request.
                waits = self._phase is _WAITING
                within_s = self._call.endpoint.deadline_s if waits else self._stall_s
                self._client.deadline = self._loop.time() + within_s

    def connected(self, connection: UpstreamConnection) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._mark = perf_counter()
        self._send(connection)

    def failed_to_connect(self, why: str) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._mark = perf_counter()
        backend = self._backend
        if backend is not None:
            self._blame("unreachable", why)
            self._tried += (backend,)
            self._leave_backend()
        self._try_next(self._loop.time())

    def answered(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """See `upstream.Exchange`."""
        if complete:
            self._upstream = None
            if length is None and not head.chunked and self._broke_off(head):
                self._lost(
                    errors.lost("the upstream closed the connection before its answer was whole"), "lost"
                )
                return
        if self._phase is _RELAYING:
            self._relay(payload, complete)
            return
        self._mark = perf_counter()
        if head.status >= 300:
            self._collect(head, payload, complete)
        elif self._call.endpoint.guard_output is not None:
            self._gather(head, payload, complete)
        elif head.event_stream:
            self._begin_stream(head, payload, complete)
        elif payload or complete:
            self._commit(head, length, payload, complete)
        else:
            self._hold(head, length)

    def relayed(self, chunk: bytes) -> bool:
        """See `upstream.Exchange`."""
        events, meter = self._events, self._meter
        if events is None or meter is None or not self._chunked:
            return False
        if is_plain_event(chunk) and events.between:
            events.passed = chunk
            meter.passes_plain(chunk)
        elif not events.passes(chunk) or not meter.passes(chunk):
            return False
        record = self._record
        record.chunks += 1
        record.received += len(chunk)
        if self._kept is not None:
            self._keep(chunk.partition(b"\r\n")[2][:-2])
        client = self._client
        client.write(chunk)
        client.moves_s = self._stall_s
        return True

    def lost(self, why: str, *, bad: bool) -> None:
        """See `upstream.Exchange`."""
        self._upstream = None
        if self._phase is _COLLECTING:
            self._collected()
        else:
            self._lost(errors.broken(why) if bad else errors.lost(why), "bad" if bad else "lost")

    # The way there.

    def _enter(self, entity: LiveEntity) -> None:
        self._entity = self._record.entity = entity
        entity.counters.requests += 1
        entity.counters.inflight += 1

    def _try_next(self, now: float) -> None:
        entity, call = self._entity, self._call
        if (
            call.endpoint.fallback
            and not self._tried
            and entity.closed(now)
            and self._is_better_elsewhere(now)
        ):
            self._passed_over += (entity,)
            why = f"all replicas of the served entity {entity.name!r} are ejected"
            self._missed(errors.unavailable(why), "ejected")
            return
        prefix = call.prefix() if entity.by_prefix else b""
        backend = entity.choose(self._tried, now, prefix)
        if backend is None:
            self._missed(
                errors.unavailable(self._why_unreachable()), "unreachable" if self._tried else "not_ready"
            )
            return
        self._backend = backend
        self._sent_at = now
        backend.gauge.inflight += 1
        connection = backend.origin.take(now)
        if connection is not None:
            self._send(connection)
        else:
            self._phase = _CONNECTING
            self._record.own_s += perf_counter() - self._mark
            self._dialling = backend.origin.dial(self, self._loop)

    def _why_unreachable(self) -> str:
        name = self._entity.name
        if not self._tried:
            return f"the served entity {name!r} is not ready"
        return f"no replica of the served entity {name!r} accepts connections"

    def _send(self, connection: UpstreamConnection) -> None:
        assert self._backend is not None
        self._upstream = connection
        self._phase = _WAITING
        self._may_have_run = True
        if self.upload is not None:
            self._send_beginning(connection, self._backend, self.upload)
            return
        body = self._body
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
        self._record.own_s += perf_counter() - self._mark

    def _send_beginning(self, connection: UpstreamConnection, backend: LiveBackend, upload: Upload) -> None:
        head = b"%b%b%b%b" % (backend.heads[self._kind], self._fields, _REQUEST_ID, self._request_id)
        connection.send(self, head + upload.open(connection, self._loop.time()))
        self._body = self._call.body = b""  # it is sent nowhere else
        self._client.hold(upload.full)
        self._record.own_s += perf_counter() - self._mark

    # The way elsewhere.

    def _missed(self, failure: Failure, reason: str) -> None:
        """This entity gave nothing that may go out: try the next one, or end with what it said."""
        elsewhere = self._elsewhere(passing=reason == "ejected")
        pause = self._pause_for(failure) if elsewhere is None else 0
        if elsewhere is None and not pause:
            self._fail(failure, reason)
            return
        record = self._record
        record.failed += ((self._entity.name, reason),)
        record.how = "fallback"
        self._leave_backend()
        self._tried = ()
        self._held = self._events = None
        self._error = b""
        if elsewhere is not None:
            self._leave_entity()
            entity, self._body = elsewhere
            self._enter(entity)
            self._go()
            return
        self._phase = _PAUSING
        self._failure = failure
        self._client.deadline = self._deadline
        record.queue_s += pause
        self._pause = self._loop.call_later(pause, self._go)

    def _go(self) -> None:
        """To the entity that it is now, from anew."""
        self._pause = None
        self._mark = perf_counter()
        self._client.deadline = self._deadline
        self._phase = _CONNECTING
        self._try_next(self._loop.time())

    def _elsewhere(self, passing: bool) -> tuple[LiveEntity, bytes] | None:
        """The next entity to try, with the body that it gets. `passing`: this one was not tried."""
        call = self._call
        if not call.endpoint.fallback or call.how != "split" or self._failure is not None:
            return None
        passed_over = self._passed_over
        if not passing:
            self._entities_tried += (self._entity,)
        first = [entity for entity in call.endpoint.entities if entity not in passed_over]
        for entity in (*first, *passed_over):  # these are the last resort
            if entity in self._entities_tried:
                continue
            try:
                return entity, call.body_for(entity, self._limits)
            except Refused:  # it takes none of this kind
                self._entities_tried += (entity,)
        return None

    def _is_better_elsewhere(self, now: float) -> bool:
        """Whether one of the entities that are left would take the request, and is not ejected."""
        call = self._call
        if call.how != "split" or self._failure is not None:
            return False
        for entity in call.endpoint.entities:
            if entity is self._entity or entity in self._entities_tried:
                continue
            if entity.backends and not entity.closed(now):
                try:
                    call.body_for(entity, self._limits)
                except Refused:
                    continue
                return True
        return False

    def _pause_for(self, failure: Failure) -> int:
        """Seconds after which the entity that was tried last is worth one more try; 0: none are."""
        endpoint = self._call.endpoint
        if not endpoint.fallback or self._call.how != "split" or self._failure is not None:
            return 0
        asks = failure.asked
        return asks if self._loop.time() + asks < self._deadline else 0

    def _lost(self, failure: Failure, reason: str) -> None:
        """The request was sent, and no whole answer came."""
        if self.upload is not None and self.upload.waits_for_client(
            self._loop.time() - self._limits.prompt_s
        ):
            self._says_nothing()  # it may have tired of the client
        else:
            self._blame(reason)
        begun = self._phase is _RELAYING
        if not begun and self._call.endpoint.traffic.after_send:
            self._drop_upstream()
            self._missed(failure, reason)
        else:
            self._fail(failure, reason)

    def _blame(self, reason: str, why: str = "") -> None:
        """What happened speaks against the health of the replica; `why` says more than the word for it."""
        backend = self._backend
        if backend is not None and backend.gauge.health.failed(
            self._loop.time(), why or reason, self._sent_at
        ):
            ejections = self._desk.books.metrics.ejections
            ejections.add(self._call.endpoint.name, self._entity.name, reason)

    # The way back.

    def _hold(self, head: AnswerHead, length: int | None) -> None:
        """A good status without content: wait for some, so that a dead stream is still a clean error."""
        if self._held is None:
            self._held = head
            self._held_length = length  # the head may be that of an earlier answer, but for its length
            if self.upload is not None and not self.upload.done:
                return  # it may wait for the rest of the body, as long as that comes in time
            self._client.deadline = min(self._client.deadline, self._loop.time() + self._limits.peek_s)

    def _begin_stream(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        if self._events is None:
            self._events = EventStream(self._limits.sse_line_bytes)
        payload = self._events.feed(payload)
        if complete:
            payload += self._events.finish()
        if payload.strip():  # an empty line is left of a comment that only kept the connection alive
            error = errors.in_stream(payload)
            if error is not None:
                self._drop_upstream()
                self._said(error)
            else:
                self._commit(head, None, payload, complete)
        elif complete:
            self._lost(errors.lost("the upstream's event stream was empty"), "empty")
        else:
            self._hold(head, None)

    def _commit(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """Write the head, with what there is of the body."""
        backend = self._backend
        assert backend is not None
        self._phase = _RELAYING
        payload = self._heard(payload, complete)
        known = length if self._events is None else None
        if self.upload is not None and not self.upload.done:
            self._client.keep_alive = False  # the rest of the request stands between this answer and the next
        framing, self._chunked = framing_of(head.status, known, self._client)
        size = len(payload)
        if self._chunked:
            payload = encode(payload, complete)
        admission = self._call.admission
        limited = admission.fields if admission is not None else b""
        record = self._record
        record.status = head.status
        record.received += size
        now = perf_counter()
        record.own_s += now - self._mark
        if size:
            record.first_s = now - record.began
        self._client.write(
            b"".join(
                (
                    STATUS_LINES.get(head.status) or b"HTTP/1.1 %d \r\n" % head.status,
                    head.unlimited if limited else head.fields,
                    backend.answer_fields,
                    measures(self._record),
                    limited,
                    _REQUEST_ID,
                    self._request_id,
                    framing,
                    b"\r\n\r\n",
                    payload,
                )
            )
        )
        if not complete:
            self._body = b""
            self._call.let_go()
        self._after_write(complete)

    def _relay(self, payload: bytes, complete: bool) -> None:
        if self._events is not None:
            payload = self._events.feed(payload)
            if complete:
                payload += self._events.finish()
        payload = self._heard(payload, complete)
        record = self._record
        record.received += len(payload)
        if payload and record.first_s < 0:
            record.first_s = perf_counter() - record.began
        if self._chunked:
            payload = encode(payload, complete)
        if payload:
            self._client.write(payload)
        self._after_write(complete)

    def _heard(self, payload: bytes, complete: bool) -> bytes:
        """What of the payload goes on, once it was listened to."""
        meter = self._meter
        if meter is None:
            call = self._call
            meter = self._meter = Meter(call.measured, call.hides_usage)
            if call.measured:
                self._record.response_model = tokens.model_in(payload)
        if self._events is None:
            meter.piece(payload, complete)
        else:
            self._record.streaming = True
            if payload:
                self._record.chunks += 1
                payload = meter.lines(payload)
        if self._kept is not None:
            self._keep(payload)
        return payload

    def _keep(self, payload: bytes) -> None:
        """Keep what is to be written down, one byte beyond its bound, so that a cut one can be told."""
        kept = self._kept
        assert kept is not None
        payloads = self._call.endpoint.payloads
        room = (payloads.max_body_bytes + 1 if payloads is not None else 0) - len(kept)
        if room > 0:
            kept += payload[:room]

    def _after_write(self, complete: bool) -> None:
        now = self._loop.time()
        if complete:
            if self._backend is not None:  # to be well is to have answered to the end
                self._backend.gauge.health.succeeded(now, self._sent_at)
            self._end()
            self._client.finished(now)
        else:
            self._client.deadline = now + self._stall_s

    def _broke_off(self, head: AnswerHead) -> bool:
        """Whether an answer that only the end of the connection ends stopped where it cannot end: without
        any content, or as an event stream that did not say that it is done."""
        if head.status < 300 and head.event_stream:
            if self._whole is not None:
                return not self._whole.rstrip().endswith(b"data: [DONE]")
            return self._events is None or not self._events.said_done()
        return head.status < 300 and self._phase is _WAITING

    def _collect(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        """An error answer: read it, within bounds, and answer in our own words and shape."""
        if self._phase is not _COLLECTING:
            self._phase = _COLLECTING
            self._held = head
            within = self._deadline if self.upload is None else _NEVER
            self._client.deadline = min(within, self._loop.time() + self._limits.error_body_s)
        self._error += payload
        if complete or len(self._error) > self._limits.error_body_bytes:
            self._collected()

    def _collected(self) -> None:
        """As much of an error answer came as will."""
        head = self._held
        assert head is not None, "its head came before"
        self._drop_upstream()
        self._said(errors.from_upstream(head.status, self._error, head.retry_after), head.status)

    def _said(self, failure: Failure, status: int = 0) -> None:
        """The upstream has said, in so many words, that it failed; `status` is what it said, where that is
        not what goes out."""
        self._may_have_run = False  # says its server
        status = status or failure.status
        timed_out = status == 408 and self._entity.external
        if status >= 500:
            self._blame("5xx")
        elif status == 429:
            self._says_nothing()
        else:
            self._well()
        if status == 429 or status >= 500 or timed_out:
            self._missed(failure, "429" if status == 429 else "5xx" if status >= 500 else "408")
        else:
            self._fail(failure, "4xx")

    def _well(self) -> None:
        if self._backend is not None:
            self._backend.gauge.health.succeeded(self._loop.time(), self._sent_at)

    def _says_nothing(self) -> None:
        """What happened says nothing of the health of the replica, which may have had its trial with it."""
        if self._backend is not None:
            self._backend.gauge.health.abandoned(self._sent_at)

    # An answer that a guard has to see.

    def _gather(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        if self._phase is not _GUARDING:
            self._phase = _GUARDING
            self._held = head
            self._whole = bytearray()
        whole = self._whole
        assert whole is not None, "it is not complete yet"
        whole += payload
        now = self._loop.time()
        self._client.deadline = now + self._stall_s
        if len(whole) > self._limits.guarded_answer_bytes:
            self._well()
            self._drop_upstream()
            self._fail(errors.broken("the answer is larger than a guard may look at"), "guard")
        elif complete:
            self._whole = None
            self._gathered(head, bytes(whole), now)

    def _gathered(self, head: AnswerHead, content: bytes, now: float) -> None:
        """The answer is whole: let the guard look at it, unless it says no more than that there is none."""
        if head.event_stream:
            if not content.strip():
                self._lost(errors.lost("the upstream's event stream was empty"), "empty")
                return
            error = errors.in_stream(content)
            if error is not None:
                self._said(error)
                return
        call = self._call
        guard = call.endpoint.guard_output
        assert guard is not None, "gathered for it"
        self._meter = Meter(call.measured, hides=False)  # what it used it used, whatever the guard says
        self._meter.piece(content, last=True)
        self._client.deadline = now + self._limits.guard_s
        judge = partial(guard.answer, self._kind, content, head.event_stream)
        try:
            looking = self._desk.guards.look(judge, len(content), self._loop, answer=True)
        except Refused as busy:
            self._well()
            self._count_guarded("busy")
            self._fail(errors.broken(busy.failure.message), "guard")  # it has run: not to be repeated
            return
        self._looking = looking
        looking.add_done_callback(partial(self._guarded, head, content))

    def _guarded(self, head: AnswerHead, content: bytes, looked: asyncio.Future[bytes]) -> None:
        """The guard has looked at the whole answer."""
        if looked.cancelled() or self._phase is _ENDED:
            return
        error = looked.exception()
        self._mark = perf_counter()
        if error is None:
            self._passed(head, looked.result(), masked=looked.result() is not content)
            return
        self._well()
        if isinstance(error, Refused):
            self._count_guarded("refused")
            self._fail(error.failure, "guard")
        else:
            self._fail(errors.broken("the answer could not be judged by its guard"), "guard")

    def _passed(self, head: AnswerHead, content: bytes, *, masked: bool) -> None:
        """The guard lets `content` go on."""
        if masked:
            self._count_guarded("masked")
        self._meter = None  # what goes on is heard like any other answer
        if head.event_stream:
            self._events = EventStream(self._limits.sse_line_bytes)
            self._commit(head, None, self._events.feed(content) + self._events.finish(), True)
        else:
            self._commit(head, len(content), content, True)

    def _unguarded(self) -> None:
        """The time for an answer that a guard has to see is over."""
        if self._whole is None:
            self._well()
            self._fail(errors.broken("the guard of this endpoint took too long"), "guard")
        else:
            self._blame("timeout")
            self._fail(errors.lost("no whole answer came in time for the guard to see"), "late")

    def _count_guarded(self, action: str) -> None:
        self._desk.books.metrics.guarded.add(self._call.endpoint.name, "output", action)

    # Ends.

    def _fail(self, failure: Failure, reason: str) -> None:
        """The one way out with an error, before or after the answer has begun."""
        if self._phase is _ENDED:
            return
        begun = self._phase is _RELAYING
        answer_fields = b"" if begun else self._answer_fields()
        self._drop_upstream()
        record = self._record
        record.code = failure.code
        if begun:
            record.cut = reason
        else:
            record.status = failure.status
        if self._kept is not None:
            self._keep_failure(failure, begun)
        self._end()
        if not begun:
            self._client.fail(failure, answer_fields, self._request_id)
        else:
            self._client.cut(self._last_event(failure))

    def _keep_failure(self, failure: Failure, begun: bool) -> None:
        if not begun:
            self._keep(errors.body(failure, self._client.shape))
        elif self._events is not None:
            self._keep(errors.event(failure))

    def _last_event(self, failure: Failure) -> bytes:
        if self._events is None:
            return b""
        data = self._events.before_error() + errors.event(failure)
        return encode(data, last=False) if self._chunked else data

    def _answer_fields(self) -> bytes:
        source = self._backend if self._backend is not None else self._entity
        admission = self._call.admission
        return (
            source.answer_fields
            + measures(self._record)
            + (admission.fields if admission is not None else b"")
        )

    def _drop_upstream(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.cancel()
            self._upstream = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._looking is not None:
            self._looking.cancel()  # nobody waits: it need not wait for its turn
        if self.upload is not None:
            self.upload.drop()

    def _leave_backend(self) -> None:
        backend = self._backend
        if backend is not None:
            self._record.replica = backend.replica
            backend.gauge.inflight -= 1
            self._backend = None

    def _leave_entity(self) -> None:
        counters = self._entity.counters
        counters.inflight -= 1
        counters.errors += 1

    def _end(self) -> None:
        self._desk.inflight -= 1
        self._entity.counters.inflight -= 1
        self._phase = _ENDED
        self._client.moves_s = 0.0
        self._leave_backend()
        record, call = self._record, self._call
        if self.upload is not None:
            self.upload.drop()
            record.sent = self.upload.sent
        record.total_s = perf_counter() - record.began
        record.wall = wall_clock() - record.total_s
        record.usage = self._used()
        if call.admission is not None:
            used = record.usage.total if record.usage is not None else None if self._may_have_run else 0
            call.admission.ended(used, monotonic())
        if self._kept is not None:
            record.answer = bytes(self._kept)
        self._desk.books.ended(record)

    def _used(self) -> Usage | None:
        """The tokens of this request: as the answer says, or estimated, where they are wanted."""
        meter = self._meter
        if meter is None:  # no answer has begun
            return None
        if meter.usage is not None or not self._call.measured:
            return meter.usage
        return Usage(self._call.prompt_tokens(), tokens.estimate(meter.text), estimated=True)
