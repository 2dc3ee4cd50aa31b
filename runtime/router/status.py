"""The control socket: what the router knows about itself, for the executor and for `servestate status`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson

from servestate.runtime.router.counters import BOUNDS_MS, Counters
from servestate.runtime.router.errors import Refused
from servestate.runtime.router.http1 import RequestReader
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routing import Gauge, LiveEndpoint, LiveTable

Report = Callable[[], dict[str, Any]]


def endpoints_report(table: LiveTable) -> dict[str, Any]:
    """Per endpoint and entity: `assigned` counts turns of the split since its weights last changed, `direct`
    requests that named the entity; `requests`, `errors` count since start, `inflight` over all tables.
    `statuses` and `latency_ms` are those of `Counters`. `limited` counts calls that a limit refused."""
    return {
        name: {
            "config_version": endpoint.config_version,
            "limited": sum(endpoint.rates.refused.values()) if endpoint.rates is not None else 0,
            "entities": _entities(endpoint),
        }
        for name, endpoint in table.endpoints.items()
    }


def replicas_report(gauges: dict[str, Gauge]) -> dict[str, Any]:
    """Requests running on each replica, by whichever table they came."""
    return {replica: {"inflight": gauge.inflight} for replica, gauge in gauges.items()}


def _entities(endpoint: LiveEndpoint) -> dict[str, Any]:
    return {
        entity.route.name: {
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


def _answers(counters: Counters) -> dict[str, Any]:
    return {
        "statuses": {f"{hundreds}xx": counters.statuses[hundreds] for hundreds in (2, 4, 5)},
        "latency_ms": {
            "bounds": BOUNDS_MS,
            "counts": list(counters.latencies),
            "sum": counters.latency_s * 1000,
        },
    }


class ControlConnection(asyncio.Protocol):
    """One caller of the control socket: `GET /status`, `GET /healthz`; one request, then closed."""

    def __init__(self, report: Report, limits: Limits) -> None:
        self._report = report
        self._reader = RequestReader(limits)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        try:
            if not self._reader.receive(data):
                return
        except Refused as refusal:
            self._answer(refusal.failure.status, {"message": refusal.failure.message})
            return
        head = self._reader.head
        asked = (head.method, head.target) if head is not None else None
        if asked == (b"GET", b"/status"):
            self._answer(200, self._report())
        elif asked == (b"GET", b"/healthz"):
            self._answer(200, {"status": "ok"})
        else:
            self._answer(404, {"message": "there is only GET /status and GET /healthz"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = orjson.dumps(content)
        self._transport.write(
            b"HTTP/1.1 %d \r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )
        self._transport.close()
