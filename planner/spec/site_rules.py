"""The rules of the site block that the schema cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from servestate.planner.spec import (
    access_rules,
    docker_rules,
    engine_rules,
    listener_rules,
    reserved_rules,
    traffic_rules,
)
from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.report import Report
from servestate.planner.spec.rules import ENVIRONMENT_FIX, environment_problem
from servestate.planner.spec.site import Site
from servestate.planner.spec.suggest import did_you_mean
from servestate.planner.spec.support import TASKS

_LISTEN = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}\Z")
_PORTS = re.compile(r"[0-9]{1,5}-[0-9]{1,5}\Z")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared with, not bound to
_TOP_PORT = 65535
_OVERRIDES_SHOWN = 20


def listeners(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """HOST:PORT, and a port that can be. Port 0 lets the system choose."""
    for name in ("router", "management"):
        listen = getattr(site, name).listen
        if not _LISTEN.match(listen) or int(listen.rpartition(":")[2]) > _TOP_PORT:
            what = f'"{shorten(listen)}" is not an address to listen on'
            report.error("SS180", what, "write HOST:PORT, for example 127.0.0.1:8080", name, "listen")


def port_range(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """The ports of local processes: FIRST-LAST, unprivileged."""
    if _port_range(site) is None:
        what = f'"{shorten(site.providers.process.ports)}" is not a range of ports'
        fix = f"write FIRST-LAST within 1024-{_TOP_PORT}, for example 21000-28999"
        report.error("SS185", what, fix, "providers", "process", "ports")


def _port_range(site: Site) -> range | None:
    ports = site.providers.process.ports
    if not _PORTS.match(ports):
        return None
    first, _, last = ports.partition("-")
    return range(int(first), int(last) + 1) if 1024 <= int(first) <= int(last) <= _TOP_PORT else None


def port_once(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """No port is used twice: by both listeners, or by a listener and the processes."""
    if not all(_LISTEN.match(listener.listen) for listener in (site.router, site.management)):
        return
    router, management = site.router, site.management
    same_host = router.host == management.host or {router.host, management.host} & set(_EVERYWHERE)
    if router.port == management.port != 0 and same_host:
        what = f"router and management both listen on port {router.port}"
        report.error("SS181", what, "give one of them another port", "management", "listen")
    for name, listener in (("router", router), ("management", management)):
        if listener.port in (_port_range(site) or ()):
            ports = site.providers.process.ports
            what = f"the port of {name}, {listener.port}, is in the range of the processes, {ports}"
            report.error("SS181", what, "move one of them", name, "listen")


def state(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Where the state is kept. The URL is not shown: it may hold a password."""
    if site.state.startswith("sqlite:///") and len(site.state) > len("sqlite:///"):
        return
    what = "state is not a place that state can be kept in"
    if re.match("postgres(ql)?://", site.state):
        what = "state in PostgreSQL is not supported yet"
    report.error("SS182", what, "write sqlite:///PATH, for example sqlite:///.servestate/state.db", "state")


def catalogue(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Models have versions, a known task, and an environment that can be set."""
    for name, model in site.models.items():
        if not model.versions:
            report.error(
                "SS187",
                f"{shorten(name)} has no versions",
                'add versions: {"1": {engine: …}}',
                "models",
                name,
            )
        if model.task and model.task not in TASKS:
            what = f"{shorten(name)} has a task that is not known"
            report.error("SS187", what, f"use one of {', '.join(TASKS)}, or none", "models", name, "task")
        for number, version in model.versions.items():
            for variable, value in version.env.items():
                if problem := environment_problem(variable, value):
                    at = ("models", name, "versions", number, "env", variable)
                    report.error("SS121", problem, ENVIRONMENT_FIX, *at)


def overrides(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Overrides of what is not there: a typing error, or a leftover."""
    if not site.overrides:
        return
    known = {e.name for e in endpoints} | {f"{e.name}/{x.name}" for e in endpoints for x in e.entities}
    unknown = [address for address in site.overrides if address not in known]
    for address in unknown[:_OVERRIDES_SHOWN]:
        what = f'servestate.overrides has "{shorten(address)}", which no endpoint or entity is called'
        fix = f"correct or remove it{did_you_mean(address, known)}"
        report.warning("SS186", what, fix, "overrides", address)


Rule = Callable[[Site, Sequence[Endpoint], Report], None]

SITE_RULES: tuple[Rule, ...] = (
    listeners,  # SS180
    port_once,  # SS181
    state,  # SS182
    engine_rules.engines,  # SS184
    port_range,  # SS185
    catalogue,  # SS187, SS121
    docker_rules.hosts,  # SS188
    docker_rules.placements,  # SS189
    engine_rules.options_of_others,  # SS190
    engine_rules.arguments,  # SS191
    docker_rules.containers,  # SS192, which the schema gives as well; warning SS196
    docker_rules.images,  # SS193
    engine_rules.parallelism,  # SS194
    reserved_rules.in_site,  # SS195, also a rule of endpoints
    access_rules.tokens,  # SS197
    access_rules.beyond_this_machine,  # SS198
    access_rules.hosts,  # SS199
    traffic_rules.sticky,  # SS210
    traffic_rules.mirrors,  # SS211, also of requests and plans
    listener_rules.beside,  # SS213
    listener_rules.egress,  # SS214
)

ABSENCE_RULES: tuple[Rule, ...] = (
    overrides,  # warning SS186
    traffic_rules.endpoints_there,  # warning SS212
)
"""Those that say that an endpoint is not there; for endpoints that could all be read."""
