"""The GPUs of a plan: who holds them when it starts, and how many are in use before, during and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from servestate.planner.address import InstanceAddress
from servestate.planner.claims import Books, Holder
from servestate.planner.launch import LaunchSpec
from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.match import Match
from servestate.planner.rollout import stop_id, stray_id
from servestate.planner.state import Instance, Phase
from servestate.planner.surroundings import Surroundings


@dataclass(frozen=True, slots=True)
class HostUse:
    """How many GPUs of one host are in use: before the plan, at most while it is carried out, and after it,
    of `total`, 0 where that is not known."""

    host: str
    total: int
    before: int
    peak: int
    after: int


def open_books(
    live: Live,
    instances: Mapping[InstanceAddress, Instance],
    matches: Mapping[str, Sequence[Match]],
    ending: Collection[InstanceAddress],
    unknown: Sequence[Observation],
) -> Books:
    """The books as they are when the plan starts. `ending` are recorded instances whose endpoint goes away,
    `unknown` the strays. What is recorded and not in `matches` belongs to others and stays."""
    used = {m.use for group in matches.values() for m in group}
    waiting = frozenset(unknown)
    holders = []
    for seen in (*live.instances.values(), *live.duplicates):
        instance = instances.get(seen.address)
        known = seen.placement if instance is None or seen in waiting else instance.placement
        placement = seen.placement if seen.placement.gpus else known
        if seen.status is LiveStatus.EXITED or not placement.gpus:
            continue
        if seen in waiting:
            adopted = seen.address in used and seen not in live.duplicates
            holders.append(Holder(seen.address, placement, "" if adopted else stray_id(seen)))
            continue
        stop = "" if seen.address in used else _stop(seen.address, matches, ending)
        failed = instance is not None and instance.phase is Phase.FAILED
        waits_for = "" if seen.address in ending or failed or not stop else seen.address.endpoint
        holders.append(Holder(seen.address, placement, stop, waits_for))
    return Books(holders)


def _stop(
    address: InstanceAddress, matches: Mapping[str, Sequence[Match]], ending: Collection[InstanceAddress]
) -> str:
    return stop_id(address) if address in ending or address.endpoint in matches else ""


def crowd(live: Live) -> dict[str, int]:
    """How many instances run on each host."""
    running = (seen for seen in live.instances.values() if seen.status is not LiveStatus.EXITED)
    return dict(Counter(seen.placement.host for seen in running))


def uses(books: Books, surroundings: Surroundings) -> tuple[HostUse, ...]:
    """The use of every host on which a GPU is held at any time. What others hold counts as in use."""
    foreign = {(h.name, g.id) for h in surroundings.hosts.values() for g in h.gpus if g.holders}
    before, ever, after = books.before | foreign, books.ever | foreign, books.after() | foreign
    hosts = sorted({host for host, _ in ever}) if books.ever else []
    return tuple(
        HostUse(host, _total(host, surroundings), *(_count(host, keys) for keys in (before, ever, after)))
        for host in hosts
    )


def _total(host: str, surroundings: Surroundings) -> int:
    return max((len(h.gpus) for h in surroundings.hosts.values() if h.name == host), default=0)


def _count(host: str, keys: Iterable[tuple[str, str]]) -> int:
    return sum(name == host for name, _ in keys)


def places_something(matches: Iterable[Match]) -> bool:
    """Whether any of them is started on GPUs or in a container, so that where is a question."""
    specs = (match.entity.spec for match in matches)
    return any(isinstance(s, LaunchSpec) and (s.gpus or s.container is not None) for s in specs)
