"""T22: one site under a seed. Everything that happens to it is drawn from the seed, so a seed is a history.

The site has GPUs, too few for everything at once. Operations: the configuration is edited, applied, applied
from a saved plan; the process is killed at any boundary, interrupted by Ctrl-C, or frozen while another
applies; things crash, pause, vanish and appear; providers and the store fail, late or early, once or for a
while; the table file is lost, damaged or put back. After every operation the invariants are checked; from
time to time, and at the end, everything gets well and one apply must be enough to be there.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence

from servestate.planner.address import InstanceAddress
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.live import LiveStatus
from servestate.planner.plan import Plan, make_plan
from servestate.planner.resolve import ResolvedEndpoint, ResolvedEntity
from servestate.planner.state import Event, Phase, State
from servestate.planner.table_file import encode
from servestate.providers.fake import Behaviour, Fault, Thing
from servestate.providers.protocol import Marks, PermanentError, TransientError
from servestate.runtime.executor import Outcome
from servestate.runtime.store.protocol import Lock, LockHeld, StateStore, StoreError
from tests.planner.blocks import NOTHING, bundle, endpoint, external, local
from tests.planner.gpu_worlds import host, on_gpus, surroundings
from tests.planner.memory_store import MemoryStore
from tests.planner.rig import Site, killed_at

STEPS = 60
STRANGER = "7f3e0000-0000-4000-8000-00000000dead"
NAMES, VERSIONS = ("a", "b", "c"), ("A", "B", "C")
GPUS = surroundings(host("h1", 3), host("h2", 2))


class Unsound(AssertionError):
    """An invariant does not hold; the message holds the seed and what led there."""


class Shaky:
    """A store that fails by script: before it writes, or after, so that only the answer is lost."""

    def __init__(self, inner: StateStore) -> None:
        self.inner = inner
        self.fails_in = 0
        self.late = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def commit(self, before: State, events: Sequence[Event], lock: Lock, now: float) -> State:
        self.fails_in -= 1
        if self.fails_in == 0 and not self.late:
            raise _full()
        after = self.inner.commit(before, events, lock, now)
        if self.fails_in == 0:
            raise _full()
        return after


def _full() -> StoreError:
    return StoreError(Diagnostic("SS402", "no space left on device", "free some"))


class Simulation:
    """A site, a desired configuration and a seed."""

    def __init__(self, seed: int, store: StateStore | None = None, steps: int = STEPS) -> None:
        self.seed = seed
        self.steps = steps
        self.rng = random.Random(seed)
        self.store = Shaky(store or MemoryStore())
        self.site = Site(self.store, pause=self._pause, boundary=self._boundary, surroundings=GPUS)
        self.site.store.create(self.site.lineage)
        self.desired = NOTHING
        self.saved: list[Plan] = []
        self.log: list[str] = []
        self.seen: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._strangers: set[str] = set()
        self._planted: set[InstanceAddress] = set()
        self._serial = 0

    def run(self) -> str:
        """Play the seed to its end; the hash of everything that happened. Raises Unsound."""
        operations, weights = zip(*self._operations(), strict=True)
        try:
            for _ in range(self.steps):
                operation: Callable[[], None] = self.rng.choices(operations, weights)[0]
                self._note(operation.__name__)
                operation()
                self._check()
            self.get_well()
        except Exception as error:
            last = "\n  ".join(self.log[-40:])
            raise Unsound(f"--seed {self.seed}: {error}\n  {last}") from error
        return self._digest.hexdigest()

    def _operations(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (self.edit, 14),
            (self.apply, 16),
            (self.apply_and_die, 14),
            (self.apply_and_interrupt, 6),
            (self.apply_and_freeze, 5),
            (self.save_plan, 4),
            (self.apply_saved, 5),
            (self.provider_fault, 12),
            (self.bad_behaviour, 8),
            (self.store_fault, 5),
            (self.crash, 6),
            (self.pause, 3),
            (self.vanish, 4),
            (self.stray, 5),
            (self.stranger, 1),
            (self.table_trouble, 4),
            (self.get_well, 6),
        ]

    def edit(self) -> None:
        """Another configuration."""
        names = [name for name in ("one", "two", "three") if self.rng.random() < 0.6]
        self.desired = bundle(*(self._endpoint(name) for name in names))
        for one in self.desired.endpoints:
            self._note(f"  {one.name}: {[(e.name, e.weight, e.revision) for e in one.entities]}")

    def _endpoint(self, name: str) -> ResolvedEndpoint:
        rng = self.rng
        if rng.random() < 0.2:
            return endpoint(name, external("x", 100, rng.choice(["one.example", "two.example"])))
        chosen = rng.sample(NAMES, rng.randint(1, 3))
        weights = self._split(len(chosen))
        description = rng.choice(["", "", "described"])
        return endpoint(
            name,
            *(self._entity(*pair) for pair in zip(chosen, weights, strict=True)),
            description=description,
        )

    def _entity(self, name: str, weight: int) -> ResolvedEntity:
        version, recreate = self.rng.choice(VERSIONS), self.rng.random() < 0.25
        if self.rng.random() < 0.5:
            return local(name, weight, version, ready_timeout_s=3.0, recreate=recreate)
        return on_gpus(
            name,
            weight,
            version,
            gpus=self.rng.choice([1, 1, 2]),
            fraction=self.rng.choice([1.0, 0.5, 0.5]),
            hosts=self.rng.choice([("h1", "h2"), ("h1", "h2"), ("h1",)]),
            ready_timeout_s=3.0,
            recreate=recreate,
        )

    def _split(self, count: int) -> list[int]:
        cuts = sorted(self.rng.choice(range(0, 101, 5)) for _ in range(count - 1))
        return [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]

    def apply(self) -> None:
        """Plan and apply; whatever is broken now gets in the way."""
        plan = self._plan()
        if plan is not None:
            self._book(self._apply(plan))

    def apply_and_die(self) -> None:
        """kill -9 somewhere on the way."""
        plan = self._plan()
        if plan is None:
            return
        with killed_at(self.site, self.rng.randint(1, 40)) as reaper:
            self._book(self._apply(plan))
        self.seen["killed"] += reaper.dead
        self._note(f"  died at {reaper.names[-1:] if reaper.dead else 'no boundary'}")

    def apply_and_interrupt(self) -> None:
        """Ctrl-C somewhere on the way."""
        plan = self._plan()
        if plan is not None:
            self._book(self.site.apply(plan, stop_at=self.rng.randint(1, 8)))

    def apply_and_freeze(self) -> None:
        """The lock is lost in the middle: somebody else applies another configuration meanwhile."""
        plan = self._plan()
        if plan is None:
            return
        self.edit()
        left = self.rng.randint(1, 6)

        async def frozen(name: str) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            held = self.store.held()
            if held is not None:
                self.store.break_lock(held.id)
            try:
                theirs = make_plan(self.desired, self.site.state, await self.site.looking(), GPUS)
                self._note("  meanwhile:")
                self._book(await self.site.applying(theirs, person="bob"))
            except (TransientError, StoreError, InvalidInput) as error:
                self._note(f"  meanwhile: {error}")

        was, self.site.frozen = self.site.frozen, frozen
        self._book(self._apply(plan))
        self.site.frozen = was

    def save_plan(self) -> None:
        """`plan --out`."""
        plan = self._plan()
        if plan is not None:
            self.saved.append(plan)

    def apply_saved(self) -> None:
        """`apply FILE`, mostly long out of date; then it must be refused and change nothing."""
        if not self.saved:
            return
        plan = self.saved.pop(self.rng.randrange(len(self.saved)))
        was = (self.site.state, dict(self.site.world.things))
        found = self._apply(plan)
        self._book(found)
        if plan.serial != was[0].serial and found is not None:
            self._demand(not isinstance(found, Outcome), "a plan of another serial was applied")
        if not isinstance(found, Outcome):
            self._demand((self.site.state, self.site.world.things) == was, "a refused plan changed something")

    def provider_fault(self) -> None:
        """The next calls of one method at one address fail, before or after they act."""
        method = self.rng.choice(["launch", "launch", "stop", "probe", "observe"])
        address = "" if method == "observe" else str(self._some_address())
        error = self.rng.choice([TransientError("busy"), PermanentError("SS500", "no memory")])
        if method in ("observe", "probe"):
            error = TransientError("busy")
        fault = Fault(error, late=self.rng.random() < 0.5 and method in ("launch", "stop"))
        done = self.site.world.calls[method, address]
        for nth in range(1, 1 + self.rng.choice([1, 1, 2, 5])):
            self.site.world.fail(method, address, done + nth, fault)
        self._note(f"  {method} {address} {error} late={fault.late}")

    def bad_behaviour(self) -> None:
        """What is launched at an address from now on is slow, never ready or short of life."""
        act = self.rng.choice(
            [
                Behaviour(ready_after=2),
                Behaviour(ready_after=None),
                Behaviour(dies_after=0),
                Behaviour(ready_after=3, dies_after=1),
            ]
        )
        address = self._some_address()
        self.site.world.behave(address, act)
        self._note(f"  {address} {act}")

    def store_fault(self) -> None:
        """One commit soon fails."""
        self.store.fails_in, self.store.late = self.rng.randint(1, 12), self.rng.random() < 0.5

    def crash(self) -> None:
        """Something that runs dies."""
        self._drift(self.site.world.crash)

    def pause(self) -> None:
        """Something that runs is stopped by a signal."""
        self._drift(self.site.world.pause)

    def vanish(self) -> None:
        """Something is gone without a trace."""
        self._drift(self.site.world.vanish)

    def _drift(self, happen: Callable[[InstanceAddress], None]) -> None:
        ours = [t for t in self.site.world.things.values() if t.marks.lineage == self.site.lineage]
        if not ours:
            return
        address = self.rng.choice(sorted(ours, key=lambda t: t.handle)).marks.address
        at = [t for t in ours if t.marks.address == address]
        self.site.drifted |= {t.url for t in at}
        theirs = {h: self.site.world.things[h] for h in self._strangers}
        happen(address)
        self.site.world.things |= theirs
        self._note(f"  {address}")

    def stray(self) -> None:
        """Something with our marks that no state knows, or a second one of what it knows."""
        address = self._some_address()
        self.site.world.plant("process", Marks(self.site.lineage, address, 1, "op-lost"))
        self._planted.add(address)
        self._note(f"  {address}")

    def stranger(self) -> None:
        """Something of another lineage, which is none of our business for ever."""
        thing = self.site.world.plant("process", Marks(STRANGER, self._some_address(), 1, "op-theirs"))
        self._strangers.add(thing.handle)

    def table_trouble(self) -> None:
        """The table file is deleted, damaged, or an old one is restored."""
        old = [t for t in self.site.tables if t.version < (self.site.table.version or 0)]
        kind = self.rng.choice(["lost", "damaged", "old"])
        self.site.tampered = True
        if kind == "old" and old:
            self.site.table.text = encode(self.rng.choice(old))
        else:
            self.site.table.text = None if kind == "lost" else "{"
        self._note(f"  {kind}")

    def get_well(self) -> None:
        """All trouble ends: one apply is enough, and another one does nothing."""
        self.site.world.heal()
        self.store.fails_in = 0
        held = self.store.held()
        self._demand(held is None, f"the lock is left behind: {held}")
        plan = self._fitting()
        outcome = self._apply(plan)
        self._book(outcome)
        self._demand(
            isinstance(outcome, Outcome) and outcome.complete, f"one apply was not enough: {outcome}"
        )
        self._present()
        again = self.site.plan(self.desired)
        self._demand(again.is_empty, f"P1: the plan after it holds {[n.id for n in again.nodes]}")
        self._demand(not again.drift, f"drift is left: {again.drift}")
        self._demand(not self.site.orphans(), f"orphans: {self.site.orphans()}")
        self.site.drifted.clear()
        self._planted.clear()

    def _fitting(self) -> Plan:
        """The plan, of other wishes where these do not fit beside or in place of what is there."""
        while True:
            try:
                return self.site.plan(self.desired)
            except InvalidInput as refused:
                self._refuse(refused)
                self.edit()

    def _refuse(self, refused: InvalidInput) -> None:
        self.seen["refused"] += 1
        self._note(f"  no plan: {refused}")

    def _plan(self) -> Plan | None:
        try:
            return self.site.plan(self.desired)
        except TransientError as error:
            self._note(f"  no plan: {error}")
            return None
        except InvalidInput as refused:
            self._refuse(refused)
            return None

    def _apply(self, plan: Plan) -> Outcome | list[str] | None:
        try:
            return self.site.apply(plan)
        except (TransientError, StoreError, LockHeld) as error:
            self._note(f"  not applied: {error}")
            return None

    def _book(self, found: Outcome | list[str] | None) -> None:
        if isinstance(found, Outcome):
            self._note(f"  done {found.done} failed {sorted(found.failed)} skipped {sorted(found.skipped)}")
            self._note(f"  interrupted={found.interrupted} lost={found.lost!r}")
            self.seen["applied"] += found.complete
            self.seen["failed"] += bool(found.failed)
            self.seen["interrupted"] += found.interrupted
            self.seen[type(found.lost).__name__] += 1
        elif found:
            self.seen["stale"] += 1
            self._note(f"  stale: {found}")

    def _present(self) -> None:
        """What was acknowledged is there: every desired entity routed as desired, to something ready."""
        state, table = self.site.state, self.site.table.table
        names = {e.name for e in self.desired.endpoints}
        self._demand(set(state.endpoints) == names, "state does not hold exactly what was acknowledged")
        routed = {e.name: e for e in table.endpoints} if table else {}
        for one in self.desired.endpoints:
            shares = {x.name: x.weight for x in routed[one.name].entities}
            self._demand(
                shares == {e.name: e.weight for e in one.entities}, "another split than acknowledged"
            )
            for entity in routed[one.name].entities:
                self._demand(len(entity.backends) == 1, f"{one.name}/{entity.name} has no backend")
        ready = [i for i in state.instances.values() if i.phase is Phase.READY and "external" not in i.handle]
        for instance in ready:
            thing = self.site.world.things.get(instance.handle)
            alive = thing is not None and thing.status is LiveStatus.RUNNING
            self._demand(alive, f"{instance.address} was acknowledged and does not run")

    def _check(self) -> None:
        """The invariants, which hold at every moment."""
        site = self.site
        self._demand(not site.violations, "; ".join(site.violations))
        state = site.state
        self._demand(state.serial >= self._serial, "the serial went back")
        self._serial = state.serial
        gone = self._strangers - site.world.things.keys()
        self._demand(not gone, f"strangers were touched: {gone}")
        for address, alive in self._alive().items():
            at_most = 1 if address not in self._planted else len(alive)
            self._demand(len(alive) <= at_most, f"{address} runs twice")
        for gpu, taken in site.claims().items():  # two that hold one exclusively take it twice
            self._demand(taken < 1.001, f"{gpu} is taken {taken:g} times")
        if site.tampered:
            return
        self._demand((site.table.version or 0) <= state.table_serial, "the table is ahead of the state")
        by_url = {t.url: t for t in site.world.things.values()}
        for url in sorted(site.table.urls - site.drifted):
            thing = by_url.get(url)
            runs = thing is not None and thing.status is LiveStatus.RUNNING
            self._demand(runs or "example" in url, f"requests are routed to {url}, which does not run")

    def _alive(self) -> dict[InstanceAddress, list[Thing]]:
        found: dict[InstanceAddress, list[Thing]] = {}
        for thing in self.site.world.things.values():
            if thing.marks.lineage == self.site.lineage and thing.status is not LiveStatus.EXITED:
                found.setdefault(thing.marks.address, []).append(thing)
        return found

    def _some_address(self) -> InstanceAddress:
        """One that is, was or could be in use."""
        known = list(self.site.state.instances)
        if known and self.rng.random() < 0.4:
            return self.rng.choice(known)
        wanted = [
            (e.name, x) for e in self.desired.endpoints for x in e.entities if x.spec.provider == "process"
        ]
        if wanted and self.rng.random() < 0.5:
            name, entity = self.rng.choice(wanted)
            return InstanceAddress(name, entity.name, entity.revision, 0)
        entity = local(self.rng.choice(NAMES), 0, self.rng.choice(VERSIONS))
        return InstanceAddress(self.rng.choice(["one", "two"]), entity.name, entity.revision, 0)

    def _pause(self) -> float:
        return self.rng.choice([0.0, 0.0, 0.1, 0.3])

    def _boundary(self, name: str) -> None:
        self._digest.update(name.encode())

    def _note(self, text: str) -> None:
        self.log.append(text)
        self._digest.update(text.encode())

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Unsound(what)
