"""Whether replicas say of themselves that they are well: a GET of the path that each has for that.

| a probe's answer          | what follows                                                         |
| ------------------------- | -------------------------------------------------------------------- |
| 2xx                       | the replica may be tried, if probes were why it was not              |
| another status, or none   | ejected after `_FAILURES` of them, none having gone well in between  |
| none within `timeout_s`   | ejected after `_DELAYS` of them: a busy server is slow, but not dead |

A probe is never an inference. It opens a connection, as a server that accepts none any more may still answer
on those it has; the router's pool keeps it. Where no replica has such a path nothing is sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from enum import Enum

from servestate.runtime.router.balance.health import HEALTH
from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.http import upstream
from servestate.runtime.router.http.heads import AnswerHead
from servestate.runtime.router.http.upstream import UpstreamConnection
from servestate.runtime.router.routing import LiveBackend, LiveTable

OnEjected = Callable[[str, str, str], None]
"""Called with endpoint, entity and reason."""

_FAILURES = 2
_DELAYS = 3
_LOOKS = 5
"""How often in each interval it is looked whom to ask."""
_JITTER = 0.1
"""How much of an interval a probe may come earlier or later, so that not all come at once."""
_BODY_BYTES = 64 * 1024


class Outcome(Enum):
    """What a probe found."""

    WELL = 1
    FAILED = 2
    LATE = 3


class Probe(upstream.Exchange):
    """One request for the health of a replica, as an `upstream.Exchange`. `done` is called once, unless the
    probe is cancelled first."""

    def __init__(
        self,
        backend: LiveBackend,
        timeout_s: float,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Outcome], None],
    ) -> None:
        self._request = backend.probe
        self._done = done
        self._read = 0
        self._upstream: UpstreamConnection | None = None
        self._timer = loop.call_later(timeout_s, self._end, Outcome.LATE)
        self._dialling: asyncio.Task[None] | None = backend.origin.dial(self, loop)

    def connected(self, connection: UpstreamConnection) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._upstream = connection
        connection.send(self, self._request)

    def failed_to_connect(self, why: str) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._end(Outcome.FAILED)

    def answered(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """See `upstream.Exchange`."""
        if complete:
            self._upstream = None
        self._read += len(payload)
        if complete or self._read > _BODY_BYTES:
            self._end(Outcome.WELL if 200 <= head.status < 300 else Outcome.FAILED)

    def relayed(self, chunk: bytes) -> bool:
        """See `upstream.Exchange`."""
        return False

    def lost(self, why: str, *, bad: bool) -> None:
        """See `upstream.Exchange`."""
        self._upstream = None
        self._end(Outcome.FAILED)

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self._timer.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.cancel()
            self._upstream = None

    def _end(self, outcome: Outcome) -> None:
        self.cancel()
        self._done(outcome)


class Watched:
    """A replica that is asked: how, when next (`due`), and what the last probes found."""

    __slots__ = ("backend", "delays", "due", "endpoint", "entity", "failures", "probe")

    def __init__(self, due: float) -> None:
        self.due = due
        self.endpoint = self.entity = ""
        self.backend: LiveBackend
        self.probe: Probe | None = None
        self.failures = self.delays = 0


class Prober:
    """Asks the replicas of the table in use, which `table` returns. Belongs to the loop it is started in.

    A new replica is asked within `interval_s`; one that is gone is not asked again. What is known of one
    that stays stays. `uniform` draws from [0, 1).
    """

    def __init__(
        self,
        table: Callable[[], LiveTable],
        policy: HealthPolicy,
        on_ejected: OnEjected,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._table = table
        self._policy = policy
        self._on_ejected = on_ejected
        self._uniform = uniform
        self._followed: LiveTable | None = None
        self._watched: dict[str, Watched] = {}
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to ask."""
        self._loop = loop
        self._look()

    def stop(self) -> None:
        """Ask nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        for watched in self._watched.values():
            _drop(watched)
        self._watched = {}

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._policy.interval_s / _LOOKS, self._look)
        now = self._loop.time()
        table = self._table()
        if table is not self._followed:
            self._followed = table
            self._follow(table, now)
        for watched in self._watched.values():
            if watched.due <= now and watched.probe is None:
                self._ask(watched, now)

    def _follow(self, table: LiveTable, now: float) -> None:
        before, self._watched = self._watched, {}
        for endpoint, entity, backend in _asked(table):
            watched = before.pop(backend.replica, None)
            if watched is None:
                watched = Watched(now + self._uniform() * self._policy.interval_s / 2)
            watched.endpoint, watched.entity, watched.backend = endpoint, entity, backend
            self._watched[backend.replica] = watched
        for gone in before.values():
            _drop(gone)

    def _ask(self, watched: Watched, now: float) -> None:
        jitter = 1 + _JITTER * (2 * self._uniform() - 1)
        watched.due = now + self._policy.interval_s * jitter

        def done(outcome: Outcome) -> None:
            watched.probe = None
            self._judge(watched, outcome)

        watched.probe = Probe(watched.backend, self._policy.timeout_s, self._loop, done)

    def _judge(self, watched: Watched, outcome: Outcome) -> None:
        now = self._loop.time()
        health = watched.backend.gauge.health
        if outcome is Outcome.WELL:
            watched.failures = watched.delays = 0
            health.probe_succeeded(now)
            return
        if outcome is Outcome.FAILED:
            watched.failures += 1
        else:
            watched.delays += 1
        if (watched.failures >= _FAILURES or watched.delays >= _DELAYS) and health.probe_failed(now):
            self._on_ejected(watched.endpoint, watched.entity, HEALTH)


def _asked(table: LiveTable) -> Iterator[tuple[str, str, LiveBackend]]:
    """The replicas that have something to be asked, with their endpoints and entities."""
    for endpoint in table.endpoints.values():
        for entity in endpoint.entities:
            for backend in entity.backends:
                if backend.probe:
                    yield endpoint.name, entity.name, backend


def _drop(watched: Watched) -> None:
    if watched.probe is not None:
        watched.probe.cancel()
        watched.probe = None
