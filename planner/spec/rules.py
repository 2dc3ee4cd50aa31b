"""The rules of an endpoint block that the schema cannot say. R1.. are those of the serving API.

Each rule is one function and one code. It gets an endpoint that `complete()` has filled in, and reports; the
table at the end is all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from servestate.planner.spec import capacity_rules, external_rules, gateway_rules, reserved_rules, support
from servestate.planner.spec.characters import describe_odd, shorten
from servestate.planner.spec.endpoint import Endpoint, Route
from servestate.planner.spec.external_rules import REFERENCE_FORM, SECRET_REFERENCE
from servestate.planner.spec.report import Report

NAME = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
RESERVED = frozenset({"pt", "get-model-optimization-info"})
MAX_ENTITIES = 10
HOSTED_FIELDS = ("entity_name", "entity_version", "workload_size", "workload_type", "scale_to_zero_enabled")

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SECRET_NAME = re.compile(r"(?:\A|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)\Z", re.IGNORECASE)
ENVIRONMENT_FIX = f'letters, digits and _ make a name; a secret is written "{REFERENCE_FORM}"'
_ALPHABET = "use 1 to 63 letters, digits, dashes and underscores"
_ENTITIES = ("config", "served_entities")
_ROUTES = ("config", "traffic_config", "routes")


def endpoint_name(endpoint: Endpoint, report: Report) -> None:
    """R1: the alphabet and length of names, and the two that are paths of the API."""
    name = endpoint.name
    if not NAME.match(name):
        what = f'"{shorten(name)}" cannot be the name of an endpoint'
        report.error("SS101", what, _ALPHABET, "name", detail=describe_odd(name))
    elif name in RESERVED:
        report.error(
            "SS101", f'the name "{name}" is reserved: it is a path of the serving API', "rename it", "name"
        )


def one_kind(endpoint: Endpoint, report: Report) -> None:
    """R2: external and hosted models do not share an endpoint."""
    external = [e.name for e in endpoint.entities if e.external_model is not None]
    if external and len(external) < len(endpoint.entities):
        hosted = [e.name for e in endpoint.entities if e.external_model is None]
        report.error(
            "SS102",
            f'"{endpoint.name}" has both external models and non-external models',
            "split it into two endpoints",
            *_ENTITIES,
            detail=f"external: {', '.join(external)}; not external: {', '.join(hosted)}",
        )


def routes_match(endpoint: Endpoint, report: Report) -> None:
    """R10: one route per entity, and each route leads to an entity of this config."""
    traffic = endpoint.config.traffic_config if endpoint.config else None
    if traffic is None:
        return
    names = [entity.name for entity in endpoint.entities]
    routed: set[str] = set()
    for index, route in enumerate(traffic.routes):
        _route_matches(endpoint, route, index, names, routed, report)
        routed.add(route.entity)
    if missing := [name for name in names if name not in routed]:
        what = f'no route of "{endpoint.name}" leads to {", ".join(missing)}'
        report.error("SS103", what, "add a route for it; 0 keeps it without traffic", *_ROUTES)


def _route_matches(
    endpoint: Endpoint, route: Route, index: int, names: list[str], routed: set[str], report: Report
) -> None:
    name, at = route.entity, (*_ROUTES, index)
    if not name:
        report.error("SS103", "a route names no entity", "add served_entity_name", *at)
    elif route.served_model_name and route.served_model_name != name:
        what = f'a route names two entities, "{shorten(name)}" and "{shorten(route.served_model_name)}"'
        report.error("SS103", what, "give one name, or the same twice", *at)
    elif name not in names:
        field = "served_entity_name" if route.served_entity_name else "served_model_name"
        what = f'a route of "{endpoint.name}" leads to "{shorten(name)}", which is none of its entities'
        report.error("SS103", what, f"use one of {', '.join(names) or '(there is none)'}", *at, field)
    elif name in routed:
        report.error("SS103", f'two routes lead to "{name}"', "keep one of them", *at)


def percentages_add_up(endpoint: Endpoint, report: Report) -> None:
    """R10: percentages sum to 100."""
    traffic = endpoint.config.traffic_config if endpoint.config else None
    if traffic is None or not traffic.routes:
        return
    total = 0
    for route in traffic.routes:
        total += route.traffic_percentage
    if total != 100:
        report.error(
            "SS104",
            f'traffic percentages of "{endpoint.name}" add up to {total}, not 100',
            "make them add up to 100, or use 0 for an entity that should only be a fallback",
            *_ROUTES,
            detail=", ".join(f"{shorten(r.entity)} {r.traffic_percentage}" for r in traffic.routes),
        )


def percentage_range(endpoint: Endpoint, report: Report) -> None:
    """R9: each percentage is between 0 and 100."""
    traffic = endpoint.config.traffic_config if endpoint.config else None
    for index, route in enumerate(traffic.routes if traffic else ()):
        if not 0 <= route.traffic_percentage <= 100:
            what = f"traffic_percentage is {route.traffic_percentage}"
            fix = "it must be an integer between 0 and 100 inclusive"
            report.error("SS105", what, fix, *_ROUTES, index, "traffic_percentage")


def routes_required(endpoint: Endpoint, report: Report) -> None:
    """R11: with more than one entity the split must be said."""
    config = endpoint.config
    if config is not None and config.traffic_config is None and len(config.served_entities) > 1:
        what = f'"{endpoint.name}" has {len(config.served_entities)} entities and no traffic_config'
        report.error("SS106", what, "add traffic_config.routes with one route per entity", "config")


def entity_names(endpoint: Endpoint, report: Report) -> None:
    """R6: the alphabet of entity names, unique in the endpoint."""
    seen: set[str] = set()
    for index, entity in enumerate(endpoint.entities):
        name = entity.name
        if not NAME.match(name):
            what = f'"{shorten(name)}" cannot be the name of a served entity'
            report.error("SS107", what, _ALPHABET, *_ENTITIES, index, "name", detail=describe_odd(name))
        elif name in seen:
            what = f'two served entities of "{endpoint.name}" are called "{name}"'
            report.error("SS107", what, "give each a name of its own", *_ENTITIES, index, "name")
        seen.add(name)


def entity_count(endpoint: Endpoint, report: Report) -> None:
    """R7: 1 to 10 entities."""
    if endpoint.config is None or 1 <= len(endpoint.entities) <= MAX_ENTITIES:
        return
    if endpoint.config.served_models:
        return  # both spellings are given, which is the finding of one_spelling
    what = f'"{endpoint.name}" has {len(endpoint.entities) or "no"} served entities'
    report.error("SS108", what, f"a serving endpoint has 1 to {MAX_ENTITIES} of them", *_ENTITIES)


def one_spelling(endpoint: Endpoint, report: Report) -> None:
    """R8: served_models together with served_entities."""
    if endpoint.config is not None and endpoint.config.served_models:
        what = f'"{endpoint.name}" has both served_models and served_entities'
        report.error("SS109", what, "move everything to served_entities", "config", "served_models")


def hosted_fields(endpoint: Endpoint, report: Report) -> None:
    """R4: what only a hosted model has."""
    for index, entity in enumerate(endpoint.entities):
        if entity.external_model is None:
            continue
        for field in HOSTED_FIELDS:
            if field in entity.model_fields_set and getattr(entity, field) not in ("", None):
                what = f'"{entity.name}" is an external model, which has no {field}'
                report.error("SS111", what, f"remove {field} or external_model", *_ENTITIES, index, field)


def something_to_serve(endpoint: Endpoint, report: Report) -> None:
    """An entity without a model. No rule of the API: its schema requires neither field."""
    for index, entity in enumerate(endpoint.entities):
        if entity.external_model is None and not entity.entity_name:
            what = f'served entity {index + 1} of "{endpoint.name}" names no model'
            report.error(
                "SS110", what, "add entity_name and entity_version, or external_model", *_ENTITIES, index
            )
        elif entity.external_model is not None and not entity.external_model.name.strip():
            what = f'the external model of "{shorten(entity.name)}" has no name'
            fix = "write the name that its provider knows it by"
            report.error("SS110", what, fix, *_ENTITIES, index, "external_model", "name")


def model_names(endpoint: Endpoint, report: Report) -> None:
    """What names a model is shown in plans and logs: one line, nothing invisible."""
    for index, entity in enumerate(endpoint.entities):
        for field in ("entity_name", "entity_version"):
            if not getattr(entity, field).isprintable():
                what = f"{field} contains a line end or another invisible character"
                report.error("SS127", what, "keep it on one line", *_ENTITIES, index, field)
        model = entity.external_model
        if model is not None and not model.name.isprintable():
            what = "the name of the external model contains a line end or another invisible character"
            report.error("SS127", what, "keep it on one line", *_ENTITIES, index, "external_model", "name")


def environment(endpoint: Endpoint, report: Report) -> None:
    """Names that an environment can hold, and secret references that are complete."""
    for index, entity in enumerate(endpoint.entities):
        for name, value in entity.environment_vars.items():
            at = (*_ENTITIES, index, "environment_vars", name)
            if problem := environment_problem(name, value):
                report.error("SS121", problem, ENVIRONMENT_FIX, *at)
            elif _SECRET_NAME.search(name) and value and not SECRET_REFERENCE.match(value):
                what = f"{name} looks like a secret that is written out in this file"
                report.warning("SS147", what, f'write {name}: "{REFERENCE_FORM}"', *at)


def environment_problem(name: str, value: str) -> str:
    """What is wrong with an environment variable; "" if nothing. The value is never part of the answer."""
    if not _ENVIRONMENT_NAME.match(name):
        return f'"{shorten(name)}" cannot be the name of an environment variable'
    if "{{" in value and "secrets" in value and not SECRET_REFERENCE.match(value):
        return f"the value of {name} is not a complete secret reference"
    return ""


def unique_tags(endpoint: Endpoint, report: Report) -> None:
    """N7: tags are a set by key."""
    counts = Counter(tag.key for tag in endpoint.tags)
    for index, tag in enumerate(endpoint.tags):
        if counts[tag.key] > 1:
            counts[tag.key] = 0
            what = f'the tag "{shorten(tag.key)}" is given more than once'
            report.error("SS118", what, "keep one of them", "tags", index)


def one_principal(endpoint: Endpoint, report: Report) -> None:
    """A grant is for one user, one group or one service principal."""
    for index, grant in enumerate(endpoint.permissions):
        given = [name for name in (grant.user_name, grant.group_name, grant.service_principal_name) if name]
        if len(given) != 1:
            what = f"a permission has {len(given) or 'no'} principals"
            fix = "give exactly one of user_name, group_name, service_principal_name"
            report.error("SS119", what, fix, "permissions", index)


Rule = Callable[[Endpoint, Report], None]

RULES: tuple[Rule, ...] = (
    endpoint_name,  # SS101 R1
    one_kind,  # SS102 R2
    routes_match,  # SS103 R10
    percentages_add_up,  # SS104 R10
    percentage_range,  # SS105 R9
    routes_required,  # SS106 R11
    entity_names,  # SS107 R6
    entity_count,  # SS108 R7
    one_spelling,  # SS109 R8
    something_to_serve,  # SS110
    hosted_fields,  # SS111 R4
    capacity_rules.size_or_concurrency,  # SS112 R16
    capacity_rules.throughput,  # SS113 R17, R18
    external_rules.provider_config,  # SS114 R23
    external_rules.secrets_by_reference,  # SS115 R23, R24
    external_rules.secret_given,  # SS116 R23
    external_rules.sendable,  # SS117
    unique_tags,  # SS118 N7
    one_principal,  # SS119
    environment,  # SS121, warning SS147
    gateway_rules.gateway_limits,  # SS122 R22
    gateway_rules.inference_table,  # SS123 R21
    external_rules.same_task,  # SS124 R3
    capacity_rules.model_units,  # SS125 R20
    gateway_rules.legacy_limits,  # SS126 R22
    model_names,  # SS127
    external_rules.reachable,  # SS129
    support.provider,  # SS130
    support.azure,  # SS131
    support.task,  # SS132
    support.guardrails,  # SS135
    support.model_units,  # SS137
    support.old_spelling,  # warning SS140 R8
    support.scale_to_zero,  # warning SS141
    support.capacity,  # warning SS142
    support.instance_profile,  # warning SS143
    support.route_optimized,  # warning SS145
    support.no_config,  # warning SS146 N12
    gateway_rules.fallback,  # warning SS148
    gateway_rules.keywords,  # SS220
    reserved_rules.in_endpoint,  # SS195, also a rule of the site
)
"""Rules with nothing to check in a block alone are not here: R5, R13 to R15, R19, R24 to R26; nor is SS149 of
`gateway_rules`, for which the site has to be known."""
