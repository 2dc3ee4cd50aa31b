"""Copies of requests for another served entity, whose answers are thrown away.

The caller never waits for a copy and never hears of it: one that finds its target busy, not ready or not
reachable is dropped and counted. What a replica makes of a copy says as much of its health as what it makes
of a request, and a copy may be its trial.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final

from servestate.runtime.router.http import upstream
from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.http.heads import AnswerHead
from servestate.runtime.router.http.upstream import UpstreamConnection
from servestate.runtime.router.messages import tokens
from servestate.runtime.router.records.counters import Counters
from servestate.runtime.router.records.ids import REQUEST_IDS
from servestate.runtime.router.records.record import Record

if TYPE_CHECKING:  # an endpoint has its mirror, whose copies are calls of that endpoint
    from servestate.runtime.router.dispatch import Call
    from servestate.runtime.router.parties import Desk
    from servestate.runtime.router.routing import LiveBackend, LiveEntity

_TAIL_BYTES: Final = 4096


class LiveMirror:
    """The mirror of one endpoint. `counters` says what became of them: they
    are nobody's requests, and their tokens nobody's usage."""

    def __init__(
        self, entity: LiveEntity, most: int, turns: Iterator[bool], before: LiveMirror | None
    ) -> None:
        """At most `most` copies run at once; `turns` says of each request whether it is copied. `before` is
        the one of the table before, whose copies may still run."""
        self.entity: LiveEntity = entity
        self.counters = Counters()
        self._most = most
        self._turns = turns
        self._running = [0]
        if before is not None and before.entity.name == entity.name:
            self.counters, self._running = before.counters, before._running

    @property
    def inflight(self) -> int:
        """Copies that run."""
        return self._running[0]

    def count(self, change: int) -> None:
        """One more runs, or one fewer."""
        self._running[0] += change

    def offered(self, call: Call, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        """A request was taken on; whether it is copied is decided here."""
        if next(self._turns):
            # Later: the request itself goes first.
            loop.call_soon(self._copy, call, desk, loop)

    def _copy(self, call: Call, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        """Make a copy, or count why there is none."""
        entity = self.entity
        if entity is call.entity:
            outcome = "same"
        elif self.inflight >= self._most:
            outcome = "busy"
        else:
            try:
                body = call.body_for(entity, desk.limits)
            except Refused:  # it takes none of this kind
                outcome = "unfit"
            else:  # chosen only now: to be chosen may be a replica's trial
                backend = entity.choose((), loop.time(), b"")
                if backend is not None:
                    _Copy(self, call, backend, body, desk, loop).start()
                    return
                outcome = "not_ready"
        self.over(call, outcome, desk)

    def over(self, call: Call, outcome: str, desk: Desk) -> None:
        """One is over, or was never made."""
        desk.books.metrics.mirrored.add(call.endpoint.name, self.entity.name, outcome)


class _Copy(upstream.Exchange):
    """One copy on its way; the upstream's side is that of `upstream.Exchange`."""

    __slots__ = (
        "_backend",
        "_call",
        "_desk",
        "_dialling",
        "_loop",
        "_mirror",
        "_record",
        "_request",
        "_sent_at",
        "_status",
        "_tail",
        "_timer",
        "_upstream",
    )

    def __init__(
        self,
        mirror: LiveMirror,
        call: Call,
        backend: LiveBackend,
        body: bytes,
        desk: Desk,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        request_id = REQUEST_IDS.new()
        self._mirror = mirror
        self._call = call
        self._backend = backend
        self._desk = desk
        self._loop = loop
        self._request = b"%b%bx-request-id: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            backend.heads[call.kind],
            call.head.fields,
            request_id,
            len(body),
            body,
        )
        self._record = Record(request_id, call.endpoint, mirror.entity, call.kind, "mirror", perf_counter())
        self._record.sent = len(body)
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle
        self._sent_at = 0.0
        self._status = 0
        self._tail = b""

    def start(self) -> None:
        """Send it; it has as long as its original."""
        self._mirror.count(+1)
        self._backend.gauge.inflight += 1
        self._timer = self._loop.call_later(self._call.endpoint.deadline_s, self._late)
        self._sent_at = self._loop.time()
        connection = self._backend.origin.take(self._sent_at)
        if connection is not None:
            self.connected(connection)
        else:
            self._dialling = self._backend.origin.dial(self, self._loop)

    def connected(self, connection: UpstreamConnection) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._upstream = connection
        connection.send(self, self._request)
        self._request = b""

    def failed_to_connect(self, why: str) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._blame("unreachable", why)
        self._end("unreachable")

    def answered(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """See `upstream.Exchange`."""
        self._status = head.status
        self._hear(payload)
        if complete:
            self._upstream = None
            self._judge(head.status)
            self._end("ok" if head.status < 400 else "error")

    def relayed(self, chunk: bytes) -> bool:
        """See `upstream.Exchange`."""
        self._hear(chunk)
        return True

    def lost(self, why: str, *, bad: bool) -> None:
        """See `upstream.Exchange`."""
        self._upstream = None
        self._blame("bad" if bad else "lost")
        self._end("lost")

    def _hear(self, payload: bytes) -> None:
        record = self._record
        if record.first_s < 0 and payload:
            record.first_s = perf_counter() - record.began
        record.received += len(payload)
        self._tail = (self._tail + payload)[-_TAIL_BYTES:]

    def _late(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        if self._upstream is not None:
            self._upstream.cancel()
        self._blame("timeout")
        self._end("late")

    def _judge(self, status: int) -> None:
        """What an answer says of its replica: nothing, where it had no room for the request."""
        health = self._backend.gauge.health
        if status >= 500:
            self._blame("5xx")
        elif status == 429:
            health.abandoned(self._sent_at)
        else:
            health.succeeded(self._loop.time(), self._sent_at)

    def _blame(self, reason: str, why: str = "") -> None:
        if self._backend.gauge.health.failed(self._loop.time(), why or reason, self._sent_at):
            ejections = self._desk.books.metrics.ejections
            ejections.add(self._call.endpoint.name, self._mirror.entity.name, reason)

    def _end(self, outcome: str) -> None:
        self._timer.cancel()
        self._mirror.count(-1)
        self._backend.gauge.inflight -= 1
        record = self._record
        record.status = self._status
        record.replica = self._backend.replica
        record.total_s = perf_counter() - record.began
        record.wall = time.time() - record.total_s
        record.usage = tokens.usage_in(self._tail)
        record.code = "" if outcome == "ok" else outcome
        self._mirror.counters.ended(record)
        self._mirror.over(self._call, outcome, self._desk)
