"""State against live: what changed behind our back. Decides nothing; the plan shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from servestate.planner.handles import shown
from servestate.planner.launch import ExternalSpec
from servestate.planner.live import Live, LiveStatus
from servestate.planner.match import changed_fields, strays
from servestate.planner.owners import API_OWNER, API_VERB
from servestate.planner.state import EndpointRecord, Instance, Phase, State


class DriftKind(StrEnum):
    """How live differs from state."""

    GONE = "gone"
    EXITED = "exited"
    PAUSED = "paused"
    CHANGED = "changed"
    REPLACED = "replaced"
    UNKNOWN = "unknown"
    TABLE = "table"
    ROUTER = "router"
    EDITED = "edited"


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference. `address` is an instance's, or "routing table" or "router"; `recorded` and `live` say
    what state has and what the world has, for people."""

    address: str
    kind: DriftKind
    recorded: str
    live: str


_EXPECTED_LIVE = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING})


def find_drift(state: State, live: Live, changing: frozenset[str] = frozenset()) -> list[Drift]:
    """Every difference, by address. Interrupted intents are not drift: `settle` deals with them. Of the
    endpoints in `changing` also what was done to a bundle's through the API, which the plan is to undo."""
    found = [d for i in state.instances.values() if (d := _of_instance(i, live))]
    found += [d for name in changing if (d := _edited(name, state.endpoints.get(name), live))]
    found += [
        Drift(str(seen.address), DriftKind.UNKNOWN, "not in state", f"{seen.status} as {shown(seen.handle)}")
        for seen in strays(state, live)
        if seen in live.duplicates or not _is_reported(state.instances.get(seen.address))
    ]
    found += _of_table(state, live)
    return sorted(found, key=lambda d: (d.address, d.live))


def _edited(name: str, record: EndpointRecord | None, live: Live) -> Drift | None:
    """What was done through the API to an endpoint that is a bundle's, and by whom."""
    if record is None:
        removed = live.removed.get(name)
        return (
            Drift(name, DriftKind.EDITED, "applied", f"deleted through the API by {removed}")
            if removed
            else None
        )
    if record.owner == API_OWNER or record.history is None or record.history.changed.through != API_VERB:
        return None
    recorded = f'as bundle "{record.owner}" was applied'
    return Drift(name, DriftKind.EDITED, recorded, f"changed through the API by {record.history.changed}")


def _is_reported(instance: Instance | None) -> bool:
    """Whether the instance's own drift says that something else wears its address."""
    return instance is not None and instance.phase in _EXPECTED_LIVE


def _of_instance(instance: Instance, live: Live) -> Drift | None:
    seen = live.instances.get(instance.address)
    if isinstance(instance.spec, ExternalSpec) or instance.phase not in _EXPECTED_LIVE:
        return None
    address, recorded = str(instance.address), f"{instance.phase} as {shown(instance.handle)}"
    if seen is None:
        return Drift(address, DriftKind.GONE, recorded, "gone")
    if seen.handle != instance.handle:
        return Drift(address, DriftKind.REPLACED, recorded, f"{seen.status} as {shown(seen.handle)}")
    if seen.status is LiveStatus.EXITED:
        return Drift(address, DriftKind.EXITED, recorded, f"exited: {seen.why}" if seen.why else "exited")
    if seen.status is LiveStatus.PAUSED:
        return Drift(address, DriftKind.PAUSED, recorded, "paused")
    if changed := changed_fields(instance, live):
        was = ", ".join(f"{name} {before or 'none'}" for name, before, _ in changed)
        now = ", ".join(f"{name} {after or 'none'}" for name, _, after in changed)
        return Drift(address, DriftKind.CHANGED, was, now)
    return None


def _of_table(state: State, live: Live) -> Iterator[Drift]:
    if state.table_serial and live.table_version != state.table_serial:
        found = "missing or unreadable" if live.table_version is None else f"version {live.table_version}"
        yield Drift("routing table", DriftKind.TABLE, f"version {state.table_serial}", found)
    if live.router_trouble:
        recorded = f"routing by version {state.table_serial}"
        yield Drift("router", DriftKind.ROUTER, recorded, live.router_trouble)
