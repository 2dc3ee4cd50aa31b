"""The routing table: all that the router knows. Built from state, written to a file, read by the router."""

from __future__ import annotations

from dataclasses import dataclass

from servestate.planner.access import Grant


@dataclass(frozen=True, slots=True)
class Backend:
    """One ready instance. `url` is an origin (`http://127.0.0.1:4000`) for an engine, to which the path of
    the request's kind is added, or the full URL for an external entity (`EntityRoute.fixed_path`). `key` is a
    reference to the key that this very replica asks for, "" where it asks for none."""

    replica: str
    url: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Credential:
    """What the router adds to upstream requests: header `header` = `prefix` + value of `secret`, a
    `{{secrets/scope/key}}` reference that the router resolves when it loads the table."""

    header: str
    prefix: str
    secret: str


@dataclass(frozen=True, slots=True)
class EntityRoute:
    """A served entity as the router sees it.

    `weight` 0..100: its share of the endpoint's traffic; 0 gets nothing but stays reachable by name.
    `model` is written into the request body. `task` restricts the kinds of body ("" = any). `fixed_path`
    says that backend URLs are complete. No backends means: not ready, answer 503.
    """

    name: str
    weight: int
    model: str
    task: str
    fixed_path: bool
    backends: tuple[Backend, ...]
    credential: Credential | None = None
    headers: tuple[tuple[str, str], ...] = ()


LIMIT_KEYS = ("endpoint", "user", "user_group", "service_principal")
"""Whom a limit can be for."""


@dataclass(frozen=True, slots=True)
class CallLimit:
    """At most `calls` requests a minute: of everybody together (key `endpoint`), of each user (`user`), or of
    the one that `principal` names (`user`, `user_group`, `service_principal`)."""

    key: str
    principal: str
    calls: int


@dataclass(frozen=True, slots=True)
class EndpointRoutes:
    """An endpoint as the router sees it, entities in declared order (ties of the split go by it). `grants`
    say who may query it; all of `limits` hold at once."""

    name: str
    config_version: int
    entities: tuple[EntityRoute, ...]
    grants: tuple[Grant, ...] = ()
    limits: tuple[CallLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The whole table. `version` is the serial of the state it was built from and only ever grows within a
    lineage; weights of each endpoint sum to 100."""

    version: int
    lineage: str
    endpoints: tuple[EndpointRoutes, ...] = ()
