"""Ask every provider at once what it sees: the live side of a plan."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from servestate.planner.address import InstanceAddress
from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.state import State
from servestate.providers.protocol import Provider


async def refresh(
    providers: Mapping[str, Provider], lineage: str, state: State, table_version: int | None
) -> Live:
    """Everything that wears the marks of `lineage` now, of all providers."""
    found = await asyncio.gather(*(provider.observe(lineage) for provider in providers.values()))
    return sort_out((seen for seens in found for seen in seens), state, table_version)


def sort_out(seen: Iterable[Observation], state: State, table_version: int | None) -> Live:
    """Observations by address. Where two wear the same address, the one that state names stays, else the
    running one; the others are duplicates."""
    chosen: dict[InstanceAddress, Observation] = {}
    duplicates: list[Observation] = []
    for one in sorted(seen, key=lambda s: (s.address, s.handle)):
        other = chosen.get(one.address)
        if other is None:
            chosen[one.address] = one
        elif _rank(one, state) > _rank(other, state):
            chosen[one.address] = one
            duplicates.append(other)
        else:
            duplicates.append(one)
    return Live(chosen, tuple(duplicates), table_version)


def _rank(seen: Observation, state: State) -> tuple[bool, bool]:
    recorded = state.instances.get(seen.address)
    return (recorded is not None and recorded.handle == seen.handle, seen.status is LiveStatus.RUNNING)
