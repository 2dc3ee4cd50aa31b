"""The routing table made ready to serve: names resolved to pools, secrets to values, texts to bytes.

A `LiveTable` is built beside the one in use and replaces it by one reference. What outlives a table (pools
of sockets, gauges, counters, the splits of endpoints whose weights did not change) is kept in a `Registry`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import orjson

from servestate.planner.table import Backend, EndpointRoutes, EntityRoute, RoutingTable, Sticky
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import Secrets, fill
from servestate.runtime.router.body import KINDS, Kind
from servestate.runtime.router.counters import Counters
from servestate.runtime.router.health import Health, HealthPolicy
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.memory import Memory
from servestate.runtime.router.pick import Draws, Split, split_of
from servestate.runtime.router.rates import Rates
from servestate.runtime.router.replicas import Replicas
from servestate.runtime.router.upstream import Origin, TcpOrigin

_SENDABLE = re.compile(r"[\t -~]*")


class Gauge:
    """Requests running on one replica, whichever table they came by, and whether it is well."""

    __slots__ = ("avoid_until", "health", "inflight")

    def __init__(self, policy: HealthPolicy) -> None:
        self.inflight = 0
        self.health = Health(policy)
        self.avoid_until = 0.0


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
    """A served entity with its replicas. `choose` is that of `Replicas`."""

    __slots__ = ("answer_fields", "backends", "choose", "counters", "route")

    def __init__(
        self,
        route: EntityRoute,
        backends: tuple[LiveBackend, ...],
        answer_fields: bytes,
        counters: Counters,
        policy: str,
    ) -> None:
        self.route = route
        self.backends = backends
        self.answer_fields = answer_fields
        self.counters = counters
        self.choose = Replicas(backends, policy).choose


class LiveEndpoint:
    """An endpoint with its running split. `rates` is None where calls are not limited; `models` are its
    entries in the list of models."""

    __slots__ = ("by_name", "config_version", "entities", "grants", "models", "name", "rates", "split")

    def __init__(
        self,
        routes: EndpointRoutes,
        entities: tuple[LiveEntity, ...],
        split: Split,
        rates: Rates | None,
        created: int,
    ) -> None:
        self.name = routes.name
        self.config_version = routes.config_version
        self.entities = entities
        self.by_name = {entity.route.name: entity for entity in entities}
        self.split = split
        self.grants = routes.grants
        self.rates = rates
        names = (routes.name, *(f"{routes.name}/{entity.name}" for entity in routes.entities))
        self.models = [
            {"id": name, "object": "model", "created": created, "owned_by": "servestate"} for name in names
        ]


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


class Registry:
    """What outlives a table. `admit` builds the next one; it changes nothing unless it succeeds."""

    def __init__(self, limits: Limits, secrets: Secrets, created: int, memory: Memory | None = None) -> None:
        """`memory` is what the workers of this router share; without it this is the only one."""
        self._memory = memory or Memory.private()
        self._shared = self._memory.fd is not None
        self._limits = limits
        self._secrets = secrets
        self._created = created
        self._splits: dict[str, tuple[Shares, Split]] = {}
        self._counters: dict[tuple[str, str], Counters] = {}
        self._rates: dict[str, Rates] = {}
        self.origins: dict[str, Origin] = {}
        self.gauges: dict[str, Gauge] = {}

    def admit(self, table: RoutingTable) -> LiveTable:
        """`table` made ready. Raises ValueError naming what cannot be served: a missing secret, a bad URL."""
        before = self._splits, self._counters, self._rates, self.origins, self.gauges
        self._splits, self._counters = dict(self._splits), dict(self._counters)
        self._rates = dict(self._rates)
        self.origins, self.gauges = dict(self.origins), dict(self.gauges)
        try:
            endpoints = {routes.name: self._endpoint(routes) for routes in table.endpoints}
        except PermanentError as error:
            self._splits, self._counters, self._rates, self.origins, self.gauges = before
            raise ValueError(f"{error}\n  fix: {error.fix}") from None
        except ValueError:
            self._splits, self._counters, self._rates, self.origins, self.gauges = before
            raise
        self._forget_absent(endpoints)
        return LiveTable(table, endpoints, list_of_models(endpoints.values()))

    def _forget_absent(self, endpoints: dict[str, LiveEndpoint]) -> None:
        """Drop what no table uses any more, except gauges of requests that still run."""
        entities = [entity for endpoint in endpoints.values() for entity in endpoint.entities]
        replicas = {backend.replica for entity in entities for backend in entity.backends}
        used = {id(backend.origin) for entity in entities for backend in entity.backends}
        self.gauges = {k: g for k, g in self.gauges.items() if k in replicas or g.inflight}
        for key in [key for key, origin in self.origins.items() if id(origin) not in used]:
            self.origins.pop(key).retire()
        self._splits = {name: split for name, split in self._splits.items() if name in endpoints}
        self._rates = {name: rates for name, rates in self._rates.items() if name in endpoints}
        names = {(e.name, entity.route.name) for e in endpoints.values() for entity in e.entities}
        self._counters = {key: counters for key, counters in self._counters.items() if key in names}

    def _endpoint(self, routes: EndpointRoutes) -> LiveEndpoint:
        names, weights = [e.name for e in routes.entities], [e.weight for e in routes.entities]
        shares = routes.traffic.split, routes.traffic.sticky, tuple(zip(names, weights, strict=True))
        known, split = self._splits.get(routes.name, (None, None))
        if split is None or known != shares:
            split = split_of(routes.traffic, weights, names, self._draws(routes.name, shares))
        self._splits[routes.name] = shares, split
        entities = tuple(self._entity(routes, entity) for entity in routes.entities)
        return LiveEndpoint(routes, entities, split, self._limited(routes), self._created)

    def _draws(self, endpoint: str, shares: Shares) -> Draws | None:
        """Where the workers take their turns from. Theirs change tables one after the other: those of the old
        shares and those of the new must not use up each other's."""
        return self._memory.sequence(f"split {endpoint} {shares}") if self._shared else None

    def _limited(self, routes: EndpointRoutes) -> Rates | None:
        before = self._rates.pop(routes.name, None)
        if not routes.limits:
            return None
        rates = self._rates[routes.name] = Rates(
            routes.name, routes.limits, 0, routes.traffic.shadow, self._memory, before
        )
        return rates

    def _entity(self, routes: EndpointRoutes, entity: EntityRoute) -> LiveEntity:
        answer_fields = (
            f"served-model-name: {entity.name}\r\nx-servestate-endpoint: {routes.name}\r\n"
            f"x-servestate-entity: {entity.name}\r\nx-servestate-config-version: {routes.config_version}\r\n"
        ).encode("ascii")
        fields = self._request_fields(routes.name, entity)
        backends = tuple(self._backend(entity, b, fields, answer_fields) for b in entity.backends)
        counters = self._counters.setdefault((routes.name, entity.name), Counters())
        return LiveEntity(entity, backends, answer_fields, counters, routes.traffic.replicas)

    def _request_fields(self, endpoint: str, entity: EntityRoute) -> bytes:
        """The header lines that the operator configured for all replicas, the credential among them."""
        fields = list(entity.headers)
        if entity.credential is not None:
            value = entity.credential.prefix + fill(entity.credential.secret, self._secrets).reveal()
            if not _SENDABLE.fullmatch(value):
                # The value itself must not be shown.
                raise ValueError(
                    f"endpoint {endpoint!r}, entity {entity.name!r}: the secret {entity.credential.secret} "
                    "holds a character that no header may hold"
                )
            fields.append((entity.credential.header, value))
        return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii")

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
