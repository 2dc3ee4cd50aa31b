"""Live: what the providers report now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import HERE, Placement
from servestate.planner.stamp import Stamp


class LiveStatus(StrEnum):
    """What a provider sees of a thing that wears our marks."""

    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that wears our marks, found by its provider, whether or not state knows it.

    `handle` is the provider's immutable identity of it; `why` says how it ended (exit code, signal), empty
    while it runs. `fields` are further observed facts (a container's name, its limits): where one differs
    from what was recorded at launch, somebody changed it. `placement` is what its marks say it holds.
    """

    address: InstanceAddress
    provider: str
    handle: str
    url: str
    status: LiveStatus
    why: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    placement: Placement = HERE

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """All that was observed, by field name; a saved plan holds it for every object it relies on."""
        own = (("handle", self.handle), ("provider", self.provider), ("status", str(self.status)))
        return tuple(sorted((*own, ("url", self.url), *self.fields)))


@dataclass(frozen=True, slots=True)
class Live:
    """Everything observed in one refresh, by address. `duplicates` are further things wearing the marks of
    an address that is already taken; there should be none, and apply removes them. `table_version` is that of
    the routing table file, None where the file is missing or unreadable; `router_trouble` says why a running
    router does not route by it, "" where it does and where none runs. `removed` are the endpoints that were
    last taken away through the API, by name."""

    instances: Mapping[InstanceAddress, Observation] = field(default_factory=dict)
    duplicates: tuple[Observation, ...] = ()
    table_version: int | None = None
    router_trouble: str = ""
    removed: Mapping[str, Stamp] = field(default_factory=dict)
