"""The plan: a frozen value that preview, plan file and apply all read. `make_plan` is its only maker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from servestate.planner import diff, graph, rollout
from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.capacity import HostUse, crowd, open_books, uses
from servestate.planner.change import Change, Reason
from servestate.planner.claims import Books
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.drift import Drift, find_drift
from servestate.planner.live import Live, Observation
from servestate.planner.match import Match, by_entity, match, settle, strays
from servestate.planner.owners import API_OWNER
from servestate.planner.pin import pin
from servestate.planner.placed import Placed
from servestate.planner.placement import Placer
from servestate.planner.pulls import with_pulls
from servestate.planner.resolve import Resolved, ResolvedEndpoint
from servestate.planner.state import EndpointRecord, Instance, State, apply_event
from servestate.planner.steps import Drain, Launch, Node, RewriteTable, Stop
from servestate.planner.surroundings import ALONE, Facts, Surroundings, host_facts
from servestate.planner.unconfigured import with_recorded_config
from servestate.planner.version import VERSION

PLAN_FORMAT = 2
"""Of the plan file; a reader refuses any other. Plans are short-lived: there is no upgrade of one."""

ABSENT: Facts = (("status", "absent"),)
"""What a plan observed of something that it relies on not being there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What apply would do, and all it relies on.

    `lineage` and `serial` name the state it was made against, `desired_digest` the configuration, `observed`
    what was seen of every live object it touches and of every host whose GPUs it counts on. `unchanged`
    counts the endpoints that need nothing; `capacity` is the use of GPUs, empty where none is held.
    """

    lineage: str
    serial: int
    bundle: str
    desired_digest: str
    observed: tuple[tuple[str, Facts], ...]
    drift: tuple[Drift, ...]
    changes: tuple[Change, ...]
    nodes: tuple[Node, ...]
    unchanged: int
    capacity: tuple[HostUse, ...] = ()
    destroy: bool = False
    format_version: int = PLAN_FORMAT
    servestate_version: str = VERSION

    @property
    def blocked(self) -> tuple[Change, ...]:
        """The changes that something forbids; apply refuses while there are any."""
        return tuple(change for change in self.changes if change.blocked)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.nodes and not self.changes


@dataclass(slots=True)
class _Drafts:
    """What the endpoints contribute, collected."""

    changes: list[Change]
    nodes: list[Node]
    touched: set[InstanceAddress]
    unchanged: int = 0


def make_plan(
    desired: Resolved,
    state: State,
    live: Live,
    surroundings: Surroundings = ALONE,
    *,
    destroy: bool = False,
    scope: frozenset[str] | None = None,
) -> Plan:
    """The plan that takes the world from `live` to `desired`. Same arguments, same bytes.

    With a `scope` it is of the endpoints of these names alone: `desired` holds no other, and whatever else
    its owner has stays as it is.

    Raises InvalidInput when another owner's endpoint is in the way, when an endpoint without config has
    nothing to take it from, when an image is not to be had, or when something does not fit.
    """
    _check_owners(desired, state)
    settled = settled_state(state, live)
    groups = by_entity(settled.instances.values())
    per_endpoint = _per_endpoint(groups)
    unknown = [one for one in strays(settled, live) if _within(one.address.endpoint, scope)]
    desired = pin(_configured(desired, settled, per_endpoint), groups, surroundings)
    matches = {e.name: _matches(e, per_endpoint.get(e.name, {}), unknown, live) for e in desired.endpoints}
    ours = {name: groups for name, groups in per_endpoint.items() if _within(name, scope)}
    ending = _ending(desired, settled, ours)
    books = open_books(live, settled.instances, matches, ending, unknown)
    matches = _placed(matches, books, surroundings, live)
    drafts = _Drafts([], [], set())
    for endpoint in desired.endpoints:
        record = settled.endpoints.get(endpoint.name)
        mine = per_endpoint.get(endpoint.name, {})
        _plan_endpoint(endpoint, desired.bundle, record, mine, matches[endpoint.name], live, drafts)
    reason = Reason.NONE if destroy else Reason.NOT_CONFIGURED
    _plan_deletions(desired, settled, ours, reason, drafts, scope)
    _plan_leftovers(unknown, live, drafts)
    _plan_table(settled, live, drafts)
    nodes = with_pulls(drafts.nodes, surroundings)
    if any(change.blocked for change in drafts.changes):
        nodes = _without_blocked(nodes)
    return Plan(
        lineage=state.lineage,
        serial=state.serial,
        bundle=desired.bundle,
        desired_digest=desired.digest,
        # By text, as in the plan file: a plan that was read back is equal.
        observed=tuple(sorted(_observed(drafts.touched, live) + hosts_observed(nodes, surroundings))),
        drift=tuple(find_drift(settled, live, _changed(drafts.changes))),
        changes=tuple(drafts.changes),
        nodes=tuple(graph.build(nodes).nodes.values()),
        unchanged=drafts.unchanged,
        capacity=uses(books, surroundings) if drafts.nodes else (),
        destroy=destroy,
    )


def _configured(desired: Resolved, state: State, per_endpoint: Mapping[str, _Groups]) -> Resolved:
    """`desired` with what endpoints without a config have on record."""
    endpoints = tuple(
        with_recorded_config(e, state.endpoints.get(e.name), per_endpoint.get(e.name, {}))
        for e in desired.endpoints
    )
    return replace(desired, endpoints=endpoints)


def _ending(
    desired: Resolved, state: State, per_endpoint: Mapping[str, _Groups]
) -> frozenset[InstanceAddress]:
    """The instances of endpoints that this plan takes away."""
    wanted = {endpoint.name for endpoint in desired.endpoints}
    names = [n for n in per_endpoint if n not in wanted and _may_end(state.endpoints.get(n), desired.bundle)]
    return frozenset(i.address for n in names for group in per_endpoint[n].values() for i in group)


def _may_end(record: EndpointRecord | None, owner: str) -> bool:
    return record is None or (record.owner == owner and not record.protected)


def _placed(
    matches: Mapping[str, list[Match]], books: Books, surroundings: Surroundings, live: Live
) -> dict[str, list[Match]]:
    """The matches with the places of their launches. Raises InvalidInput with all that cannot be placed."""
    every = [match for group in matches.values() for match in group]
    placer = Placer(books, surroundings, crowd(live))
    places = placer.place(every)
    if placer.refused:
        raise InvalidInput(placer.refused)
    return {name: _with_places(group, places) for name, group in matches.items()}


def _with_places(matches: list[Match], places: Mapping[InstanceAddress, Placed]) -> list[Match]:
    """The matches of one endpoint; what one of them vacates is vacated for all."""
    shared = tuple(sorted({a for m in matches if m.use in places for a in places[m.use].vacates}))
    return [
        replace(m, placed=replace(places[m.use], vacates=shared)) if m.use in places else m for m in matches
    ]


def _without_blocked(nodes: Iterable[Node]) -> list[Node]:
    """The nodes without edges to steps that are left out because they are blocked. Such a plan is shown and
    never applied."""
    kept = list(nodes)
    ids = {node.id for node in kept}
    return [
        replace(n, needs=tuple(i for i in n.needs if i in ids), after=tuple(i for i in n.after if i in ids))
        for n in kept
    ]


def settled_state(state: State, live: Live) -> State:
    """The state as apply will have it once it has recorded what a crash left unrecorded."""
    for event in list(settle(state, live)):
        state = apply_event(state, event)
    return state


_Groups = dict[EntityAddress, list[Instance]]


def _per_endpoint(groups: Mapping[EntityAddress, list[Instance]]) -> dict[str, _Groups]:
    found: dict[str, _Groups] = {}
    for entity, instances in groups.items():
        found.setdefault(entity.endpoint, {})[entity] = instances
    return found


def _plan_endpoint(
    desired: ResolvedEndpoint,
    owner: str,
    record: EndpointRecord | None,
    groups: _Groups,
    matches: list[Match],
    live: Live,
    drafts: _Drafts,
) -> None:
    wanted = {EntityAddress(desired.name, entity.name) for entity in desired.entities}
    removed = [instances for entity, instances in sorted(groups.items()) if entity not in wanted]
    nodes = list(
        rollout.change_endpoint(desired, owner, record, matches, [i for group in removed for i in group])
    )
    if not nodes:
        drafts.unchanged += 1
        return
    changes = list(diff.diff_endpoint(desired, record, matches, removed, live))
    drafts.changes += changes
    if not any(change.blocked for change in changes):
        drafts.nodes += nodes
    drafts.touched |= {i.address for group in groups.values() for i in group}
    drafts.touched |= {m.use for m in matches}


def _matches(
    desired: ResolvedEndpoint, groups: _Groups, unknown: Sequence[Observation], live: Live
) -> list[Match]:
    found = []
    for entity in desired.entities:
        address = EntityAddress(desired.name, entity.name)
        mine = [s for s in unknown if s.address.of == address] if unknown else []
        found.append(match(desired.name, entity, groups.get(address, []), mine, live))
    return found


def _within(name: str, scope: frozenset[str] | None) -> bool:
    return scope is None or name in scope


def _plan_deletions(
    desired: Resolved,
    state: State,
    per_endpoint: dict[str, _Groups],
    reason: Reason,
    drafts: _Drafts,
    scope: frozenset[str] | None,
) -> None:
    wanted = {endpoint.name for endpoint in desired.endpoints}
    for name in sorted(state.endpoints.keys() - wanted):
        record = state.endpoints[name]
        if record.owner != desired.bundle or not _within(name, scope):
            continue
        groups = [instances for _, instances in sorted(per_endpoint.get(name, {}).items())]
        drafts.changes += diff.delete_endpoint(record, groups, reason)
        instances = [i for group in groups for i in group]
        drafts.touched |= {i.address for i in instances}
        if not record.protected:
            drafts.nodes += rollout.delete_endpoint(record, instances)
    for name in sorted(per_endpoint.keys() - wanted - state.endpoints.keys()):
        # Launched for an endpoint that was never published: an apply was interrupted, then the YAML changed.
        orphans = [i for group in per_endpoint[name].values() for i in group]
        drafts.touched |= {i.address for i in orphans}
        drafts.nodes += rollout.remove_orphans(orphans)


def _plan_leftovers(unknown: Iterable[Observation], live: Live, drafts: _Drafts) -> None:
    """What wears our marks and is not adopted ends, once the routes of its endpoint have moved: it may be
    what answers under a route, known by another handle (its host was renamed in the site, or somebody started
    it again). Where a launch waits for what it holds, it ends first."""
    adopted = {node.step.address for node in drafts.nodes if isinstance(node.step, Launch)}
    awaited = {id for node in drafts.nodes for id in node.needs}
    ids = {node.id for node in drafts.nodes}
    for stray in unknown:
        drafts.touched.add(stray.address)
        if stray.address not in adopted or stray in live.duplicates:
            node = rollout.remove_stray(stray)
            moves = (f"publish:{stray.address.endpoint}", f"withdraw:{stray.address.endpoint}")
            needs = () if node.id in awaited else tuple(id for id in moves if id in ids)
            drafts.nodes.append(replace(node, needs=needs))


def _plan_table(state: State, live: Live, drafts: _Drafts) -> None:
    """A table file that is lost or behind is written again, before anything is drained or stopped: the
    router may still route by the old one."""
    if not state.table_serial or live.table_version == state.table_serial:
        return
    rewrite = Node("rewrite-table", RewriteTable())
    drafts.nodes = [
        replace(n, needs=(*n.needs, rewrite.id)) if isinstance(n.step, Drain | Stop) else n
        for n in drafts.nodes
    ]
    drafts.nodes.append(rewrite)


def _changed(changes: Iterable[Change]) -> frozenset[str]:
    """The endpoints that these changes are of."""
    return frozenset(change.address.endpoint for change in changes)


def _observed(touched: set[InstanceAddress], live: Live) -> tuple[tuple[str, Facts], ...]:
    return tuple((str(address), observed_facts(live, address)) for address in sorted(touched))


def hosts_observed(nodes: Iterable[Node], surroundings: Surroundings) -> tuple[tuple[str, Facts], ...]:
    """What the plan relies on of hosts: those on which it puts something on a GPU."""
    launches = (node.step for node in nodes if isinstance(node.step, Launch))
    places = sorted({(s.spec.provider, s.placement.host) for s in launches if s.placement.gpus})
    return tuple(
        (f"{HOST}{provider}:{name}", host_facts(surroundings, provider, name)) for provider, name in places
    )


HOST = "host:"
"""Stands before provider and name of a host among what a plan observed."""


def observed_facts(live: Live, address: InstanceAddress) -> Facts:
    """What a plan remembers of one live object; ABSENT where there is none."""
    seen = live.instances.get(address)
    return seen.facts if seen else ABSENT


def _check_owners(desired: Resolved, state: State) -> None:
    found = []
    for endpoint in desired.endpoints:
        record = state.endpoints.get(endpoint.name)
        if record is not None and record.owner != desired.bundle:
            what = f'endpoint "{endpoint.name}" belongs to "{record.owner}", not to bundle "{desired.bundle}"'
            source = "" if record.owner == API_OWNER else f" --from {record.owner}"
            fix = f"take it over: servestate import {endpoint.name}{source}; or rename it here"
            found.append(Diagnostic("SS301", what, fix))
    if found:
        raise InvalidInput(found)
