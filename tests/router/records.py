"""Requests that ended, made by hand, and a table that they came by."""

from __future__ import annotations

from typing import Any

from servestate.planner.access import Caller
from servestate.planner.table import Backend, EndpointRoutes, EntityRoute, Payloads, RoutingTable
from servestate.providers.secrets import EnvSecrets, Secrets
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.messages.body import CHAT
from servestate.runtime.router.records.record import Record
from servestate.runtime.router.routing import LiveTable, Registry


def routes(name: str = "chat-ep", entities: str = "ab", **more: Any) -> EndpointRoutes:
    """An endpoint with an entity per letter, of equal weight."""
    weight = 100 // len(entities)
    served = tuple(
        EntityRoute(
            one,
            weight,
            f"model-{one}",
            "llm/v1/chat",
            False,
            (Backend(f"{name}/{one}@rev#0", "http://127.0.0.1:9"),),
        )
        for one in entities
    )
    return EndpointRoutes(name, 3, served, **more)


def registry(secrets: Secrets | None = None) -> Registry:
    return Registry(Limits(), secrets or EnvSecrets({}), 0)


def live(*endpoints: EndpointRoutes, within: Registry | None = None) -> LiveTable:
    return (within or registry()).admit(RoutingTable(1, "lineage", endpoints or (routes(),)))


def recorded(table: LiveTable, endpoint: str = "chat-ep", entity: str = "a", **fields: Any) -> Record:
    """A request that was answered well within 0.3 s, but for `fields`."""
    served = table.endpoints[endpoint]
    found = served.by_name[entity]
    record = Record(b"0123456789abcdef-1", served, found, fields.pop("kind", CHAT), "split", 0.0)
    record.wall = 1_790_000_000.1234
    record.replica = found.backends[0].replica
    record.status, record.total_s, record.own_s = 200, 0.3, 0.00004
    record.sent, record.received = 200, 400
    record.caller = Caller("ann@example.com")
    for name, value in fields.items():
        setattr(record, name, value)
    return record


PAYLOADS = Payloads("main.logs.chat_payload")
