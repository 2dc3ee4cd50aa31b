"""The routing table made ready to serve: names resolved to pools, secrets to values, texts to bytes.

A `LiveTable` is built beside the one in use and replaces it by one reference. What outlives a table (pools
of sockets, gauges, counters, the splits of endpoints whose weights did not change) is kept in a `Registry`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import cycle, repeat
from typing import Final
from urllib.parse import SplitResult, urlsplit

import orjson

from servestate.planner.table import Backend, EndpointRoutes, EntityRoute, RoutingTable, Sticky
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import Secrets, fill
from servestate.runtime.router.balance import pick
from servestate.runtime.router.balance.health import Health
from servestate.runtime.router.balance.pick import Draws, Split, split_of
from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.balance.replicas import Replicas
from servestate.runtime.router.guards.guard import LiveGuard
from servestate.runtime.router.http.upstream import Origin, TcpOrigin
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.messages.body import KINDS, Kind
from servestate.runtime.router.mirror import LiveMirror
from servestate.runtime.router.quota.memory import Memory
from servestate.runtime.router.quota.rates import Rates
from servestate.runtime.router.records.counters import Counters

_SENDABLE: Final = re.compile(r"[\t -~]*")


class Gauge:
    """Requests running on one replica, whichever table they came by, and whether it is well."""

    __slots__ = ("health", "inflight")

    def __init__(self, policy: HealthPolicy) -> None:
        self.inflight = 0
        self.health = Health(policy)


class LiveBackend:
    """A replica: its pool, its gauge and the bytes that every request to it and answer from it begins with.

    `heads[kind]` is the request's head up to the fields that differ by request, `answer_fields` the header
    lines that say where an answer came from, `probe` a whole request for whether it is well, b"" where it has
    no answer to that.
    """

    __slots__ = ("answer_fields", "gauge", "heads", "origin", "probe", "replica")

    def __init__(
        self,
        replica: str,
        origin: Origin,
        gauge: Gauge,
        heads: dict[Kind, bytes],
        answer_fields: bytes,
        probe: bytes,
    ) -> None:
        self.replica = replica
        self.origin = origin
        self.gauge = gauge
        self.heads = heads
        self.answer_fields = answer_fields
        self.probe = probe


class LiveEntity:
    """A served entity with its replicas. `choose` and `closed` are those of `Replicas`; `by_prefix` says that
    it wants the beginning of the prompt. Of `route` what every request asks for stands here as well;
    `external`: it is a model of somebody else's."""

    __slots__ = (
        "answer_fields",
        "backends",
        "by_prefix",
        "choose",
        "closed",
        "counters",
        "external",
        "model",
        "name",
        "route",
        "task",
    )

    def __init__(
        self,
        route: EntityRoute,
        backends: tuple[LiveBackend, ...],
        answer_fields: bytes,
        counters: Counters,
        policy: str,
    ) -> None:
        self.route = route
        self.name = route.name
        self.task = route.task
        self.model = route.model
        self.external = route.fixed_path
        self.backends = backends
        self.answer_fields = answer_fields
        self.counters = counters
        self.by_prefix = policy == "prefix_hash"
        replicas = Replicas(backends, policy)
        self.choose = replicas.choose
        self.closed = replicas.closed


class LiveEndpoint:
    """An endpoint with its running split, and all that a request of it has to be asked.

    `rates` is None where nothing is limited; `guard_input`, `guard_output` and `mirror` are None where there
    is none. `deadline_s` and `stall_s` hold for its requests. `measures`: the tokens of each are wanted.
    `sampled` says of each request in turn whether it is written down, and is None where none is. `passes`:
    nothing needs bodies whole, to look at them, to copy them or to send them a second time. `models` are its
    entries in the list of models.
    """

    __slots__ = (
        "by_name",
        "config_version",
        "deadline_s",
        "entities",
        "fallback",
        "grants",
        "guard_input",
        "guard_output",
        "measures",
        "mirror",
        "models",
        "name",
        "named_by_header",
        "passes",
        "payloads",
        "rates",
        "sampled",
        "split",
        "stall_s",
        "traffic",
        "usage",
    )

    def __init__(
        self,
        routes: EndpointRoutes,
        entities: tuple[LiveEntity, ...],
        split: Split,
        rates: Rates | None,
        mirror: LiveMirror | None,
        sampled: Iterator[bool] | None,
        created: int,
        limits: Limits,
    ) -> None:
        """Raises ValueError where a guard cannot be had."""
        self.name = routes.name
        self.config_version = routes.config_version
        self.entities = entities
        self.by_name = {entity.name: entity for entity in entities}
        self.split = split
        self.grants = routes.grants
        self.rates = rates
        self.traffic = traffic = routes.traffic
        self.deadline_s: float = traffic.deadline_s or limits.request_s
        self.stall_s: float = traffic.stall_s or limits.stall_s
        self.named_by_header = traffic.named_by_header
        self.fallback = traffic.fallback
        self.guard_input = LiveGuard(routes.guard_input) if routes.guard_input is not None else None
        self.guard_output = LiveGuard(routes.guard_output) if routes.guard_output is not None else None
        self.usage = routes.usage
        self.measures = routes.usage or (rates is not None and rates.counts_tokens)
        self.payloads = routes.payloads
        self.sampled = sampled
        self.mirror = mirror
        self.passes = not (
            traffic.fallback
            or traffic.replicas == "prefix_hash"
            or (traffic.sticky is not None and traffic.sticky.source == "body")
            or routes.guard_input is not None
            or mirror is not None
            or self.measures
            or sampled is not None
        )
        names = (routes.name, *(f"{routes.name}/{entity.name}" for entity in routes.entities))
        self.models = [
            {"id": name, "object": "model", "created": created, "owned_by": "servestate"} for name in names
        ]


def sampler(percent: int) -> Iterator[bool]:
    """Whether each request in turn is chosen: of any hundred in a row exactly so many."""
    if not percent:
        return repeat(False)
    return cycle([index == 0 for index in pick.cycle([percent, 100 - percent])])


def list_of_models(endpoints: Iterable[LiveEndpoint]) -> bytes:
    """The body of the list of models, of those endpoints."""
    return orjson.dumps({"object": "list", "data": [one for e in endpoints for one in e.models]})


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One version of the table, ready. `models` is the body of the list of all models."""

    source: RoutingTable
    endpoints: dict[str, LiveEndpoint]
    models: bytes


Shares = tuple[str, Sticky | None, tuple[tuple[str, int], ...]]
"""What a split is made of: it runs on for as long as none of this changes."""


@dataclass(slots=True)
class _Kept:
    """What tables have in common, by name of the endpoint, endpoint and entity, place or replica."""

    splits: dict[str, tuple[Shares, Split]] = field(default_factory=dict)
    counters: dict[tuple[str, str], Counters] = field(default_factory=dict)
    rates: dict[str, Rates] = field(default_factory=dict)
    mirrors: dict[str, LiveMirror] = field(default_factory=dict)
    samplers: dict[tuple[str, str], tuple[int, Iterator[bool]]] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    gauges: dict[str, Gauge] = field(default_factory=dict)

    def copy(self) -> _Kept:
        """Another one with the same in it."""
        return _Kept(*(dict(getattr(self, part.name)) for part in fields(self)))


class Registry:
    """What outlives a table. `admit` builds the next one; it changes nothing unless it succeeds."""

    def __init__(self, limits: Limits, secrets: Secrets, created: int, memory: Memory | None = None) -> None:
        """`memory` is what the workers of this router share; without it this is the only one."""
        self._memory = memory or Memory.private()
        self._shared = self._memory.fd is not None
        self._limits = limits
        self._secrets = secrets
        self._created = created
        self._kept = _Kept()

    @property
    def origins(self) -> dict[str, Origin]:
        """Where upstreams are reached, by scheme, host and port."""
        return self._kept.origins

    @property
    def gauges(self) -> dict[str, Gauge]:
        """The gauges of replicas by their names."""
        return self._kept.gauges

    def admit(self, table: RoutingTable) -> LiveTable:
        """`table` made ready. Raises ValueError naming what cannot be served: a missing secret, a bad URL, a
        guard that cannot be had."""
        before = self._kept
        self._kept = before.copy()
        try:
            endpoints = {routes.name: self._endpoint(routes) for routes in table.endpoints}
        except PermanentError as error:
            self._kept = before
            raise ValueError(f"{error}\n  fix: {error.fix}") from None
        except ValueError:
            self._kept = before
            raise
        self._forget_absent(endpoints)
        return LiveTable(table, endpoints, list_of_models(endpoints.values()))

    def _forget_absent(self, endpoints: dict[str, LiveEndpoint]) -> None:
        """Drop what no table uses any more, except gauges of requests that still run."""
        kept = self._kept
        entities = [entity for endpoint in endpoints.values() for entity in endpoint.entities]
        replicas = {backend.replica for entity in entities for backend in entity.backends}
        used = {id(backend.origin) for entity in entities for backend in entity.backends}
        kept.gauges = {k: g for k, g in kept.gauges.items() if k in replicas or g.inflight}
        for key in [key for key, origin in kept.origins.items() if id(origin) not in used]:
            kept.origins.pop(key).retire()
        kept.splits = {name: split for name, split in kept.splits.items() if name in endpoints}
        kept.rates = {name: rates for name, rates in kept.rates.items() if name in endpoints}
        kept.mirrors = {name: mirror for name, mirror in kept.mirrors.items() if name in endpoints}
        kept.samplers = {key: turns for key, turns in kept.samplers.items() if key[0] in endpoints}
        names = {(e.name, entity.name) for e in endpoints.values() for entity in e.entities}
        kept.counters = {key: counters for key, counters in kept.counters.items() if key in names}

    def _endpoint(self, routes: EndpointRoutes) -> LiveEndpoint:
        kept = self._kept
        names, weights = [e.name for e in routes.entities], [e.weight for e in routes.entities]
        shares = routes.traffic.split, routes.traffic.sticky, tuple(zip(names, weights, strict=True))
        known, split = kept.splits.get(routes.name, (None, None))
        if split is None or known != shares:
            split = split_of(routes.traffic, weights, names, self._draws(routes.name, shares))
        kept.splits[routes.name] = shares, split
        entities = tuple(self._entity(routes, entity) for entity in routes.entities)
        mirror = self._mirror(routes, entities)
        payloads = routes.payloads
        sampled = self._sampler(routes.name, "payloads", payloads.percent) if payloads is not None else None
        rates = self._limited(routes)
        return LiveEndpoint(routes, entities, split, rates, mirror, sampled, self._created, self._limits)

    def _sampler(self, endpoint: str, purpose: str, percent: int) -> Iterator[bool]:
        """Whose turns go on for as long as the percent stays: each new table would else begin with a copy."""
        before, turns = self._kept.samplers.get((endpoint, purpose), (-1, repeat(False)))
        if before != percent:
            turns = sampler(percent)
            self._kept.samplers[endpoint, purpose] = percent, turns
        return turns

    def _mirror(self, routes: EndpointRoutes, entities: Iterable[LiveEntity]) -> LiveMirror | None:
        before = self._kept.mirrors.pop(routes.name, None)
        wanted = routes.traffic.mirror
        if wanted is None:
            return None
        entity = next(entity for entity in entities if entity.name == wanted.entity)
        turns = self._sampler(routes.name, "mirror", wanted.percent)
        mirror = LiveMirror(entity, wanted.max_inflight, turns, before)
        self._kept.mirrors[routes.name] = mirror
        return mirror

    def _draws(self, endpoint: str, shares: Shares) -> Draws | None:
        """Where the workers take their turns from. Theirs change tables one after the other: those of the old
        shares and those of the new must not use up each other's."""
        return self._memory.sequence(f"split {endpoint} {shares}") if self._shared else None

    def _limited(self, routes: EndpointRoutes) -> Rates | None:
        before = self._kept.rates.pop(routes.name, None)
        if not routes.limits and not routes.traffic.concurrency:
            return None
        rates = self._kept.rates[routes.name] = Rates(
            f"{routes.name} {routes.made}",  # one made anew under an old name owes nothing
            routes.limits,
            routes.traffic.concurrency,
            routes.traffic.shadow,
            self._memory,
            before,
        )
        return rates

    def _entity(self, routes: EndpointRoutes, entity: EntityRoute) -> LiveEntity:
        answer_fields = (
            f"served-model-name: {entity.name}\r\nx-servestate-endpoint: {routes.name}\r\n"
            f"x-servestate-entity: {entity.name}\r\nx-servestate-config-version: {routes.config_version}\r\n"
        ).encode("ascii")
        fields = self._request_fields(routes.name, entity)
        backends = tuple(self._backend(entity, b, fields, answer_fields) for b in entity.backends)
        counters = self._kept.counters.setdefault((routes.name, entity.name), Counters())
        return LiveEntity(entity, backends, answer_fields, counters, routes.traffic.replicas)

    def _request_fields(self, endpoint: str, entity: EntityRoute) -> bytes:
        """The header lines that the operator configured for all replicas, the credential among them."""
        lines = list(entity.headers)
        if entity.credential is not None:
            value = entity.credential.prefix + fill(entity.credential.secret, self._secrets).reveal()
            if not _SENDABLE.fullmatch(value):
                # The value itself must not be shown.
                raise ValueError(
                    f"endpoint {endpoint!r}, entity {entity.name!r}: the secret {entity.credential.secret} "
                    "holds a character that no header may hold"
                )
            lines.append((entity.credential.header, value))
        return "".join(f"{name}: {value}\r\n" for name, value in lines).encode("ascii")

    def _backend(
        self, entity: EntityRoute, backend: Backend, fields: bytes, answer_fields: bytes
    ) -> LiveBackend:
        url = urlsplit(backend.url)
        origin = self._origin(url, external=entity.fixed_path)
        gauge = self.gauges.setdefault(backend.replica, Gauge(self._limits.health))
        own = b""
        if backend.key:
            key = fill(backend.key, self._secrets).reveal()
            own = f"Authorization: Bearer {key}\r\n".encode("ascii")
        heads = {kind: _head(entity, url, kind, fields + own) for kind in KINDS}
        probe = _probe(url, backend.health, own) if backend.health else b""
        where = f"x-servestate-replica: {backend.replica}\r\n".encode("ascii")
        return LiveBackend(backend.replica, origin, gauge, heads, answer_fields + where, probe)

    def _origin(self, url: SplitResult, *, external: bool) -> Origin:
        tls = url.scheme == "https"
        port = url.port or (443 if tls else 80)
        if not url.hostname:
            raise ValueError(f"the URL {url.geturl()!r} has no host")
        key = f"{'external ' if external else ''}{url.scheme}://{url.hostname}:{port}"
        if key not in self.origins:
            self.origins[key] = TcpOrigin(url.hostname, port, tls, self._limits, external=external)
        return self.origins[key]


def _head(entity: EntityRoute, url: SplitResult, kind: Kind, fields: bytes) -> bytes:
    target = (url.path or "/") + (f"?{url.query}" if url.query else "") if entity.fixed_path else kind.path
    line = f"POST {target} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    return line.encode("ascii") + fields


def _probe(url: SplitResult, path: str, fields: bytes) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\n".encode("ascii") + fields + b"\r\n"
