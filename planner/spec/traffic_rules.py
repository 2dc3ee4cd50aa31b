"""Rules of `servestate.traffic`: policies that agree with themselves and with the endpoint they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import Site
from servestate.planner.spec.suggest import did_you_mean
from servestate.planner.spec.traffic import MirrorPolicy

_SHOWN = 20


def sticky(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """A sticky split knows its key, and no other split has one."""
    for name, policy in site.traffic.items():
        if policy.split == "sticky" and policy.sticky is None:
            what = f'the split of "{shorten(name)}" is sticky, and nothing says by what'
            report.error("SS210", what, "add sticky: {from: caller}", "traffic", name, "split")
        elif policy.split != "sticky" and policy.sticky is not None:
            what = f'"{shorten(name)}" has sticky, and its split is {policy.split}'
            report.error("SS210", what, "add split: sticky, or remove it", "traffic", name, "sticky")


def mirrors(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """What is copied goes to an entity of the same endpoint."""
    for endpoint in endpoints:
        policy = site.traffic.get(endpoint.name)
        if policy is None or policy.mirror is None or endpoint.config is None:
            continue
        if problem := mirror_problem(endpoint.name, policy.mirror, external_by_name(endpoint)):
            report.error("SS211", *problem, "traffic", endpoint.name, "mirror", "entity")


def external_by_name(endpoint: Endpoint) -> dict[str, bool]:
    """The entities of an endpoint, each with whether somebody else runs it."""
    return {entity.name: entity.external_model is not None for entity in endpoint.entities}


def mirror_problem(
    endpoint: str, mirror: MirrorPolicy, external: Mapping[str, bool]
) -> tuple[str, str] | None:
    """What is wrong with the mirror of an endpoint with these entities (by name, whether it is external), and
    how to mend it; None where nothing is."""
    name = shorten(mirror.entity)
    if mirror.entity not in external:
        what = f'"{endpoint}" is mirrored to "{name}", which is none of its entities'
        return what, f"use one of {', '.join(external)}{did_you_mean(mirror.entity, external)}"
    if external[mirror.entity] and not mirror.allow_external:
        what = f'"{endpoint}" is mirrored to "{name}", which is external: every copy may be paid for'
        return what, "set allow_external: true if that is meant"
    return None


def endpoints_there(site: Site, endpoints: Sequence[Endpoint], report: Report) -> None:
    """Policies of what is not there: a typing error, a leftover, or for an endpoint made through the API."""
    known = {endpoint.name for endpoint in endpoints}
    for name in [name for name in site.traffic if name not in known][:_SHOWN]:
        what = f'servestate.traffic has "{shorten(name)}", which no endpoint here is called'
        hint = did_you_mean(name, known)
        fix = f"correct or remove it{hint}; it counts for one of that name made through the API"
        report.warning("SS212", what, fix, "traffic", name)
