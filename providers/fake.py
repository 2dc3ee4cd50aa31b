"""A world in memory, with failures by script. It ships beside the interface whose contract it keeps.

One `FakeWorld` outlives any number of `FakeProvider`s, as the real world outlives a command that was killed.
There is no time in it: how soon something is ready is counted in probes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Spec
from servestate.planner.live import LiveStatus, Observation
from servestate.providers.protocol import Failed, Launched, Marks, Readiness, Ready, Starting


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How things at an address act. `ready_after` probes answer Starting first, None means for ever; the
    probe after `dies_after` of them finds it dead, 0 means that it dies at start, None never."""

    ready_after: int | None = 0
    dies_after: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """An error to raise from one call. With `late` the call takes effect first: only its answer is lost."""

    error: Exception
    late: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    """One launched thing, running or exited."""

    provider: str
    handle: str
    marks: Marks
    status: LiveStatus = LiveStatus.RUNNING
    probes: int = 0

    @property
    def url(self) -> str:
        """An address that no request can reach."""
        return f"http://{self.handle}.invalid"


class FakeWorld:
    """What exists, what was done to it, and what will go wrong.

    `effects` lists what changed the world, in order, as ("launch", address) and ("stop", address); a repeat
    that changed nothing is not in it. `calls` counts every call by method and address ("" for observe).
    """

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.effects: list[tuple[str, str]] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self._faults: dict[tuple[str, str, int], Fault] = {}
        self._behaviours: dict[str, Behaviour] = {}
        self._launched = 0

    def fail(self, method: str, address: InstanceAddress | str, nth: int, fault: Fault) -> None:
        """Make the nth call (from 1) of that method for that address raise. Use "" for observe."""
        self._faults[method, str(address), nth] = fault

    def behave(self, address: InstanceAddress, behaviour: Behaviour) -> None:
        """How things launched at the address act from now on."""
        self._behaviours[str(address)] = behaviour

    def crash(self, address: InstanceAddress) -> None:
        """What runs at the address dies."""
        self._set(address, LiveStatus.EXITED)

    def pause(self, address: InstanceAddress) -> None:
        """What runs at the address is stopped by a signal."""
        self._set(address, LiveStatus.PAUSED)

    def vanish(self, address: InstanceAddress) -> None:
        """What is at the address is gone without a trace."""
        self.things = {h: thing for h, thing in self.things.items() if thing.marks.address != address}

    def alive(self, address: InstanceAddress) -> list[Thing]:
        """What runs at the address now; more than one would be a duplicate."""
        return [
            thing
            for thing in self.things.values()
            if thing.marks.address == address and thing.status is not LiveStatus.EXITED
        ]

    def plant(self, provider: str, marks: Marks) -> Thing:
        """Put a thing into the world that nobody launched through a provider: a stray or a stranger."""
        self._launched += 1
        thing = Thing(provider, f"fake-{self._launched}", marks)
        if self.behaviour(marks.address).dies_after == 0:
            thing = replace(thing, status=LiveStatus.EXITED)
        self.things[thing.handle] = thing
        return thing

    def behaviour(self, address: InstanceAddress) -> Behaviour:
        """How things at the address act; ready at once unless told otherwise."""
        return self._behaviours.get(str(address), Behaviour())

    def called(self, method: str, address: InstanceAddress | str) -> Fault | None:
        """Count a call; the fault scripted for it."""
        key = (method, str(address))
        self.calls[key] += 1
        return self._faults.get((*key, self.calls[key]))

    def _set(self, address: InstanceAddress, status: LiveStatus) -> None:
        for thing in self.alive(address):
            self.things[thing.handle] = replace(thing, status=status)


class FakeProvider:
    """The provider of a `FakeWorld`, under the name of the provider it stands in for."""

    def __init__(self, world: FakeWorld, name: str = "fake") -> None:
        self.name = name
        self._world = world

    async def observe(self, lineage: str) -> list[Observation]:
        """See `Provider.observe`."""
        fault = self._world.called("observe", "")
        if fault is not None:
            raise fault.error
        return [
            Observation(
                thing.marks.address,
                self.name,
                thing.handle,
                thing.url,
                thing.status,
                _why(thing),
                placement=thing.marks.placement,
            )
            for thing in self._world.things.values()
            if thing.marks.lineage == lineage and thing.provider == self.name
        ]

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        """See `Provider.launch`."""
        fault = self._world.called("launch", marks.address)
        if fault is not None and not fault.late:
            raise fault.error
        thing = self._running(marks) or self._start(marks)
        if fault is not None:
            raise fault.error
        return Launched(thing.handle, thing.url)

    def _running(self, marks: Marks) -> Thing | None:
        return next((t for t in self._at(marks) if t.status is not LiveStatus.EXITED), None)

    def _start(self, marks: Marks) -> Thing:
        for remains in self._at(marks):
            del self._world.things[remains.handle]
        self._world.effects.append(("launch", str(marks.address)))
        return self._world.plant(self.name, marks)

    def _at(self, marks: Marks) -> list[Thing]:
        return [
            thing
            for thing in self._world.things.values()
            if thing.provider == self.name
            and (thing.marks.lineage, thing.marks.address) == (marks.lineage, marks.address)
        ]

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        """See `Provider.probe`."""
        thing = self._world.things.get(handle)
        fault = self._world.called("probe", thing.marks.address if thing else handle)
        if fault is not None:
            raise fault.error
        if thing is None:
            return Failed("SS506", "its process is gone and there is no record of it")
        act = self._world.behaviour(thing.marks.address)
        if act.dies_after is not None and thing.probes >= act.dies_after:
            self._world.crash(thing.marks.address)
        thing = replace(self._world.things[handle], probes=thing.probes + 1)
        self._world.things[handle] = thing
        return _readiness(thing, act)

    async def stop(self, handle: str, grace_s: float) -> None:
        """See `Provider.stop`."""
        thing = self._world.things.get(handle)
        fault = self._world.called("stop", thing.marks.address if thing else handle)
        if fault is not None and not fault.late:
            raise fault.error
        if thing is not None:
            del self._world.things[handle]
            self._world.effects.append(("stop", str(thing.marks.address)))
        if fault is not None:
            raise fault.error

    async def logs(self, handle: str, tail: int) -> str:
        """See `Provider.logs`."""
        thing = self._world.things.get(handle)
        lines = [f"fake log of {thing.marks.address}"] if thing else []
        return "\n".join(lines[-tail:] if tail > 0 else [])


def _readiness(thing: Thing, act: Behaviour) -> Readiness:
    if thing.status is LiveStatus.EXITED:
        return Failed("SS506", _why(thing))
    if thing.status is LiveStatus.PAUSED:
        return Starting("paused by a signal")
    if act.ready_after is None or thing.probes <= act.ready_after:
        return Starting(f"probe {thing.probes}")
    return Ready()


def _why(thing: Thing) -> str:
    return "exit code 1" if thing.status is LiveStatus.EXITED else ""
