"""What the providers see, kept up to date: each is asked when something may have changed, and one that does
not answer, or answers slowly, holds up nobody else.

A provider that hears of changes by itself is asked then; the others are looked at again and again. What one
has said counts until the state has moved on: an observation older than the state says nothing of what was
launched since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Spec
from servestate.planner.live import Live, Observation
from servestate.planner.repair import known
from servestate.planner.state import Instance, State
from servestate.providers.protocol import (
    Launched,
    Marks,
    PermanentError,
    Provider,
    Readiness,
    TransientError,
    Watcher,
)
from servestate.runtime.refresh import sort_out

LOOK_S = 0.8
"""How often a provider that hears of nothing by itself is looked at: an end is noticed within a second, and
a look at fifty local processes costs 10 ms."""

ANYWAY_S = 30.0
"""How often one that hears of changes is looked at all the same."""

PATIENCE_S = 0.5
"""How long the others wait for one that is slow."""

ANSWER_S = 5.0
"""How long a repair waits for a look by the provider that it needs, from when that was asked."""

_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0


@dataclass(slots=True)
class _Eye:
    """One provider: what it said last, at which serial of the state and when it was asked, and what is under
    way. Until `deaf_until` it is looked at as one that hears of nothing."""

    provider: Provider
    seen: list[Observation] | None = None
    serial: int = -1
    asked_serial: int = -1
    asked_at: float = 0.0
    next_look: float = 0.0
    retry_s: float = _FIRST_RETRY_S
    trouble: str = ""
    deaf_until: float = 0.0
    asking: asyncio.Task[list[Observation]] | None = None
    hearing: asyncio.Task[None] | None = None

    @property
    def is_unreachable(self) -> bool:
        """Whether its last look has failed or goes on."""
        if self.trouble or self.asking is None:
            return bool(self.trouble)
        return not self.asking.done() or self.asking.exception() is not None


@dataclass(frozen=True, slots=True)
class Silent:
    """Stands in for a provider that does not answer: it sees what was seen last, and can do nothing."""

    name: str
    seen: tuple[Observation, ...]

    async def observe(self, lineage: str) -> list[Observation]:
        """See `Provider.observe`."""
        return list(self.seen)

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        """See `Provider.launch`."""
        raise self._unreachable()

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        """See `Provider.probe`."""
        raise self._unreachable()

    async def stop(self, handle: str, grace_s: float) -> None:
        """See `Provider.stop`."""
        raise self._unreachable()

    async def logs(self, handle: str, tail: int) -> str:
        """See `Provider.logs`."""
        raise self._unreachable()

    def _unreachable(self) -> TransientError:
        return TransientError(f"provider {self.name} does not answer")


class Sight:
    """All providers of a site. `hosts` are those that a provider looks at, of each that has any by name.
    `tell` hears, once each, when one falls silent and when it answers again."""

    def __init__(
        self,
        hosts: Mapping[str, Collection[str]],
        tell: Callable[[str, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._eyes: dict[str, _Eye] = {}
        self._hosts = hosts
        self._tell = tell
        self._clock = clock

    def add(self, providers: Mapping[str, Provider]) -> None:
        """Look at these from now on, in addition to those that are looked at already."""
        for name, provider in providers.items():
            self._eyes.setdefault(name, _Eye(provider))

    @property
    def providers(self) -> dict[str, Provider]:
        """The providers that are asked, by name."""
        return {name: eye.provider for name, eye in self._eyes.items()}

    @property
    def silent(self) -> dict[str, str]:
        """The providers that cannot be asked now, and why."""
        return {name: eye.trouble for name, eye in self._eyes.items() if eye.trouble}

    @property
    def unreachable(self) -> set[str]:
        """The providers that a repair cannot use now: they do not answer, or have not answered yet."""
        return {name for name, eye in self._eyes.items() if eye.is_unreachable}

    async def settle(self, names: Collection[str]) -> None:
        """Return once these providers have answered what they are asked, or have been asked for too long."""
        now = self._clock()
        eyes = (eye for name, eye in self._eyes.items() if name in names)
        waits = {eye.asking: eye.asked_at + ANSWER_S - now for eye in eyes if eye.asking is not None}
        if waits and (timeout := max(waits.values())) > 0:
            await asyncio.wait(waits, timeout=timeout)

    def stand_ins(self, state: State) -> dict[str, Provider]:
        """What takes the place of those that are unreachable, for a repair that uses none of them."""
        return {
            name: Silent(name, tuple(_remembered(self._eyes[name], name, state)))
            for name in sorted(self.unreachable)
        }

    def unseen(self, state: State) -> set[InstanceAddress]:
        """The instances of which nothing is known that is as new as the state: their provider has not
        answered since, or they are where it does not look."""
        unsure = {n for n, eye in self._eyes.items() if eye.trouble or eye.serial != state.serial}
        return {
            address
            for address, one in state.instances.items()
            if one.spec.provider in unsure or self._is_elsewhere(one)
        }

    def elsewhere(self, state: State) -> list[str]:
        """Where instances are that no provider looks at, as `PROVIDER host NAME`: the site was another one
        when they were launched."""
        found = (one for one in state.instances.values() if self._is_elsewhere(one))
        return sorted({f"{one.spec.provider} host {one.placement.host}" for one in found})

    def _is_elsewhere(self, one: Instance) -> bool:
        return one.placement.host not in self._hosts.get(one.spec.provider, (one.placement.host,))

    async def look(self, state: State, table_version: int | None) -> Live:
        """What is live, as far as it can be told without waiting for those that are slow."""
        now = self._clock()
        for eye in self._eyes.values():
            if eye.asking is None and (now >= eye.next_look or self._has_moved(eye, state)):
                eye.asked_serial, eye.asked_at = state.serial, now
                eye.asking = asyncio.create_task(eye.provider.observe(state.lineage))
        asked = [eye.asking for eye in self._eyes.values() if eye.asking is not None]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE_S)
        for name, eye in self._eyes.items():
            if eye.asking is not None and eye.asking.done():
                self._book(name, eye, eye.asking, state)
        seen = (one for name, eye in self._eyes.items() for one in _remembered(eye, name, state))
        return sort_out(seen, state, table_version)

    def pending(self, lineage: str) -> set[asyncio.Task[object]]:
        """What ends as soon as there is something new to see."""
        found: set[asyncio.Task[object]] = set()
        for eye in self._eyes.values():
            if eye.hearing is None and self._hears(eye):
                assert isinstance(eye.provider, Watcher)
                eye.hearing = asyncio.create_task(eye.provider.await_change(lineage))
            found |= {task for task in (eye.asking, eye.hearing) if task is not None}
        return found

    def _hears(self, eye: _Eye) -> bool:
        return isinstance(eye.provider, Watcher) and not eye.trouble and self._clock() >= eye.deaf_until

    def _has_moved(self, eye: _Eye, state: State) -> bool:
        """Whether something has changed since it was asked: in the state, or as far as it has heard."""
        if eye.hearing is not None and eye.hearing.done():
            if eye.hearing.exception() is not None:
                eye.deaf_until = self._clock() + ANYWAY_S
            eye.hearing = None
            return True
        return eye.asked_serial != state.serial and not eye.trouble

    def _book(self, name: str, eye: _Eye, answer: asyncio.Task[list[Observation]], state: State) -> None:
        eye.asking = None
        error = answer.exception()
        if error is None:
            eye.seen, eye.serial, eye.retry_s = answer.result(), eye.asked_serial, _FIRST_RETRY_S
            eye.next_look = self._clock() + (ANYWAY_S if self._hears(eye) else LOOK_S)
            if eye.trouble:
                eye.trouble = ""
                self._tell(name, "answers again")
            return
        if not isinstance(error, TransientError | PermanentError):
            raise error
        if not eye.trouble:
            self._tell(name, f"does not answer, nothing of it is touched until it does: {_first_line(error)}")
        eye.trouble = _first_line(error)
        eye.next_look = self._clock() + eye.retry_s
        eye.retry_s = min(_LONGEST_RETRY_S, 2 * eye.retry_s)


def _remembered(eye: _Eye, name: str, state: State) -> list[Observation]:
    """What was seen last; of one that has never answered, what is recorded."""
    return known(state, name) if eye.seen is None else eye.seen


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
