"""State: what was recorded of what was done. Events change it; an event that a phase does not allow raises
and changes nothing.

The phase is also the journal of intents: LAUNCHING and STOPPING are committed before the effect, so whatever
a crash interrupts is known and is found again by its marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from servestate.planner.address import EndpointAddress, InstanceAddress
from servestate.planner.launch import (
    DRAIN_TIMEOUT_S,
    HERE,
    STOP_GRACE_S,
    ExternalSpec,
    LaunchSpec,
    Placement,
    Spec,
)
from servestate.planner.stamp import Stamp

FORMAT_VERSION = 1
"""Of the state and the store; a reader refuses a higher one."""


class Phase(StrEnum):
    """Where an instance is in its life."""

    LAUNCHING = "launching"  # intent committed; the effect may or may not have happened
    STARTING = "starting"  # launched, not ready yet
    READY = "ready"  # proved ready; may be routed to
    DRAINING = "draining"  # no route leads to it any more
    STOPPING = "stopping"  # intent to stop committed
    FAILED = "failed"  # never got ready; kept until something takes its place


@dataclass(frozen=True, slots=True)
class Instance:
    """One running revision of an entity. `handle` and `url` are empty until the provider gave them;
    `why` says what failed; `op` is the id of the last intent. `drain_timeout_s` and `stop_grace_s` are what
    was configured at launch: how it is ended once the configuration no longer knows it. `placement` is what
    it claims; `fields` are the facts observed when it was launched, which drift is measured against."""

    address: InstanceAddress
    spec: Spec
    phase: Phase
    handle: str = ""
    url: str = ""
    why: str = ""
    op: str = ""
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    stop_grace_s: float = STOP_GRACE_S
    placement: Placement = HERE
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where an entity's share of the traffic goes: percent and the ready instances that serve it."""

    entity: str
    weight: int
    instances: tuple[InstanceAddress, ...]


@dataclass(frozen=True, slots=True)
class History:
    """Where an endpoint comes from. `serial` is that of the write that made it, so it tells one from another
    of the same name; `changed` is the last write that changed what its block or its site says of it."""

    serial: int
    created: Stamp
    changed: Stamp


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """An endpoint as last applied. `block` is the canonical JSON of its normal form; `targets` are in
    declared order, empty while it is withdrawn; `owner` is the bundle that may change it, or `API_OWNER`.
    `config_version` counts the configs that were active. `history` is None in a record of before there was
    one; no comparison looks at it, since it says nothing of what is served. `traffic` is the canonical JSON
    of the site's policy for it, "" where there is none."""

    name: str
    key: str
    owner: str
    block: str
    config_version: int
    targets: tuple[Target, ...] = ()
    protected: bool = False
    history: History | None = field(default=None, compare=False)
    traffic: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """All that is recorded. `lineage` names this history for ever, `serial` counts its writes;
    `table_serial` is the serial at which the routes last changed, the version of the routing table."""

    lineage: str
    serial: int = 0
    table_serial: int = 0
    endpoints: Mapping[str, EndpointRecord] = field(default_factory=dict)
    instances: Mapping[InstanceAddress, Instance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaunchIntended:
    """Committed before the provider is asked to launch."""

    address: InstanceAddress
    spec: LaunchSpec
    op: str
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    stop_grace_s: float = STOP_GRACE_S
    placement: Placement = HERE


@dataclass(frozen=True, slots=True)
class Launched:
    """The provider launched it, or it was found by its marks after a crash."""

    address: InstanceAddress
    handle: str
    url: str
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Registered:
    """An external entity was taken in."""

    address: InstanceAddress
    spec: ExternalSpec
    handle: str
    url: str


@dataclass(frozen=True, slots=True)
class BecameReady:
    """It proved ready."""

    address: InstanceAddress


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """It could not be launched, died, or did not get ready in time."""

    address: InstanceAddress
    why: str


@dataclass(frozen=True, slots=True)
class DrainBegan:
    """Its last route is gone."""

    address: InstanceAddress


@dataclass(frozen=True, slots=True)
class StopIntended:
    """Committed before the provider is asked to stop."""

    address: InstanceAddress
    op: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """It is gone."""

    address: InstanceAddress


@dataclass(frozen=True, slots=True)
class StrayStopIntended:
    """Committed before something that wears our marks but is in no state is stopped. Changes only the serial,
    which is enough to keep an apply that lost its lock from stopping what the next one has adopted."""

    address: InstanceAddress
    handle: str


@dataclass(frozen=True, slots=True)
class TableRewriteIntended:
    """Committed before the table file is written again as state has it. Changes only the serial, and keeps an
    apply that lost its lock from putting an old table over a new one."""


@dataclass(frozen=True, slots=True)
class Published:
    """The endpoint's routes are now those of `record`. `stamp` says whose doing it is, None where nobody
    told."""

    record: EndpointRecord
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The endpoint is out of the routing table."""

    endpoint: EndpointAddress


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Dropped from state."""

    address: EndpointAddress | InstanceAddress


InstanceEvent = (
    LaunchIntended | Launched | Registered | BecameReady | LaunchFailed | DrainBegan | StopIntended | Stopped
)
Event = InstanceEvent | StrayStopIntended | TableRewriteIntended | Published | Withdrawn | Forgotten

_P = Phase
_NEW = frozenset({None})
# event -> (phases it is legal in; None = no such instance, phase after; None = the instance is gone)
_TRANSITIONS: dict[type, tuple[frozenset[Phase | None], Phase | None]] = {
    LaunchIntended: (_NEW | {_P.LAUNCHING}, _P.LAUNCHING),
    Launched: (frozenset({_P.LAUNCHING}), _P.STARTING),
    Registered: (_NEW, _P.READY),
    BecameReady: (frozenset({_P.STARTING}), _P.READY),
    LaunchFailed: (frozenset({_P.LAUNCHING, _P.STARTING}), _P.FAILED),
    DrainBegan: (frozenset({_P.READY, _P.STARTING, _P.FAILED, _P.DRAINING}), _P.DRAINING),
    StopIntended: (frozenset(_P), _P.STOPPING),
    Stopped: (frozenset({_P.STOPPING}), None),
}


class IllegalEvent(Exception):
    """An event that the state machine does not allow; the state is unchanged."""


def apply_event(state: State, event: Event) -> State:
    """The state after `event`, its serial one higher. Raises IllegalEvent."""
    serial = state.serial + 1
    match event:
        case StrayStopIntended() | TableRewriteIntended():
            return replace(state, serial=serial)
        case Published(record, stamp):
            history = _history(state, record, stamp, serial)
            return _with_record(state, replace(record, history=history), serial)
        case Withdrawn(endpoint):
            return _with_record(state, replace(_endpoint(state, endpoint), targets=()), serial)
        case Forgotten(address):
            return replace(_forget(state, address), serial=serial)
        case _:
            return replace(state, serial=serial, instances=_with_instance(state.instances, event))


def touched(event: Event) -> EndpointAddress | InstanceAddress | None:
    """The one record that `event` changes; None where it changes the serial alone."""
    match event:
        case StrayStopIntended() | TableRewriteIntended():
            return None
        case Published(record, _):
            return EndpointAddress(record.name)
        case Withdrawn(endpoint):
            return endpoint
        case _:
            return event.address


def _with_record(state: State, record: EndpointRecord, serial: int) -> State:
    endpoints = {**state.endpoints, record.name: record}
    return replace(state, serial=serial, table_serial=serial, endpoints=endpoints)


def _history(state: State, record: EndpointRecord, stamp: Stamp | None, serial: int) -> History | None:
    """The history of a record that is published: a repair, which leaves the block as it is, changes nothing
    in the eyes of its users."""
    before = state.endpoints.get(record.name)
    known = before.history if before is not None else None
    if stamp is None:
        return known
    if before is None or known is None:
        return History(serial, stamp, stamp)
    same = (before.block, before.owner, before.traffic) == (record.block, record.owner, record.traffic)
    return known if same else replace(known, changed=stamp)


def _forget(state: State, address: EndpointAddress | InstanceAddress) -> State:
    if isinstance(address, EndpointAddress):
        _endpoint(state, address)
        kept = {name: record for name, record in state.endpoints.items() if name != address.endpoint}
        return replace(state, endpoints=kept)
    if address not in state.instances:
        raise IllegalEvent(f"{address} is not in state, so it cannot be forgotten")
    return replace(state, instances=_without(state.instances, address))


def _endpoint(state: State, address: EndpointAddress) -> EndpointRecord:
    record = state.endpoints.get(address.endpoint)
    if record is None:
        raise IllegalEvent(f"endpoint {address} is not in state")
    return record


def _without(
    instances: Mapping[InstanceAddress, Instance], address: InstanceAddress
) -> dict[InstanceAddress, Instance]:
    kept = dict(instances)
    del kept[address]
    return kept


def _with_instance(
    instances: Mapping[InstanceAddress, Instance], event: InstanceEvent
) -> dict[InstanceAddress, Instance]:
    before = instances.get(event.address)
    legal, phase = _TRANSITIONS[type(event)]
    was = before.phase if before else None
    if was not in legal:
        raise IllegalEvent(f"{type(event).__name__} of {event.address} is not possible while it is {was}")
    if phase is None:
        return _without(instances, event.address)
    return {**instances, event.address: _after(before, event, phase)}


def _after(before: Instance | None, event: InstanceEvent, phase: Phase) -> Instance:
    match event:
        case LaunchIntended(address, spec, op):
            return Instance(
                address,
                spec,
                phase,
                op=op,
                drain_timeout_s=event.drain_timeout_s,
                stop_grace_s=event.stop_grace_s,
                placement=event.placement,
            )
        case Registered(address, external, handle, url):
            return Instance(address, external, phase, handle, url)
        case _:
            assert before is not None, "the transition table lets no other event create an instance"
    match event:
        case Launched(_, handle, url, fields):
            return replace(before, phase=phase, handle=handle, url=url, fields=fields)
        case LaunchFailed(_, why):
            return replace(before, phase=phase, why=why)
        case StopIntended(_, op):
            return replace(before, phase=phase, op=op)
        case _:
            return replace(before, phase=phase)
