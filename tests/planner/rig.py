"""A whole site in memory: store, providers, router and table file, with every boundary of apply in reach.

The executor, the planner and the readiness loop are the real ones; only the edges are doubles. Time jumps
to whatever is waited for, so no test sleeps. Whatever must never happen is written to `violations` at the
moment it happens, because the executor would rightly treat an exception as a failed step.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import ExternalSpec, Spec
from servestate.planner.live import Live, LiveStatus, Observation
from servestate.planner.plan import Plan, make_plan
from servestate.planner.resolve import Resolved
from servestate.planner.stale import moved
from servestate.planner.state import Event, Phase, State
from servestate.planner.steps import Node
from servestate.planner.surroundings import ALONE, Surroundings
from servestate.planner.table import RoutingTable
from servestate.planner.table_file import decode, encode
from servestate.providers.external import ExternalProvider
from servestate.providers.fake import FakeProvider, FakeWorld
from servestate.providers.protocol import Launched, Marks, Readiness, Ready
from servestate.providers.readiness import await_ready
from servestate.providers.secrets import EnvSecrets
from servestate.runtime import executor
from servestate.runtime.executor import Executor, Outcome
from servestate.runtime.refresh import refresh
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import (
    Lock,
    Owner,
    StateStore,
)
from tests.planner.memory_store import MemoryStore
from tests.planner.virtual_time import Killed, run

LINEAGE = "6dce6f68-0000-4000-8000-000000000001"
SECRETS = {"SERVESTATE_SECRET_KEYS__OPENAI": "not-a-real-key"}


@dataclass
class TableFile:
    """The routing table file: what the router routes by."""

    text: str | None = None

    @property
    def table(self) -> RoutingTable | None:
        """None where it is missing or damaged."""
        try:
            return None if self.text is None else decode(self.text)
        except ValueError:
            return None

    @property
    def version(self) -> int | None:
        return self.table.version if self.table else None

    @property
    def urls(self) -> frozenset[str]:
        """Where requests go now."""
        endpoints = self.table.endpoints if self.table else ()
        return frozenset(b.url for e in endpoints for x in e.entities for b in x.backends)


class NoRouter:
    """A `RouterLink` to a router that adopts every table at once and has nothing in flight."""

    async def adopted(self, table_version: int) -> None:
        await asyncio.sleep(0)

    async def drained(
        self, address: InstanceAddress, timeout_s: float, report: Callable[[str], None]
    ) -> None:
        await asyncio.sleep(0)


class World(FakeWorld):
    """The fake world, which can also get well again."""

    def heal(self) -> None:
        """From now on nothing fails and everything gets ready at once."""
        self._faults.clear()
        self._behaviours.clear()


@dataclass
class Site:
    """One site and everything in it. `boundary` is called with a name at every point where a process can die:
    before and after each effect and each write. `frozen` is awaited where it can stand still for long: after
    the intent of an effect is committed and before the effect. `drifted` holds the URLs of what the world
    changed by itself; `tampered` says that somebody else wrote the table file. `surroundings` are its hosts
    and their GPUs."""

    store: StateStore = field(default_factory=MemoryStore)
    world: World = field(default_factory=World)
    table: TableFile = field(default_factory=TableFile)
    tables: list[RoutingTable] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    boundary: Callable[[str], None] = lambda name: None
    pause: Callable[[], float] = lambda: 0.0
    frozen: Callable[[str], Awaitable[None]] = lambda name: asyncio.sleep(0)
    drifted: set[str] = field(default_factory=set)
    overtaken: set[str] = field(default_factory=set)
    tampered: bool = False
    started: list[str] = field(default_factory=list)
    path: Path | None = None
    lineage: str = LINEAGE
    surroundings: Surroundings = ALONE
    _ops: Iterator[int] = field(default_factory=lambda: count(1))
    _proved: set[str] = field(default_factory=set)

    @property
    def providers(self) -> Mapping[str, _Watched | ExternalProvider]:
        return {"process": _Watched(self), "external": ExternalProvider(EnvSecrets(SECRETS))}

    @property
    def state(self) -> State:
        return self.store.read() or State(self.lineage)

    def look(self) -> Live:
        return run(self.looking())

    async def looking(self) -> Live:
        return await refresh(self.providers, self.lineage, self.state, self.table.version)

    def plan(self, desired: Resolved, *, destroy: bool = False) -> Plan:
        return make_plan(desired, self.state, self.look(), self.surroundings, destroy=destroy)

    def apply(self, plan: Plan, digest: str | None = None, *, stop_at: int = 0) -> Outcome | list[str]:
        """What `servestate apply` does with a plan: the outcome, or why it is stale."""
        return run(self.applying(plan, digest, stop_at=stop_at))

    async def applying(
        self, plan: Plan, digest: str | None = None, *, person: str = "ana", stop_at: int = 0
    ) -> Outcome | list[str]:
        """The same inside a loop. With `stop_at`, Ctrl-C arrives as that step starts."""
        self.store.create(plan.lineage)
        lock, _ = self.store.acquire(Owner("apply", person, "host", "1-1-boot"), 0.0)
        try:
            found = await self._applying(plan, digest, lock, stop_at)
        except Exception:  # not for Killed: the dead give nothing back
            self.store.release(lock)
            raise
        self.store.release(lock)
        return found

    async def _applying(
        self, plan: Plan, digest: str | None, lock: Lock, stop_at: int
    ) -> Outcome | list[str]:
        state = self.state
        live = await refresh(self.providers, self.lineage, state, self.table.version)
        reasons = moved(plan, state, live, digest, self.surroundings)
        return reasons or await self.execute(plan, state, live, lock, stop_at)

    async def execute(self, plan: Plan, state: State, live: Live, lock: Lock, stop_at: int = 0) -> Outcome:
        """Only the executor: what an operator does who has checked everything already."""
        watcher = _Watcher(self, stop_at)
        watcher.executor = Executor(self._reach(), state, lock, watcher)
        return await watcher.executor.run(plan, live)

    def _reach(self) -> executor.World:
        def new_id() -> str:
            return f"op-{next(self._ops)}"

        store = _Bounded(self)
        return executor.World(store, self.providers, _Path(self), NoRouter(), new_id, clock=lambda: 0.0)

    def converge(self, desired: Resolved) -> None:
        """Plan and apply once, with nothing in the way; everything must be there afterwards."""
        outcome = self.apply(self.plan(desired))
        assert isinstance(outcome, Outcome), outcome
        assert outcome.complete, outcome
        self.check(desired)

    def check(self, desired: Resolved | None = None) -> None:
        """No violation so far; with `desired`, that the world is exactly that and nothing is left to do."""
        assert not self.violations, "\n".join(self.violations)
        if desired is not None:
            plan = self.plan(desired)
            assert plan.is_empty, [node.id for node in plan.nodes]
            assert not plan.drift, plan.drift
            assert self.orphans() == []

    def orphans(self) -> list[str]:
        """What runs with our marks and is not a ready instance of the state."""
        ready = {i.handle for i in self.state.instances.values() if i.phase is Phase.READY}
        ours = (t for t in self.world.things.values() if t.marks.lineage == self.lineage)
        return [str(t.marks.address) for t in ours if t.handle not in ready]

    def routes(self) -> dict[str, dict[str, tuple[int, list[str]]]]:
        """What the table says, by meaning: endpoint, entity, weight, revisions."""
        table = self.table.table
        return {
            e.name: {x.name: (x.weight, [b.replica.split("#")[0] for b in x.backends]) for x in e.entities}
            for e in (table.endpoints if table else ())
        }

    def running(self) -> list[str]:
        """Revisions that run, without what depends on history (replica numbers, handles)."""
        return sorted(str(t.marks.address).split("#")[0] for t in self.world.things.values())

    def meaning(self) -> object:
        """All that must be equal where two histories end in the same place: everything except serials,
        replica numbers, handles and ids."""
        endpoints = {
            name: (e.key, e.owner, e.block, e.traffic, e.protected, [(t.entity, t.weight) for t in e.targets])
            for name, e in self.state.endpoints.items()
        }
        instances = sorted(
            (str(i.address.of), i.address.revision, i.phase, i.why) for i in self.state.instances.values()
        )
        return endpoints, instances, self.routes(), self.running()

    def wrote(self, table: RoutingTable, write: Callable[[Path, RoutingTable], None]) -> None:
        """P4, at the moment of the write; to the real file as well, where the site has one."""
        text = encode(table)
        decode(text)  # raises unless the weights of every endpoint add up to 100
        instances = {str(i.address): i for i in self.state.instances.values()}
        by_url = {t.url: t for t in self.world.things.values()}
        for endpoint in table.endpoints:
            for backend in (b for e in endpoint.entities for b in e.backends):
                instance = instances.get(backend.replica)
                if instance is None or instance.phase is not Phase.READY:
                    self.violations.append(
                        f"P4: the table names {backend.replica}, which is not ready in state"
                    )
                    continue
                if isinstance(instance.spec, ExternalSpec) or backend.url in self.drifted:
                    continue
                thing = by_url.get(backend.url)
                if (
                    thing is None
                    or thing.status is not LiveStatus.RUNNING
                    or thing.handle not in self._proved
                ):
                    self.violations.append(f"P4: the table names {backend.replica}, which never proved ready")
        self.boundary("table:before")
        if self.path is not None:
            write(self.path, table)
        self.table.text, self.tampered = text, False
        self.tables.append(table)
        self.boundary("table:after")

    def launching(self, marks: Marks) -> None:
        """D1, at the moment of the effect."""
        instance = self.state.instances.get(marks.address)
        if instance is None or instance.phase is not Phase.LAUNCHING or instance.op != marks.op:
            self.violations.append(f"D1: launch of {marks.address} without a committed intent")

    def claims(self) -> Mapping[tuple[str, str], float]:
        """The share of each GPU, by host and id, that is taken by what is alive. What a process launches that
        lost its lock after its intent is on no book: the next plan finds and stops it."""
        taken: dict[tuple[str, str], float] = defaultdict(float)
        for thing in self.world.things.values():
            if thing.status is not LiveStatus.EXITED and thing.marks.op not in self.overtaken:
                for gpu in thing.marks.placement.gpus:
                    taken[thing.marks.placement.host, gpu] += thing.marks.placement.fraction
        return taken

    def launched(self, marks: Marks) -> None:
        """P9, at the moment of the effect."""
        if marks.op in self.overtaken:
            return
        taken, mine = self.claims(), [(marks.placement.host, gpu) for gpu in marks.placement.gpus]
        self.violations += [
            f"P9: {marks.address} is launched on {host}/{gpu}, which is then taken {taken[host, gpu]:g} times"
            for host, gpu in mine
            if taken[host, gpu] > 1.001
        ]

    def stopping(self, handle: str) -> bool:
        """D1, as the call arrives. Whether it is an instance of the state that shall stop."""
        thing = self.world.things.get(handle)
        recorded = self.state.instances.get(thing.marks.address) if thing else None
        ours = recorded is not None and recorded.handle == handle
        if recorded and ours and recorded.phase not in (Phase.STOPPING, Phase.FAILED):
            self.violations.append(f"D1: stop of {recorded.address} without a committed intent")
        return ours

    def ending(self, handle: str) -> None:
        """P3, at the moment of the effect."""
        thing = self.world.things.get(handle)
        if thing is not None and not self.tampered and thing.url in self.table.urls:
            self.violations.append(f"P3: {thing.marks.address} is stopped while requests are routed to it")

    def proved(self, handle: str) -> None:
        self._proved.add(handle)


class _Watcher(Reporter):
    """P7, as the steps run; and the person who presses Ctrl-C."""

    executor: Executor

    def __init__(self, site: Site, stop_at: int) -> None:
        self._site = site
        self._left = stop_at
        self._done: set[str] = set()

    def step_started(self, node: Node) -> None:
        if not self._done.issuperset(node.needs):
            self._site.violations.append(f"P7: {node.id} started before {node.needs}")
        self._site.started.append(node.id)
        self._left -= 1
        if self._left == 0:
            self.executor.stop()

    def step_done(self, node: Node, elapsed_s: float) -> None:
        self._done.add(node.id)


class _Watched:
    """The provider `process` of a site, every effect of it between two boundaries."""

    name = "process"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._inner = FakeProvider(site.world, self.name)

    async def observe(self, lineage: str) -> list[Observation]:
        """See `Provider.observe`."""
        return await self._inner.observe(lineage)

    async def launch(self, spec: Spec, marks: Marks) -> Launched:
        self._site.launching(marks)
        lock = self._site.store.held()
        await asyncio.sleep(self._site.pause())
        await self._site.frozen("launch")
        self._site.boundary("launch:before")
        if self._site.store.held() != lock:
            self._site.overtaken.add(marks.op)
        launched = await self._inner.launch(spec, marks)
        self._site.launched(marks)
        self._site.boundary("launch:after")
        await asyncio.sleep(self._site.pause())
        return launched

    async def probe(self, handle: str, spec: Spec) -> Readiness:
        self._site.boundary("probe")
        await self._site.frozen("probe")
        await asyncio.sleep(self._site.pause())
        seen = await self._inner.probe(handle, spec)
        if isinstance(seen, Ready):
            self._site.proved(handle)
        return seen

    async def stop(self, handle: str, grace_s: float) -> None:
        ours = self._site.stopping(handle)
        await asyncio.sleep(self._site.pause())
        if ours:
            await self._site.frozen("stop")
        self._site.boundary("stop:before")
        self._site.ending(handle)
        await self._inner.stop(handle, grace_s)
        self._site.boundary("stop:after")
        await asyncio.sleep(self._site.pause())

    async def logs(self, handle: str, tail: int) -> str:
        return await self._inner.logs(handle, tail)


class _Bounded:
    """The store of a site as the executor sees it: every commit between two boundaries."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def commit(self, before: State, events: Sequence[Event], lock: Lock, now: float) -> State:
        self._site.boundary("commit:before")
        after = self._site.store.commit(before, events, lock, now)
        self._site.boundary("commit:after")
        return after


@dataclass(frozen=True)
class _Path:
    """Where the executor writes the table: leads to the site's double, or to the real file as well."""

    site: Site


@contextmanager
def seams() -> Iterator[None]:
    """Point the executor's two edges that are no arguments (table file, readiness clock) at a site."""
    real_write = executor.write_table

    def write(path: _Path | Path, table: RoutingTable) -> None:
        if isinstance(path, Path):
            real_write(path, table)
            return
        path.site.wrote(table, real_write)

    async def wait(*args: object) -> None:
        await await_ready(*args, clock=asyncio.get_running_loop().time)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "write_table", write)
        patch.setattr(executor, "await_ready", wait)
        yield


class Reaper:
    """Kills the process at the nth boundary; a dead process does nothing more."""

    def __init__(self, nth: int) -> None:
        self.left = nth
        self.names: list[str] = []
        self.dead = False

    def __call__(self, name: str) -> None:
        if self.dead:
            raise Killed
        self.names.append(name)
        self.left -= 1
        if self.left == 0:
            self.dead = True
            raise Killed


@contextmanager
def killed_at(site: Site, nth: int) -> Iterator[Reaper]:
    """Whatever runs in the body dies at its nth boundary, like at a kill -9; the lock it leaves is broken, as
    that of a process that is gone always is."""
    reaper = Reaper(nth)
    was, site.boundary = site.boundary, reaper
    try:
        yield reaper
    except Killed:
        held = site.store.held()
        if held is not None:
            site.store.break_lock(held.id)
    finally:
        site.boundary = was
