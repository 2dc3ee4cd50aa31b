"""The listeners of the site block, and what the router does beside answering."""

from __future__ import annotations

from pydantic import Field

from servestate.planner.spec.fields import Bytes, Flag, Schema, Seconds, Whole


class ListenerTls(Schema):
    """Files of a listener that ends TLS itself: its certificate, with the chain, and the key of it. Relative
    paths start in the bundle's folder; new files are taken up while it runs."""

    cert: str
    key: str


class Listener(Schema):
    """`listen` is HOST:PORT. A listener beyond this machine ends TLS (`tls`), or says by `plaintext` that
    http is meant: a proxy in front of it ends TLS."""

    listen: str
    plaintext: Flag = False
    tls: ListenerTls | None = None

    @property
    def host(self) -> str:
        """The host part; brackets of an IPv6 address are removed."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port part."""
        return int(self.listen.rpartition(":")[2])


class AccessLog(Schema):
    """A line of JSON for each request, in `path` (relative to the bundle's folder). A file of `max_bytes` is
    set aside; `keep` of those are kept."""

    path: str
    max_bytes: Bytes = Field(default=64 * 2**20, ge=2**16)
    keep: Whole = Field(default=5, ge=0, le=1000)


class Traces(Schema):
    """`otlp` is the URL of a collector that takes OTLP over HTTP, for example
    `http://127.0.0.1:4318/v1/traces`."""

    otlp: str


class HealthChecks(Schema):
    """How the router judges replicas. Each is asked for its health every `interval_s`, and has `timeout_s` to
    answer. After `errors` failures in a row it gets no requests for `ejection_s`, each time twice as long, up
    to `max_ejection_s`; the last one of an entity is never left out."""

    interval_s: Seconds = Field(default=5.0, ge=0.1, le=3600)
    timeout_s: Seconds = Field(default=2.0, ge=0.1, le=3600)
    errors: Whole = Field(default=5, ge=1, le=1000)
    ejection_s: Seconds = Field(default=10.0, ge=0.1, le=86_400)
    max_ejection_s: Seconds = Field(default=300.0, ge=0.1, le=86_400)


class Egress(Schema):
    """Where requests to external models may go. Public addresses always; an internal one (loopback, private,
    shared, unique local) where the model's URL names that very address or `localhost`, or where `allow` has
    it: as an address, as a network (`10.1.0.0/16`), or by the name of the host in the URL. Link-local
    addresses, at which clouds keep the credentials of their machines, never."""

    allow: tuple[str, ...] = ()


class RouterListener(Listener):
    """The listener that models are called by, on which `workers` processes answer. At its end each gives the
    requests in flight `drain_s`. Beyond `max_inflight` requests under way, an equal share of which each
    process may have, callers are told at once to come again; 0 = as many as there are connections."""

    listen: str = "127.0.0.1:8080"
    workers: Whole = Field(default=1, ge=1, le=64)
    drain_s: Seconds = Field(default=30.0, ge=0, le=86_400)
    max_inflight: Whole = Field(default=0, ge=0, le=1_000_000)
    access_log: AccessLog | None = None
    traces: Traces | None = None
    health: HealthChecks = HealthChecks()
    egress: Egress = Egress()


class ManagementListener(Listener):
    """The listener of the serving API and of metrics; models are called by it as well."""

    listen: str = "127.0.0.1:8081"
