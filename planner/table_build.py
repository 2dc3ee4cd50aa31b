"""State -> routing table: the routes as published, joined with where each ready instance answers."""

from __future__ import annotations

import json

from servestate.planner.access import grants_in
from servestate.planner.engine_keys import key_reference
from servestate.planner.launch import ExternalSpec, Spec
from servestate.planner.state import EndpointRecord, Instance, State, Target
from servestate.planner.table import Backend, Credential, EndpointRoutes, EntityRoute, Limit, RoutingTable


def build_table(state: State) -> RoutingTable:
    """The table of `state`. Its version is the serial at which the routes last changed, so the same routes
    always have the same version. Endpoints that are withdrawn are left out."""
    published = (record for name, record in sorted(state.endpoints.items()) if record.targets)
    endpoints = tuple(_endpoint(record, state) for record in published)
    return RoutingTable(state.table_serial, state.lineage, endpoints)


def _endpoint(record: EndpointRecord, state: State) -> EndpointRoutes:
    entities = tuple(_entity(target, record, state) for target in record.targets)
    grants, limits = grants_in(record.block), limits_in(record.block)
    return EndpointRoutes(record.name, record.config_version, entities, grants, limits)


def limits_in(block: str) -> tuple[Limit, ...]:
    """The limits of calls in an endpoint's block, canonical JSON of its normal form, in either spelling."""
    if '"rate_limits"' not in block:  # most have none, and parsing costs
        return ()
    found = json.loads(block)
    written = (found.get("ai_gateway", {}).get("rate_limits", {}), found.get("rate_limits", {}))
    limits = [limit for spelling in written for limit in spelling.values() if "calls" in limit]
    return tuple(Limit(x.get("key", "endpoint"), x.get("principal", ""), x["calls"]) for x in limits)


def _entity(target: Target, record: EndpointRecord, state: State) -> EntityRoute:
    instances = [state.instances[address] for address in target.instances]
    if not instances:
        return EntityRoute(target.entity, target.weight, "", "", fixed_path=False, backends=())
    spec = instances[0].spec
    return EntityRoute(
        name=target.entity,
        weight=target.weight,
        model=spec.model,
        task=spec.task,
        fixed_path=isinstance(spec, ExternalSpec),
        backends=tuple(_backend(instance) for instance in instances),
        credential=_credential(spec),
        headers=spec.headers if isinstance(spec, ExternalSpec) else (),
    )


def _backend(instance: Instance) -> Backend:
    key = key_reference(instance.address, instance.spec)
    return Backend(str(instance.address), instance.url, key)


def _credential(spec: Spec) -> Credential | None:
    if not isinstance(spec, ExternalSpec) or not spec.secret:
        return None
    return Credential(spec.auth_header, spec.auth_prefix, spec.secret)
