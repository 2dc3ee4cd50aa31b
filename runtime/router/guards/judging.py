"""A request that a guard has to see before it may be taken on."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

from servestate.runtime.router.dispatch import Call
from servestate.runtime.router.guards.guard import LiveGuard
from servestate.runtime.router.http import errors
from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.messages import body
from servestate.runtime.router.parties import Desk


class Client(Protocol):
    """The connection that the request came by."""

    deadline: float

    def judged(self, call: Call, began: float) -> None:
        """The request may be taken on."""

    def refused(self, refusal: Refused, call: Call) -> None:
        """It may not."""


class Judging:
    """While the guard looks, in a thread: what it takes must not hold up other requests. The client's side
    is that of `proxy.Exchange`."""

    __slots__ = ("_began", "_call", "_client", "_desk", "_ended", "_looking", "_loop")

    def __init__(
        self, client: Client, call: Call, began: float, desk: Desk, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._client = client
        self._call = call
        self._began = began
        self._desk = desk
        self._loop = loop
        self._ended = False
        self._looking: asyncio.Future[bytes]

    def start(self, guard: LiveGuard) -> None:
        """Let the guard look, if there is room."""
        call = self._call
        judge = partial(guard.request, call.kind, call.raw, call.document)
        try:
            self._looking = self._desk.guards.look(judge, len(call.raw), self._loop, answer=False)
        except Refused as refusal:
            self._count("busy")
            self._client.refused(refusal, call)
            return
        self._client.deadline = self._loop.time() + self._desk.limits.guard_s
        self._desk.inflight += 1
        self._looking.add_done_callback(self._looked)

    @property
    def begun(self) -> bool:
        """See `proxy.Exchange.begun`: there is no answer yet."""
        return False

    def abandon(self) -> None:
        """The client is gone; what the guard thinks matters no more."""
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._desk.inflight -= 1
            self._looking.cancel()  # one that waits for its turn needs none any more

    def pause(self) -> None:
        """Nothing is written meanwhile."""

    def resume(self) -> None:
        """See `pause`."""

    def expire(self) -> None:
        """The client's `deadline` has passed."""
        if not self._ended:
            self._end()
            self._client.refused(
                Refused(errors.unavailable("the guard of this endpoint is busy")), self._call
            )

    def _looked(self, looked: asyncio.Future[bytes]) -> None:
        if self._ended or looked.cancelled():
            return
        error = looked.exception()
        self._end()
        call = self._call
        if isinstance(error, Refused):
            self._count("refused")
            self._client.refused(error, call)
        elif error is not None:
            failed = Refused(errors.broken("the request could not be judged by its guard"))
            self._client.refused(failed, call)
        else:
            raw = looked.result()
            if raw is not call.raw:
                self._count("masked")
                call.raw, call.document = raw, body.parse(raw)
            self._client.judged(call, self._began)

    def _count(self, action: str) -> None:
        self._desk.books.metrics.guarded.add(self._call.endpoint.name, "input", action)
