"""Which recorded instance serves each desired entity, and which ones are left over.

This is the one place that compares identity: desired revision, recorded instances, what is alive. Diff
explains its result to people, rollout turns it into steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from servestate.planner.address import EntityAddress, InstanceAddress
from servestate.planner.launch import ExternalSpec, Placement
from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.placed import UNPLACED, Placed
from servestate.planner.resolve import ResolvedEntity
from servestate.planner.state import (
    Event,
    Instance,
    Launched,
    LaunchFailed,
    Phase,
    State,
    Stopped,
)


class Need(StrEnum):
    """What the chosen instance still needs before it can be routed to."""

    NOTHING = "nothing"
    AWAIT = "await"
    LAUNCH = "launch"
    REGISTER = "register"


@dataclass(frozen=True, slots=True)
class Match:
    """The instance that shall serve a desired entity, what it needs, and what it takes the place of.
    `present` is where it is already, None where it has to be launched; `placed` is where it will be then."""

    entity: ResolvedEntity
    use: InstanceAddress
    need: Need
    old: tuple[Instance, ...]
    present: Placement | None = None
    placed: Placed = UNPLACED


def settle(state: State, live: Live) -> Iterator[Event]:
    """The events that a crash kept from being recorded, read off the world: what an intent started or
    stopped. Apply commits them first; plan only assumes them."""
    for address, instance in state.instances.items():
        seen = live.instances.get(address)
        if instance.phase is Phase.STOPPING and (seen is None or seen.handle != instance.handle):
            yield Stopped(address)
        elif instance.phase is Phase.LAUNCHING and seen is not None:
            yield Launched(address, seen.handle, seen.url, seen.fields)
            if seen.status is LiveStatus.EXITED:
                yield LaunchFailed(address, seen.why or "it exited")


def is_alive(instance: Instance, live: Live) -> bool:
    """Whether the very thing that state names is running now. External entities are taken as alive."""
    if isinstance(instance.spec, ExternalSpec):
        return True
    seen = live.instances.get(instance.address)
    return seen is not None and seen.status is LiveStatus.RUNNING and seen.handle == instance.handle


def is_intact(instance: Instance, live: Live) -> bool:
    """Whether it is alive and nobody has changed it since it was launched."""
    return is_alive(instance, live) and not changed_fields(instance, live)


def changed_fields(instance: Instance, live: Live) -> list[tuple[str, str, str]]:
    """What somebody has changed of it: field, the value at launch, the value now ("" where it has none)."""
    seen = live.instances.get(instance.address)
    if seen is None or not instance.fields:
        return []
    now = dict(seen.fields)
    return [(name, was, now.get(name, "")) for name, was in instance.fields if now.get(name, "") != was]


def by_entity(instances: Iterable[Instance]) -> Mapping[EntityAddress, list[Instance]]:
    """Instances grouped by the entity they are of, in address order."""
    groups: dict[EntityAddress, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.address.of].append(instance)
    for group in groups.values():
        group.sort(key=lambda i: i.address)
    return groups


def strays(state: State, live: Live) -> list[Observation]:
    """What wears our marks but is not what state names: of an address it does not have, or of one that it has
    with another handle (a launch that failed after it acted), and what duplicates another."""
    unknown = [seen for seen in live.instances.values() if not _is_recorded(seen, state)]
    return sorted([*unknown, *live.duplicates], key=lambda s: (s.address, s.handle))


def _is_recorded(seen: Observation, state: State) -> bool:
    recorded = state.instances.get(seen.address)
    return recorded is not None and recorded.handle == seen.handle


_PREFERENCE = {Phase.READY: 0, Phase.STARTING: 1, Phase.LAUNCHING: 2}
_NEEDS = {Phase.READY: Need.NOTHING, Phase.STARTING: Need.AWAIT, Phase.LAUNCHING: Need.LAUNCH}


def match(
    endpoint: str, entity: ResolvedEntity, recorded: list[Instance], unknown: list[Observation], live: Live
) -> Match:
    """The match of one entity. `recorded` and `unknown` are the instances and strays of that entity."""
    usable = [
        i
        for i in recorded
        if i.address.revision == entity.revision
        and _is_usable(i, live)
        and (i.placement.host in entity.hosts or i.phase is Phase.LAUNCHING)
    ]
    if usable:
        best = min(usable, key=lambda i: (_PREFERENCE[i.phase], i.address.replica))
        old = tuple(i for i in recorded if i is not best)
        present = None if best.phase is Phase.LAUNCHING else best.placement
        return Match(entity, best.address, _NEEDS[best.phase], old, present)
    # Where several share an address, which one a provider would hand back is its own choice: adopt none.
    taken = {i.address for i in recorded} | {s.address for s in live.duplicates}
    adoptable = [
        s.address
        for s in unknown
        if s.address.revision == entity.revision
        and s.status is LiveStatus.RUNNING
        and s.address not in taken
        and s.placement.host in entity.hosts
        and live.instances.get(s.address) is s
    ]
    taken |= {s.address for s in unknown}
    address = adoptable[0] if adoptable else _free_address(endpoint, entity, taken)
    external = isinstance(entity.spec, ExternalSpec)
    present = live.instances[address].placement if adoptable else None
    need = Need.REGISTER if external else Need.LAUNCH
    return Match(entity, address, need, tuple(recorded), present)


def _is_usable(instance: Instance, live: Live) -> bool:
    if instance.phase is Phase.LAUNCHING:
        return instance.address not in live.instances  # settle() has dealt with those that are
    return instance.phase in _PREFERENCE and is_intact(instance, live)


def _free_address(endpoint: str, entity: ResolvedEntity, taken: set[InstanceAddress]) -> InstanceAddress:
    """The lowest replica number that nothing, dead or alive, wears: no address is ever used twice at once."""
    replica = 0
    while InstanceAddress(endpoint, entity.name, entity.revision, replica) in taken:
        replica += 1
    return InstanceAddress(endpoint, entity.name, entity.revision, replica)
