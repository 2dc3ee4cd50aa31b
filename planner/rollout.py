"""Matches -> steps and the edges between them.

How one entity's instance takes the place of another:

    surge     Launch new, AwaitReady new, PublishTable(new), Drain old, Stop old
    recreate  PublishTable(without old), Drain old, Stop old, Launch new, AwaitReady new, PublishTable(new)

Whatever the order, no instance is stopped while a route leads to it, and none is routed to before it is
ready. The routes of an endpoint move in one step, after everything in them is ready.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from servestate.planner.address import EndpointAddress, InstanceAddress
from servestate.planner.launch import ExternalSpec, LaunchSpec
from servestate.planner.live import Observation
from servestate.planner.match import Match, Need
from servestate.planner.resolve import ResolvedEndpoint
from servestate.planner.state import EndpointRecord, Instance, Phase, Target
from servestate.planner.steps import (
    AwaitReady,
    Drain,
    Forget,
    Launch,
    Node,
    PublishTable,
    Register,
    Stop,
    Withdraw,
)
from servestate.planner.timings import Timings

_STRAY = "stop-stray:"


def change_endpoint(
    desired: ResolvedEndpoint,
    owner: str,
    record: EndpointRecord | None,
    matches: Sequence[Match],
    removed: Sequence[Instance],
) -> Iterator[Node]:
    """The steps that bring one endpoint to what is desired; none if it already is."""
    wanted = _record(desired, owner, record, matches)
    vacated = frozenset(address for m in matches for address in m.placed.vacates)
    first = list(_vacate(wanted, record, matches, removed, vacated))
    yield from first
    ready: list[str] = []
    for match in matches:
        own = _stop_ids([i for i in match.old if i.address in vacated])
        nodes = list(_start(match, tuple(dict.fromkeys((*own, *match.placed.needs)))))
        yield from nodes
        ready += [nodes[-1].id] if nodes else []
    needs = (*ready, *(node.id for node in first))
    publish = f"publish:{wanted.name}"
    if wanted != record:
        yield Node(publish, PublishTable(wanted), needs)
    after = (publish,) if wanted != record else ()
    ending = [(old, match.entity.timings) for match in matches for old in match.old]
    ending += [(instance, timings_at_launch(instance)) for instance in removed]
    for old, timings in ending:
        if old.address not in vacated:
            # What failed serves nothing, and may still hold the memory that its replacement needs.
            yield from _retire(old, () if old.phase is Phase.FAILED else after, timings)


def delete_endpoint(record: EndpointRecord, instances: Sequence[Instance]) -> Iterator[Node]:
    """The steps that take an endpoint away: out of the table, instances drained and stopped, forgotten."""
    withdraw = f"withdraw:{record.name}"
    needs: tuple[str, ...] = ()
    if record.targets:
        yield Node(withdraw, Withdraw(EndpointAddress(record.name)))
        needs = (withdraw,)
    last: list[str] = list(needs)
    for instance in instances:
        nodes = list(_retire(instance, needs, timings_at_launch(instance)))
        yield from nodes
        last.append(nodes[-1].id)
    yield Node(f"forget:{record.name}", Forget(EndpointAddress(record.name)), tuple(last))


def remove_orphans(instances: Sequence[Instance]) -> Iterator[Node]:
    """The steps that end instances whose endpoint was never published."""
    for instance in instances:
        yield from _retire(instance, (), timings_at_launch(instance))


def timings_at_launch(instance: Instance) -> Timings:
    """The timings of an instance that the configuration does not know any more."""
    return Timings(drain_timeout_s=instance.drain_timeout_s, stop_grace_s=instance.stop_grace_s)


def remove_stray(stray: Observation) -> Node:
    """The step that ends something that wears our marks but is in no state."""
    step = Stop(stray.address, stray.provider, stray.handle, Timings().stop_grace_s)
    return Node(stray_id(stray), step)


def is_of_stray(node: Node) -> bool:
    """Whether the step ends a stray, whatever else happens to the entity whose marks it wears."""
    return node.id.startswith(_STRAY)


def _record(
    desired: ResolvedEndpoint, owner: str, before: EndpointRecord | None, matches: Sequence[Match]
) -> EndpointRecord:
    targets = tuple(Target(m.entity.name, m.entity.weight, (m.use,)) for m in matches)
    version = before.config_version if before else 0
    if targets and (before is None or _is_another_config(before, desired.block, targets)):
        version += 1
    wanted = EndpointRecord(
        desired.name,
        desired.key,
        owner,
        desired.block,
        version,
        targets,
        desired.protected,
        traffic=desired.traffic,
    )
    return before if before is not None and _mean_the_same(before, wanted) else wanted


def _is_another_config(before: EndpointRecord, block: str, targets: Sequence[Target]) -> bool:
    """Whether the config is another one in the eyes of its clients: in what it says or in what answers. Which
    replica of a revision that is does not count."""
    if _answering(before.targets) != _answering(targets):
        return True
    return before.block != block and _config_of(before.block) != _config_of(block)


def _answering(targets: Sequence[Target]) -> object:
    return {(t.entity, t.weight, frozenset(a.revision for a in t.instances)) for t in targets}


def _config_of(block: str) -> object:
    return json.loads(block).get("config")


def _mean_the_same(one: EndpointRecord, other: EndpointRecord) -> bool:
    """Whether only the YAML key or the order of entities differs: neither is a change (N4). Where the order
    has a meaning, the blocks differ as well."""
    alike = replace(other, key=one.key, targets=one.targets, config_version=one.config_version)
    return alike == one and set(one.targets) == set(other.targets)


def recreates(match: Match) -> bool:
    """Whether old instances stop before the new one starts. An external entity starts nothing."""
    return match.need is Need.LAUNCH and any(i.address in match.placed.vacates for i in match.old)


def _vacate(
    wanted: EndpointRecord,
    record: EndpointRecord | None,
    matches: Sequence[Match],
    removed: Sequence[Instance],
    vacated: frozenset[InstanceAddress],
) -> Iterator[Node]:
    """For recreate: take instances out of the routes, then stop them."""
    if not vacated:
        return
    needs: tuple[str, ...] = ()
    if record is not None and any(a in vacated for t in record.targets for a in t.instances):
        targets = tuple(
            replace(t, instances=tuple(a for a in t.instances if a not in vacated)) for t in record.targets
        )
        without = replace(record, targets=targets, history=None)
        publish = publish_without_id(wanted.name)
        yield Node(publish, PublishTable(without))
        needs = (publish,)
    for match in matches:
        for old in match.old:
            if old.address in vacated:
                yield from _retire(old, needs, match.entity.timings)
    for instance in removed:
        if instance.address in vacated:
            yield from _retire(instance, needs, timings_at_launch(instance))


def publish_without_id(endpoint: str) -> str:
    """The id of the step that takes an endpoint's old instances out of the routes before they stop."""
    return f"publish-without:{endpoint}"


def _start(match: Match, after: Sequence[str]) -> Iterator[Node]:
    """The steps that make the chosen instance ready."""
    address, spec, timings = match.use, match.entity.spec, match.entity.timings
    launch = f"launch:{address}"
    if match.need is Need.REGISTER:
        assert isinstance(spec, ExternalSpec)
        yield Node(f"register:{address}", Register(address, spec))
    if match.need is Need.LAUNCH:
        assert isinstance(spec, LaunchSpec)
        placed = match.placed
        step = Launch(address, spec, timings.drain_timeout_s, timings.stop_grace_s, placed.placement)
        yield Node(launch, step, tuple(after), tuple(ready_id(a) for a in placed.follows))
    if match.need in (Need.LAUNCH, Need.AWAIT):
        needs = (launch,) if match.need is Need.LAUNCH else ()
        yield Node(ready_id(address), AwaitReady(address, timings.ready_timeout_s), needs)


def _retire(instance: Instance, needs: tuple[str, ...], timings: Timings) -> Iterator[Node]:
    """The steps that end an instance after its last route is gone."""
    address = instance.address
    if isinstance(instance.spec, ExternalSpec):
        yield Node(f"forget:{address}", Forget(address), needs)
        return
    if instance.phase in (Phase.READY, Phase.DRAINING):  # requests may be in flight on it
        drain = f"drain:{address}"
        yield Node(drain, Drain(address, timings.drain_timeout_s), needs)
        needs = (drain,)
    stop = Stop(address, instance.spec.provider, instance.handle, timings.stop_grace_s)
    yield Node(stop_id(address), stop, needs)


def ready_id(address: InstanceAddress) -> str:
    """The id of the step that waits until an instance is ready."""
    return f"ready:{address}"


def stop_id(address: InstanceAddress) -> str:
    """The id of the step that ends an instance."""
    return f"stop:{address}"


def stray_id(stray: Observation) -> str:
    """The id of the step that ends a stray."""
    return f"{_STRAY}{stray.address}:{stray.handle}"


def _stop_ids(instances: Sequence[Instance]) -> tuple[str, ...]:
    return tuple(
        f"forget:{i.address}" if isinstance(i.spec, ExternalSpec) else stop_id(i.address) for i in instances
    )
