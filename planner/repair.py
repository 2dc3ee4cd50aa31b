"""Repairs: what has died under a route, and the plan that brings back just that.

The plan is `make_plan`'s for what is recorded (`recorded.py`), against a world in which nothing is amiss but
the entities to repair; of its steps only theirs are kept. What else differs from what is recorded (paused,
replaced, changed, left over) is drift: people are shown it, and apply repairs it.

A repair never takes away the last that is recorded of an entity before a launch of it is: what an entity runs
as is known from its instances alone.
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
from servestate.planner.recorded import recorded, serving
from servestate.planner.resolve import Resolved
from servestate.planner.rollout import stop_id
from servestate.planner.state import EndpointRecord, Instance, Phase, State, Target
from servestate.planner.steps import AwaitReady, Launch, Node, PublishTable, Pull
from servestate.planner.surroundings import ALONE, Surroundings

_ON_RECORD = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING})
"""The phases in which an instance is expected to run."""

_NOBODY = ""
"""Owns, in a repair's plan, the endpoints that are not repaired: a plan leaves alone what is of others."""


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


def find_served(state: State, live: Live, unseen: Collection[InstanceAddress]) -> list[Served]:
    """Every routed entity that a provider starts, by address. `state` is settled. Nothing of `unseen`, of
    which nobody can tell now whether it runs, counts as dead."""
    groups = by_entity(state.instances.values())
    found = []
    for _, record in sorted(state.endpoints.items()):
        for target in record.targets:
            address = EntityAddress(record.name, target.entity)
            instances = [i for i in groups.get(address, []) if isinstance(i.spec, LaunchSpec)]
            if instances:
                found.append(_served(address, record.owner, target, instances, live, unseen))
    return found


def _served(
    address: EntityAddress,
    owner: str,
    target: Target,
    instances: list[Instance],
    live: Live,
    unseen: Collection[InstanceAddress],
) -> Served:
    routed = tuple(i for i in instances if i.address in target.instances)
    dead = tuple(i for i in routed if i.address not in unseen and _has_ended(i, live))
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
    entities = {one.address for one in wanted}
    rest = _at_rest(state, live, entities)
    assumed = _assumed(rest, live, {i.address for one in wanted for i in one.dead})
    plan = make_plan(_recorded_of(rest, wanted), rest, assumed, surroundings)
    nodes = tuple(_moving_only(entities, node, state) for node in _only(plan, entities))
    for node in nodes:
        _check(node, state, entities)
    nodes = _launching_first(nodes, state)
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
    the plan that follows, with all else that is done for its entity: what is recorded of it may not go
    before its launch comes."""
    cut = {node.id for node in plan.nodes if isinstance(node.step, AwaitReady)}
    while more := {node.id for node in plan.nodes if node.id not in cut and _waits(node, plan, cut)}:
        cut |= more
    return replace(plan, nodes=tuple(node for node in plan.nodes if node.id not in cut))


def _waits(node: Node, plan: Plan, cut: Collection[str]) -> bool:
    """Whether the step waits for one of `cut`, or is of an entity whose launch is among them."""
    if any(id in cut for id in (*node.needs, *node.after)):
        return True
    late = {n.step.address.of for n in plan.nodes if isinstance(n.step, Launch) and n.id in cut}
    return entity_of(node) in late


def launches(plan: Plan) -> set[EntityAddress]:
    """The entities that the plan starts an instance of."""
    return {node.step.address.of for node in plan.nodes if isinstance(node.step, Launch)}


def entity_of(node: Node) -> EntityAddress | None:
    """The entity that a step belongs to; None for what is no single entity's."""
    address = getattr(node.step, "address", None)
    return address.of if isinstance(address, InstanceAddress) else None


def _at_rest(state: State, live: Live, entities: Collection[EntityAddress]) -> State:
    """The state as it would be if nothing but these entities needed anything: whether something else can be
    placed or started is not for their repair to wait for."""
    names = {entity.endpoint for entity in entities}
    endpoints = {
        name: record if name in names else replace(record, owner=_NOBODY)
        for name, record in state.endpoints.items()
    }
    groups = by_entity(state.instances.values())
    instances = dict(state.instances)
    for name in names:
        for target in state.endpoints[name].targets:
            address = EntityAddress(name, target.entity)
            one = serving(target, groups.get(address, ()))
            if address not in entities and one is not None:
                instances[one.address] = _resting(one, live)
    return replace(state, endpoints=endpoints, instances=instances)


def _resting(instance: Instance, live: Live) -> Instance:
    """The instance, needing nothing. What is not expected to run holds GPUs only where it does."""
    seen = live.instances.get(instance.address)
    gone = seen is None or seen.status is LiveStatus.EXITED
    if instance.phase not in _ON_RECORD and gone:
        return replace(instance, phase=Phase.READY, placement=replace(instance.placement, gpus=()))
    return replace(instance, phase=Phase.READY)


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


def _moving_only(entities: Collection[EntityAddress], node: Node, state: State) -> Node:
    """The step, where it moves routes, with those of all but these entities as they are."""
    if not isinstance(node.step, PublishTable):
        return node
    record = node.step.record
    before = {target.entity: target for target in state.endpoints[record.name].targets}
    targets = tuple(
        t if EntityAddress(record.name, t.entity) in entities else before[t.entity] for t in record.targets
    )
    return replace(node, step=PublishTable(replace(record, targets=targets)))


def _launching_first(nodes: tuple[Node, ...], state: State) -> tuple[Node, ...]:
    """The steps, ordered so that of each entity that is launched something is on record until its launch is.
    Raises Refused where the last of it has to go first."""
    held: dict[str, str] = {}
    for launch in nodes:
        if isinstance(launch.step, Launch):
            held |= _held_back(launch.id, launch.step.address.of, nodes, state)
    changed = (replace(n, needs=(*n.needs, held[n.id])) if n.id in held else n for n in nodes)
    return tuple(build(changed).nodes.values())


def _held_back(
    launch: str, entity: EntityAddress, nodes: tuple[Node, ...], state: State
) -> Mapping[str, str]:
    """The step that has to wait for that launch, by its id, so that the entity is not forgotten; none where
    there is no danger."""
    by_id = {node.id: node for node in nodes}
    stops = [stop_id(a) for a in state.instances if a.of == entity]
    if any(stop not in by_id or launch in _before(stop, by_id) for stop in stops):
        return {}
    first = _before(launch, by_id)
    free = [stop for stop in stops if stop not in first]
    if not free:
        raise Refused(
            f"it would have to stop the last that is recorded of {entity} first; run: servestate apply"
        )
    return {free[0]: launch}


def _before(id: str, by_id: Mapping[str, Node]) -> set[str]:
    """All that ends before that step starts."""
    found: set[str] = set()
    todo = [id]
    while todo:
        node = by_id[todo.pop()]
        new = {other for other in (*node.needs, *node.after) if other not in found}
        found |= new
        todo += new
    return found


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
