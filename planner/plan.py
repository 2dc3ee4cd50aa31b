"""The plan: a frozen value that preview, plan file and apply all read. `make_plan` is its only maker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from servestate.planner import diff, graph, rollout
from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.change import Change, Reason
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.drift import Drift, find_drift
from servestate.planner.live import Live, Observation
from servestate.planner.match import Match, by_entity, match, settle, strays
from servestate.planner.resolve import Resolved, ResolvedEndpoint
from servestate.planner.state import FORMAT_VERSION, EndpointRecord, Instance, State, apply_event
from servestate.planner.steps import Drain, Launch, Node, RewriteTable, Stop
from servestate.planner.unconfigured import with_recorded_config
from servestate.planner.version import VERSION

Facts = tuple[tuple[str, str], ...]

ABSENT: Facts = (("status", "absent"),)
"""What a plan observed of something that it relies on not being there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What apply would do, and all it relies on.

    `lineage` and `serial` name the state it was made against, `desired_digest` the configuration, `observed`
    what was seen of every live object it touches. `unchanged` counts the endpoints that need nothing.
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
    destroy: bool = False
    format_version: int = FORMAT_VERSION
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


def make_plan(desired: Resolved, state: State, live: Live, *, destroy: bool = False) -> Plan:
    """The plan that takes the world from `live` to `desired`. Same arguments, same bytes.

    Raises InvalidInput when another owner's endpoint is in the way, or when an endpoint without config has
    nothing to take it from.
    """
    _check_owners(desired, state)
    settled = settled_state(state, live)
    drafts = _Drafts([], [], set())
    per_endpoint = _per_endpoint(by_entity(settled.instances.values()))
    unknown = strays(settled, live)
    for endpoint in desired.endpoints:
        record = settled.endpoints.get(endpoint.name)
        _plan_endpoint(
            endpoint, desired.bundle, record, per_endpoint.get(endpoint.name, {}), unknown, live, drafts
        )
    reason = Reason.NONE if destroy else Reason.NOT_CONFIGURED
    _plan_deletions(desired, settled, per_endpoint, reason, drafts)
    _plan_leftovers(unknown, live, drafts)
    _plan_table(settled, live, drafts)
    return Plan(
        lineage=state.lineage,
        serial=state.serial,
        bundle=desired.bundle,
        desired_digest=desired.digest,
        observed=_observed(drafts.touched, live),
        drift=tuple(find_drift(settled, live)),
        changes=tuple(drafts.changes),
        nodes=tuple(graph.build(drafts.nodes).nodes.values()),
        unchanged=drafts.unchanged,
        destroy=destroy,
    )


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
    unknown: Sequence[Observation],
    live: Live,
    drafts: _Drafts,
) -> None:
    desired = with_recorded_config(desired, record, groups)
    matches = _matches(desired, groups, unknown, live)
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


def _plan_deletions(
    desired: Resolved, state: State, per_endpoint: dict[str, _Groups], reason: Reason, drafts: _Drafts
) -> None:
    wanted = {endpoint.name for endpoint in desired.endpoints}
    for name in sorted(state.endpoints.keys() - wanted):
        record = state.endpoints[name]
        if record.owner != desired.bundle:
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
    adopted = {node.step.address for node in drafts.nodes if isinstance(node.step, Launch)}
    for stray in unknown:
        drafts.touched.add(stray.address)
        if stray.address not in adopted or stray in live.duplicates:
            drafts.nodes.append(rollout.remove_stray(stray))


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


def _observed(touched: set[InstanceAddress], live: Live) -> tuple[tuple[str, Facts], ...]:
    return tuple((str(address), observed_facts(live, address)) for address in sorted(touched))


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
            fix = f'rename it here, or remove it from "{record.owner}" and apply that first'
            found.append(Diagnostic("SS301", what, fix))
    if found:
        raise InvalidInput(found)
