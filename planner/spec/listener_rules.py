"""Rules of what the listeners are given beside an address."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.hosts import is_never_reached, network_of
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import Site

_URL = re.compile(r"https?://[A-Za-z0-9_.\-\[\]:]+(?:/[!-~]*)?\Z")
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]{1,253}\Z")

_Problem = tuple[str, str, tuple[str | int, ...]]


def beside(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Certificates, logs, traces and health checks."""
    for what, fix, path in (*_tls(site), *_records(site), *_health(site)):
        report.error("SS213", what, fix, *path)


def _tls(site: Site) -> Iterator[_Problem]:
    for name in ("router", "management"):
        listener = getattr(site, name)
        for field in ("cert", "key") if listener.tls is not None else ():
            if not getattr(listener.tls, field).strip():
                yield f"tls of {name} names no {field}", "name a PEM file", (name, "tls", field)
        if listener.tls is not None and listener.plaintext:
            what = f"{name} has both tls and plaintext: true"
            yield what, "keep one of them", (name, "plaintext")


def _records(site: Site) -> Iterator[_Problem]:
    log, traces = site.router.access_log, site.router.traces
    if log is not None and (not log.path.strip() or log.path.endswith("/")):
        yield "the access log names no file", "write path: access.jsonl", ("router", "access_log", "path")
    if traces is not None and not _URL.match(traces.otlp):
        what, fix = "otlp is not a URL that traces can be sent to", "write http(s)://HOST[:PORT]/v1/traces"
        yield what, fix, ("router", "traces", "otlp")


def _health(site: Site) -> Iterator[_Problem]:
    health = site.router.health
    if health.max_ejection_s < health.ejection_s:
        what = f"max_ejection_s ({health.max_ejection_s:g}) is less than ejection_s ({health.ejection_s:g})"
        yield what, "make it at least as long", ("router", "health", "max_ejection_s")


def egress(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """What external models may be reached at: an address, a network, or the name of a host."""
    for index, entry in enumerate(site.router.egress.allow):
        at = ("router", "egress", "allow", index)
        network = network_of(entry)
        if network is None and not _NAME.match(entry):
            what = f'"{shorten(entry)}" is neither an address, a network nor the name of a host'
            fix = "write 10.1.2.3, 10.1.0.0/16 or models.example.internal, without scheme and port"
            report.error("SS214", what, fix, *at)
        elif network is not None and is_never_reached(str(network.network_address)):
            what = f'"{shorten(entry)}" is link-local: clouds keep the credentials of their machines there'
            report.error("SS214", what, "remove it: such addresses are never reached", *at)
