"""Who holds which GPU while a plan is carried out, and when each one lets go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Placement

_ROUNDING = 1e-9

GpuKey = tuple[str, str]
"""Host and GPU id."""


@dataclass(frozen=True, slots=True)
class Holder:
    """An instance that holds (a share of) GPUs.

    `stop` is the id of the step that ends it, "" where it stays. That step waits for the publication of
    endpoint `waits_for`, or for nothing where that is "".
    """

    address: InstanceAddress
    placement: Placement
    stop: str = ""
    waits_for: str = ""


class Books:
    """Every claim of the plan: of what holds a GPU when it starts, and of every launch placed so far.

    Whoever is to stop stays in, since it holds its GPUs until then: what is placed there waits for it. `ever`
    collects every GPU that anything has held at any moment, `before` those held at the start.
    """

    def __init__(self, holders: Iterable[Holder]) -> None:
        self._by_gpu: dict[GpuKey, list[Holder]] = defaultdict(list)
        for holder in holders:
            self._book(holder)
        self.before = frozenset(self._by_gpu)
        self.ever = set(self.before)
        self._first: set[InstanceAddress] = set()

    def _book(self, holder: Holder) -> None:
        for gpu in holder.placement.gpus:
            self._by_gpu[holder.placement.host, gpu].append(holder)

    def of(self, gpu: GpuKey) -> list[Holder]:
        """Who holds a GPU."""
        return self._by_gpu.get(gpu, [])

    def on(self, host: str) -> Iterator[Holder]:
        """Every holder on a host, once for each GPU it holds there."""
        return (holder for (name, _), held in self._by_gpu.items() if name == host for holder in held)

    def claim(self, holder: Holder) -> None:
        """A launch was placed."""
        self._book(holder)
        self.ever |= {(holder.placement.host, gpu) for gpu in holder.placement.gpus}

    def free_first(self, addresses: Iterable[InstanceAddress]) -> None:
        """Those stop before anything of their endpoint starts: their steps wait for nothing now."""
        self._first.update(addresses)

    def awaits(self, holder: Holder) -> str:
        """The endpoint whose publication the step that ends a holder waits for, "" for none."""
        return "" if holder.address in self._first else holder.waits_for

    def after(self) -> set[GpuKey]:
        """The GPUs that are still held once every step is done."""
        return {gpu for gpu, held in self._by_gpu.items() if any(not holder.stop for holder in held)}


def room(holders: Iterable[Holder]) -> float:
    """The share of a GPU that these leave."""
    return 1.0 - sum(holder.placement.fraction for holder in holders)


def suffices(share: float, needed: float) -> bool:
    """Whether a share is enough: thirds need not add up to the last bit."""
    return share + _ROUNDING >= needed
