"""State -> routing table: the routes as published, joined with where each ready instance answers."""

from __future__ import annotations

from servestate.planner.access import grants_in
from servestate.planner.engine_keys import key_reference
from servestate.planner.launch import ExternalSpec, Spec
from servestate.planner.policies import policies_of
from servestate.planner.state import EndpointRecord, Instance, State, Target
from servestate.planner.table import Backend, Credential, EndpointRoutes, EntityRoute, RoutingTable


def build_table(state: State) -> RoutingTable:
    """The table of `state`. Its version is the serial at which the routes last changed, so the same routes
    always have the same version. Endpoints that are withdrawn are left out."""
    published = (record for name, record in sorted(state.endpoints.items()) if record.targets)
    endpoints = tuple(_endpoint(record, state) for record in published)
    return RoutingTable(state.table_serial, state.lineage, endpoints)


def _endpoint(record: EndpointRecord, state: State) -> EndpointRoutes:
    entities = tuple(_entity(target, record, state) for target in record.targets)
    found = policies_of(record.name, record.block, record.traffic)
    return EndpointRoutes(
        record.name,
        record.config_version,
        entities,
        grants_in(record.block),
        found.limits,
        found.traffic,
        found.guard_input,
        found.guard_output,
        found.usage,
        found.payloads,
        record.history.serial if record.history is not None else 0,
    )


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
    health = "" if isinstance(instance.spec, ExternalSpec) else instance.spec.health_path
    return Backend(str(instance.address), instance.url, key, health)


def _credential(spec: Spec) -> Credential | None:
    if not isinstance(spec, ExternalSpec) or not spec.secret:
        return None
    return Credential(spec.auth_header, spec.auth_prefix, spec.secret)
