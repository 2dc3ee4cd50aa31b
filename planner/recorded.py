"""What is recorded, as if somebody desired it: for repairs, which bring back what was applied and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from servestate.planner.address import EntityAddress
from servestate.planner.match import by_entity
from servestate.planner.resolve import Resolved, ResolvedEndpoint, ResolvedEntity, told_of_traffic
from servestate.planner.revision import digest
from servestate.planner.spec.site import Site
from servestate.planner.state import EndpointRecord, Instance, State, Target
from servestate.planner.timings import Timings, timings

_Groups = Mapping[EntityAddress, Sequence[Instance]]


def recorded(state: State) -> tuple[Resolved, ...]:
    """One for each owner, by name. A plan for it against a world that is as recorded is empty.

    Each entity is as its routed instance is, on the host that it is on; where none is routed to (a
    replacement that stops the old one first was interrupted), as what is left of it. An entity of which
    nothing is left is left out: nobody knows any more what it ran.
    """
    groups = by_entity(state.instances.values())
    owners = sorted({record.owner for record in state.endpoints.values()})
    return tuple(_of_owner(owner, state, groups) for owner in owners)


def _of_owner(owner: str, state: State, groups: _Groups) -> Resolved:
    endpoints = tuple(_endpoint(r, groups) for _, r in sorted(state.endpoints.items()) if r.owner == owner)
    facts = [
        [e.block, e.protected, [[x.revision, x.weight] for x in e.entities], *told_of_traffic(e)]
        for e in endpoints
    ]
    return Resolved(owner, endpoints, digest([owner, facts]))


def _endpoint(record: EndpointRecord, groups: _Groups) -> ResolvedEndpoint:
    found = (_entity(record.name, target, groups) for target in record.targets)
    entities = tuple(entity for entity in found if entity is not None)
    return ResolvedEndpoint(record.name, record.key, record.block, entities, record.protected, record.traffic)


def _entity(endpoint: str, target: Target, groups: _Groups) -> ResolvedEntity | None:
    instance = serving(target, groups.get(EntityAddress(endpoint, target.entity), ()))
    if instance is None:
        return None
    how = Timings(drain_timeout_s=instance.drain_timeout_s, stop_grace_s=instance.stop_grace_s)
    hosts = (instance.placement.host,)
    return ResolvedEntity(target.entity, target.weight, instance.spec, instance.address.revision, how, hosts)


def serving(target: Target, instances: Sequence[Instance]) -> Instance | None:
    """Which of an entity's instances says what it runs as: the routed one, else what is left of it."""
    return next((i for i in instances if i.address in target.instances), next(iter(instances), None))


def ready_timeout_s(site: Site, record: EndpointRecord, entity: str) -> float:
    """How long an entity may take to get ready, in seconds: state does not record it, so it is what the site
    says of the model that the entity was applied with."""
    served = _served(record, entity)
    model = site.models.get(str(served.get("entity_name", "")))
    version = model.versions.get(str(served.get("entity_version", ""))) if model is not None else None
    return timings(site, record.name, entity, version).ready_timeout_s


def _served(record: EndpointRecord, entity: str) -> dict[str, Any]:
    entities: list[dict[str, Any]] = json.loads(record.block).get("config", {}).get("served_entities", [])
    return next((one for one in entities if one.get("name") == entity), {})
