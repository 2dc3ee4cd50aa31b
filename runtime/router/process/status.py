"""The control socket: what the router knows about itself, for the executor and for `servestate status`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Protocol, cast

import orjson

from servestate.runtime.router.http.errors import Refused
from servestate.runtime.router.http.http1 import RequestReader
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.records.counters import BOUNDS_MS, Counters
from servestate.runtime.router.records.exposition import CONTENT_TYPE
from servestate.runtime.router.routing import Gauge, LiveEndpoint, LiveTable


def endpoints_report(table: LiveTable) -> dict[str, Any]:
    """Per endpoint and entity: `assigned` counts turns of the split since its weights last changed, `direct`
    requests that named the entity; `requests`, `errors` count since start, `inflight` over all tables.
    `statuses` and `latency_ms` are those of `Counters`. `limited` counts calls that a limit refused. `mirror`
    is there where copies are made, and what became of them."""
    return {
        name: {
            "config_version": endpoint.config_version,
            "limited": sum(endpoint.rates.refused.values()) if endpoint.rates is not None else 0,
            "entities": _entities(endpoint),
            **_mirror(endpoint),
        }
        for name, endpoint in table.endpoints.items()
    }


def replicas_report(gauges: dict[str, Gauge], now: float) -> dict[str, Any]:
    """Requests running on each replica, by whichever table they came, and its health; see `Health.report`."""
    return {
        replica: {"inflight": gauge.inflight, **gauge.health.report(now)} for replica, gauge in gauges.items()
    }


def states_report(table: LiveTable, now: float) -> Iterator[tuple[str, str, str, str]]:
    """The health of each replica in one word: endpoint, entity, replica, state."""
    for name, endpoint in table.endpoints.items():
        for entity in endpoint.entities:
            for backend in entity.backends:
                yield name, entity.name, backend.replica, backend.gauge.health.report(now)["state"]


def limited_report(table: LiveTable) -> Iterator[tuple[str, str, str, int]]:
    """What limits refused, and would have: endpoint, limit, mode, how often."""
    for name, endpoint in table.endpoints.items():
        if endpoint.rates is not None:
            for mode, counts in (("enforce", endpoint.rates.refused), ("shadow", endpoint.rates.shadowed)):
                yield from ((name, limit, mode, count) for limit, count in counts.items())


def _entities(endpoint: LiveEndpoint) -> dict[str, Any]:
    return {
        entity.name: {
            "weight": entity.route.weight,
            "assigned": assigned,
            "direct": entity.counters.direct,
            "requests": entity.counters.requests,
            "errors": entity.counters.errors,
            "inflight": entity.counters.inflight,
            **_answers(entity.counters),
        }
        for entity, assigned in zip(endpoint.entities, endpoint.split.assigned, strict=True)
    }


def _mirror(endpoint: LiveEndpoint) -> dict[str, Any]:
    mirror = endpoint.mirror
    if mirror is None:
        return {}
    prompt, completion, _, _ = mirror.counters.tokens
    told = {"entity": mirror.entity.name, "inflight": mirror.inflight}
    return {"mirror": told | {"tokens": [prompt, completion]} | _answers(mirror.counters)}


def _answers(counters: Counters) -> dict[str, Any]:
    return {
        "statuses": {f"{hundreds}xx": counters.statuses[hundreds] for hundreds in (2, 4, 5)},
        "latency_ms": {
            "bounds": BOUNDS_MS,
            "counts": list(counters.latencies.counts),
            "sum": counters.latencies.sum * 1000,
        },
    }


class Reporting(Protocol):
    """What the control socket tells of. All raise Silent where a worker does not answer."""

    async def report(self) -> dict[str, Any]:
        """The answer to `GET /status`."""

    async def brief(self) -> dict[str, Any]:
        """The answer to `GET /status?brief`; see `server.Router.brief`."""

    async def exposition(self) -> bytes:
        """The answer to `GET /metrics`."""


class Silent(Exception):
    """A worker is there and gives no answer: what it does is not known."""


class ControlConnection(asyncio.Protocol):
    """One caller of the control socket: `GET /status`, `GET /metrics`, `GET /healthz`; one request, then
    closed."""

    def __init__(self, reporting: Reporting, limits: Limits) -> None:
        self._reporting = reporting
        self._reader = RequestReader(limits)
        self._transport: asyncio.Transport
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        if self._answering is not None:
            return
        try:
            if not self._reader.receive(data):
                return
        except Refused as refusal:
            self._send(refusal.failure.status, orjson.dumps({"message": refusal.failure.message}))
            return
        head = self._reader.head
        asked = (head.method, head.target) if head is not None else (b"", b"")
        self._answering = asyncio.get_running_loop().create_task(self._answer(*asked))

    async def _answer(self, method: bytes, target: bytes) -> None:
        try:
            path, _, query = target.partition(b"?")
            match method, path, query:
                case b"GET", b"/status", b"brief":
                    self._send(200, orjson.dumps(await self._reporting.brief()))
                case b"GET", b"/status", _:
                    self._send(200, orjson.dumps(await self._reporting.report()))
                case b"GET", b"/metrics", _:
                    self._send(200, await self._reporting.exposition(), CONTENT_TYPE)
                case b"GET", b"/healthz", _:
                    self._send(200, b'{"status":"ok"}')
                case _:
                    what = b'{"message":"there is only GET /status, GET /metrics and GET /healthz"}'
                    self._send(404, what)
        except Silent as error:
            self._send(503, orjson.dumps({"message": str(error)}))

    def _send(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        self._transport.write(
            b"HTTP/1.1 %d \r\nContent-Type: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (status, content_type, len(body), body)
        )
        self._transport.close()
