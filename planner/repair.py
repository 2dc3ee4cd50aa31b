"""Repairs: what has died under a route, and the plan that brings back just that.

The plan is `make_plan`'s for what is recorded (`recorded.py`), against a world in which nothing is amiss but
the entities to repair; of its steps only theirs are kept. What else differs from what is recorded (paused,
replaced, changed, left over) is drift: people are shown it, and apply repairs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.graph import build
from servestate.planner.launch import LaunchSpec
from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.match import by_entity
from servestate.planner.plan import HOST, Plan, make_plan, observed_facts
from servestate.planner.recorded import recorded
from servestate.planner.resolve import Resolved
from servestate.planner.state import EndpointRecord, Instance, Phase, State, Target
from servestate.planner.steps import AwaitReady, Launch, Node, PublishTable, Pull
from servestate.planner.surroundings import ALONE, Surroundings

_ON_RECORD = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING})
"""The phases in which an instance is expected to run."""


class Refused(Exception):
    """There is no plan that repairs the entity and changes nothing else; the message says why."""


@dataclass(frozen=True, slots=True)
class Served:
    """A routed entity that a provider starts, as `find_served` finds it.

    `routed` are the instances that its traffic goes to, none while a repair that stops the old one first is
    under way; `dead` are those of them that have ended. `starting` is a replacement that is not ready yet.
    """

    address: EntityAddress
    owner: str
    routed: tuple[Instance, ...]
    dead: tuple[Instance, ...]
    starting: Instance | None


def find_served(state: State, live: Live, silent: Collection[str]) -> list[Served]:
    """Every routed entity that a provider starts, by address. `state` is settled. Nothing of the providers
    `silent`, which cannot be asked now, counts as dead."""
    groups = by_entity(state.instances.values())
    found = []
    for _, record in sorted(state.endpoints.items()):
        for target in record.targets:
            address = EntityAddress(record.name, target.entity)
            instances = [i for i in groups.get(address, []) if isinstance(i.spec, LaunchSpec)]
            if instances:
                found.append(_served(address, record.owner, target, instances, live, silent))
    return found


def _served(
    address: EntityAddress,
    owner: str,
    target: Target,
    instances: list[Instance],
    live: Live,
    silent: Collection[str],
) -> Served:
    routed = tuple(i for i in instances if i.address in target.instances)
    dead = tuple(i for i in routed if i.spec.provider not in silent and _has_ended(i, live))
    revision = (routed or tuple(instances))[0].address.revision
    starting = (i for i in instances if i.phase is Phase.STARTING and i.address.revision == revision)
    return Served(address, owner, routed, dead, next(starting, None))


def _has_ended(instance: Instance, live: Live) -> bool:
    """Whether it is gone or has exited. What is paused, or has become another thing, has not: a person has
    done that, and may have it back."""
    seen = live.instances.get(instance.address)
    return instance.phase in _ON_RECORD and (seen is None or seen.status is LiveStatus.EXITED)


def plan_repair(
    state: State, live: Live, wanted: Collection[Served], surroundings: Surroundings = ALONE
) -> Plan:
    """The plan that brings back these entities, all of one owner, and touches nothing else. Raises Refused
    where there is none, and InvalidInput as `make_plan` does."""
    assumed = _assumed(state, live, {i.address for one in wanted for i in one.dead})
    plan = make_plan(_recorded_of(state, wanted), state, assumed, surroundings)
    entities = {one.address for one in wanted}
    nodes = _only(plan, entities)
    for node in nodes:
        _check(node, state, entities)
    touched = sorted(a for a in state.instances.keys() | live.instances.keys() if a.of in entities)
    hosts = (fact for fact in plan.observed if fact[0].startswith(HOST))
    return replace(
        plan,
        observed=(*((str(address), observed_facts(live, address)) for address in touched), *hosts),
        drift=(),
        changes=tuple(c for c in plan.changes if str(c.address) in {str(e) for e in entities}),
        nodes=nodes,
    )


def to_survey(state: State, wanted: Collection[Served]) -> Resolved:
    """What is recorded of these entities, all of one owner: what the surroundings are needed for."""
    entities = {one.address for one in wanted}
    found = _recorded_of(state, wanted)
    return replace(
        found,
        endpoints=tuple(
            replace(e, entities=tuple(x for x in e.entities if EntityAddress(e.name, x.name) in entities))
            for e in found.endpoints
        ),
    )


def _recorded_of(state: State, wanted: Collection[Served]) -> Resolved:
    (owner,) = {one.owner for one in wanted}
    return next(found for found in recorded(state) if found.bundle == owner)


def until_ready(plan: Plan, timeout_s: float) -> Plan:
    """The plan with this bound on how long it waits for readiness."""
    nodes = tuple(
        replace(n, step=replace(n.step, timeout_s=timeout_s)) if isinstance(n.step, AwaitReady) else n
        for n in plan.nodes
    )
    return replace(plan, nodes=nodes)


def up_to_launch(plan: Plan) -> Plan:
    """The steps of the plan that wait for no readiness. What starts only after another has loaded waits for
    the plan that follows."""
    cut: set[str] = set()
    for node in plan.nodes:  # in an order in which nothing comes before what it needs
        if isinstance(node.step, AwaitReady) or not cut.isdisjoint((*node.needs, *node.after)):
            cut.add(node.id)
    return replace(plan, nodes=tuple(node for node in plan.nodes if node.id not in cut))


def launches(plan: Plan) -> set[EntityAddress]:
    """The entities that the plan starts an instance of."""
    return {node.step.address.of for node in plan.nodes if isinstance(node.step, Launch)}


def entity_of(node: Node) -> EntityAddress | None:
    """The entity that a step belongs to; None for what is no single entity's."""
    address = getattr(node.step, "address", None)
    return address.of if isinstance(address, InstanceAddress) else None


def _assumed(state: State, live: Live, dead: Collection[InstanceAddress]) -> Live:
    """`live` as it would be if nothing but `dead` had gone wrong since it was recorded."""
    instances: dict[InstanceAddress, Observation] = dict(live.instances)
    for address, instance in state.instances.items():
        if instance.phase in _ON_RECORD and address not in dead and isinstance(instance.spec, LaunchSpec):
            instances[address] = _as_recorded(instance)
    return Live(instances, live.duplicates, state.table_serial)


def _as_recorded(instance: Instance) -> Observation:
    return Observation(
        instance.address,
        instance.spec.provider,
        instance.handle,
        instance.url,
        LiveStatus.RUNNING,
        fields=instance.fields,
        placement=instance.placement,
    )


def known(state: State, provider: str) -> list[Observation]:
    """What a provider would see if all that it is recorded to run did run: assumed of one that has never
    answered."""
    found = (i for i in state.instances.values() if i.spec.provider == provider and i.handle)
    return [_as_recorded(instance) for instance in found]


def _only(plan: Plan, entities: Collection[EntityAddress]) -> tuple[Node, ...]:
    """The steps of these entities with all that those need, and the routes of their endpoints."""
    endpoints = {entity.endpoint for entity in entities}
    by_id = {node.id: node for node in plan.nodes}
    kept: set[str] = set()
    todo = [n.id for n in plan.nodes if entity_of(n) in entities or _publishes(n, endpoints)]
    while todo:
        id = todo.pop()
        if id not in kept:
            kept.add(id)
            todo += by_id[id].needs
    nodes = (replace(n, after=tuple(id for id in n.after if id in kept)) for n in plan.nodes if n.id in kept)
    return tuple(build(nodes).nodes.values())


def _publishes(node: Node, endpoints: Collection[str]) -> bool:
    return isinstance(node.step, PublishTable) and node.step.record.name in endpoints


def _check(node: Node, state: State, entities: Collection[EntityAddress]) -> None:
    """Raises Refused for a step that changes anything but which instances serve these entities."""
    match node.step:
        case Pull():
            return
        case PublishTable(record):
            if _routes(record, entities) != _routes(state.endpoints[record.name], entities):
                raise Refused(
                    f"it would change more of {record.name} than what has died; run: servestate apply"
                )
        case _ if entity_of(node) not in entities:
            raise Refused(f"it would take the step {node.id} of something else; run: servestate apply")


def _routes(record: EndpointRecord, entities: Collection[EntityAddress]) -> object:
    """All of a record but which instances serve these entities."""
    targets = [
        replace(t, instances=()) if EntityAddress(record.name, t.entity) in entities else t
        for t in record.targets
    ]
    return replace(record, targets=tuple(targets), config_version=0)


def by_owner(served: Collection[Served]) -> Mapping[str, list[Served]]:
    """Entities by whose they are: a plan is for one owner."""
    found: dict[str, list[Served]] = {}
    for one in served:
        found.setdefault(one.owner, []).append(one)
    return found
