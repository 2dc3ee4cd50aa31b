"""The routing table: all that the router knows. Built from state, written to a file, read by the router."""

from __future__ import annotations

from dataclasses import dataclass

from servestate.planner.access import Grant


@dataclass(frozen=True, slots=True)
class Backend:
    """One ready instance. `url` is an origin (`http://127.0.0.1:4000`) for an engine, to which the path of
    the request's kind is added, or the full URL for an external entity (`EntityRoute.fixed_path`). `key` is a
    reference to the key that this very replica asks for, "" where it asks for none. `health` is the path that
    answers 200 while it is well, "" where it is only judged by its answers."""

    replica: str
    url: str
    key: str = ""
    health: str = ""


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
class Limit:
    """At most `calls` requests and `tokens` tokens a minute (0 = not limited): of everybody together (key
    `endpoint`), of each user (`user`), or of the one that `principal` names (`user`, `user_group`,
    `service_principal`)."""

    key: str
    principal: str
    calls: int = 0
    tokens: int = 0


SPLITS = ("exact", "random", "sticky")
REPLICA_POLICIES = ("least_request", "prefix_hash")
STICKY_SOURCES = ("header", "body", "caller")
PII_BEHAVIORS = ("", "BLOCK", "MASK")
PAYLOAD_FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True, slots=True)
class Sticky:
    """What of a request decides on its entity: the header `name`, the body's member `name`, or the caller.
    Another `salt` deals all keys anew."""

    source: str
    name: str = ""
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Copies of `percent` of the requests go to `entity` as well, at most `max_inflight` at once."""

    entity: str
    percent: int
    max_inflight: int = 8


@dataclass(frozen=True, slots=True)
class Guard:
    """What is looked for in one direction: `keywords`, which refuse, and personal data (`pii`: "" not at
    all, BLOCK or MASK)."""

    keywords: tuple[str, ...] = ()
    pii: str = ""


@dataclass(frozen=True, slots=True)
class Payloads:
    """Requests and answers are recorded under `table` (CATALOG.SCHEMA.NAME), `percent` of them, each body up
    to `max_body_bytes`."""

    table: str
    format: str = "jsonl"
    percent: int = 100
    max_body_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests of an endpoint find their way, beyond the weights.

    `fallback`: what fails before its first content is tried on the other entities, in declared order;
    `after_send` says that a request may run twice, so that one lost without a status is tried elsewhere too.
    `deadline_s` is for all attempts together, to the first content; `stall_s` between two pieces of an
    answer; 0 = the router's own. `concurrency` bounds the requests in flight (0 = not). `shadow` counts what
    limits and concurrency would refuse, and lets it pass. `named_by_header` lets the request header
    `x-servestate-entity` name the entity.
    """

    split: str = "exact"
    sticky: Sticky | None = None
    replicas: str = "least_request"
    fallback: bool = False
    after_send: bool = False
    deadline_s: float = 0.0
    stall_s: float = 0.0
    concurrency: int = 0
    shadow: bool = False
    named_by_header: bool = False
    mirror: Mirror | None = None


@dataclass(frozen=True, slots=True)
class EndpointRoutes:
    """An endpoint as the router sees it, entities in declared order (ties of the split go by it). `grants`
    say who may query it; all of `limits` hold at once. `guard_input` and `guard_output` look at requests and
    answers; `usage` keeps a record of the tokens of each request, `payloads` of all that was said. `made`
    tells it from others that had its name before: the serial of the write that made it, 0 where unknown."""

    name: str
    config_version: int
    entities: tuple[EntityRoute, ...]
    grants: tuple[Grant, ...] = ()
    limits: tuple[Limit, ...] = ()
    traffic: Traffic = Traffic()
    guard_input: Guard | None = None
    guard_output: Guard | None = None
    usage: bool = False
    payloads: Payloads | None = None
    made: int = 0


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The whole table. `version` is the serial of the state it was built from and only ever grows within a
    lineage; weights of each endpoint sum to 100."""

    version: int
    lineage: str
    endpoints: tuple[EndpointRoutes, ...] = ()
