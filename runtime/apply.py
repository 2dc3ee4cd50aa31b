"""Carrying a plan out: lock, freshness, signals, heartbeat, executor."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from servestate.planner.diagnostics import Diagnostic
from servestate.planner.live import Live
from servestate.planner.plan import Plan
from servestate.planner.stale import moved, relies_on_hosts
from servestate.planner.state import State
from servestate.planner.surroundings import Surroundings
from servestate.providers.protocol import PermanentError
from servestate.runtime import signals
from servestate.runtime.executor import Executor, Outcome, World
from servestate.runtime.refresh import refresh
from servestate.runtime.reporter import Reporter
from servestate.runtime.router_link import ControlSocket
from servestate.runtime.store.protocol import JournalEntry, Lock, LockHeld, Owner, StateStore, StoreError
from servestate.runtime.survey import survey_hosts
from servestate.runtime.table_file import read_version
from servestate.runtime.workspace import Workspace, is_gone

HEARTBEAT_S = 10.0
"""How often a held lock is renewed; it expires after six missed beats."""

_LOCK_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Stale:
    """The plan may not be applied: what moved, and the writes that happened since it was made."""

    moved: tuple[str, ...]
    journal: tuple[JournalEntry, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of it. `signal` is the one that ended it early, 0 when none did."""

    outcome: Outcome
    signal: int = 0


Attend = Callable[[Executor, Plan, Live, Reporter], Awaitable[Finished]]
"""Runs the executor, and ends it early where somebody wants that."""


def carry_out(
    workspace: Workspace,
    plan: Plan,
    desired_digest: str | None,
    owner: Owner,
    reporter: Reporter,
    lock_timeout_s: float,
    attend: Attend | None = None,
) -> Stale | Finished:
    """Apply `plan` under the lock if the world is still the one it was made against. `attend` ends it early
    where it should; without, signals of this process do.

    Raises LockHeld when somebody else still holds the lock after `lock_timeout_s`, and StoreError when the
    state cannot be read or written before anything was done.
    """
    store = workspace.store
    if store.read() is None:
        # Before one is made: a state that a refused plan leaves in the wrong folder would share the lineage
        # of the plan's own, and the next apply here would take the instances of that one for strays.
        _, stale = asyncio.run(_look(workspace, plan, desired_digest, State(plan.lineage)))
        if stale is not None:
            return stale
    store.create(plan.lineage)
    with _locked(store, owner, lock_timeout_s, reporter) as lock:
        state = store.read()
        assert state is not None, "create() has made one"
        return asyncio.run(
            _apply(workspace, plan, desired_digest, state, lock, reporter, attend or _run_until_signal)
        )


def wait_for_lock(store: StateStore, timeout_s: float, tell: Callable[[str], None]) -> None:
    """Return once nobody holds the lock or it may be broken: what is planned then is planned against what
    the holder left. `tell` hears once whom it waits for. Raises LockHeld after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    told = False
    while (held := store.held()) is not None:
        if held.is_free(time.time(), is_gone):
            return
        if time.monotonic() >= deadline:
            raise LockHeld(held)
        if not told:
            who = f"{held.owner.person}@{held.owner.host} ({held.owner.verb})"
            tell(f"servestate: waiting up to {timeout_s:g} s for the lock of {who}")
            told = True
        time.sleep(_LOCK_POLL_S)


@contextmanager
def _locked(store: StateStore, owner: Owner, timeout_s: float, reporter: Reporter) -> Iterator[Lock]:
    lock = _acquire(store, owner, timeout_s, reporter)
    try:
        yield lock
    finally:
        # A store that has failed cannot take the lock back either; the lock then expires by itself.
        with contextlib.suppress(StoreError):
            store.release(lock)
        store.close()


def _acquire(store: StateStore, owner: Owner, timeout_s: float, reporter: Reporter) -> Lock:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            lock, broken = store.acquire(owner, time.time())
        except LockHeld:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOCK_POLL_S)
            continue
        if broken is not None:
            who = f"{broken.owner.person}@{broken.owner.host} ({broken.owner.verb})"
            reporter.notice(f"broke the abandoned lock {broken.id} of {who}")
        return lock


async def _apply(
    workspace: Workspace,
    plan: Plan,
    desired_digest: str | None,
    state: State,
    lock: Lock,
    reporter: Reporter,
    attend: Attend,
) -> Stale | Finished:
    live, stale = await _look(workspace, plan, desired_digest, state)
    if stale is not None:
        return stale
    world = World(
        store=workspace.store,
        providers=workspace.providers(state),
        table_path=workspace.table_path,
        router=ControlSocket(workspace.control_path),
        new_id=lambda: uuid.uuid4().hex[:16],
    )
    executor = Executor(world, state, lock, reporter)
    async with _heartbeat(workspace.store, lock, executor):
        finished = await attend(executor, plan, live, reporter)
        if finished.outcome.complete:
            try:
                await routed(workspace, executor.state)
            except PermanentError as error:
                finished.outcome.failed["routing table"] = str(Diagnostic(error.code, error.what, error.fix))
        return finished


async def routed(workspace: Workspace, state: State) -> None:
    """Return once a running router routes as `state` has it. Raises PermanentError when it does not: an
    earlier apply published what the router refuses, and no step of this one has met it again."""
    await ControlSocket(workspace.control_path).adopted(state.table_serial)


async def _look(
    workspace: Workspace, plan: Plan, desired_digest: str | None, state: State
) -> tuple[Live, Stale | None]:
    """What is live now, and why the plan may not be applied to it, if it may not."""
    providers = workspace.providers(state)
    version = read_version(workspace.table_path, state.lineage)
    live = await refresh(providers, state.lineage, state, version)
    hosts = await survey_hosts(providers, providers, state.lineage) if relies_on_hosts(plan) else {}
    reasons = moved(plan, state, live, desired_digest, Surroundings(hosts))
    if not reasons:
        return live, None
    # Serials of another lineage count other writes.
    journal = workspace.store.journal(plan.serial) if plan.lineage == state.lineage else []
    return live, Stale(tuple(reasons), tuple(journal))


async def _run_until_signal(executor: Executor, plan: Plan, live: Live, reporter: Reporter) -> Finished:
    """The first signal lets what is in flight finish; the second ends everything at once. The intents in the
    state cover even that."""
    run = asyncio.ensure_future(executor.run(plan, live))
    got: list[int] = []

    def on_signal(number: int) -> None:
        got.append(number)
        if len(got) == 1:
            reporter.notice("stopping once what is in flight is done; a second signal ends it at once")
            executor.stop()
        else:
            run.cancel()

    with signals.handled(on_signal):
        try:
            outcome = await run
        except asyncio.CancelledError:
            if not got:
                raise
            outcome = executor.outcome
            outcome.interrupted = True
    return Finished(outcome, got[0] if got else 0)


@asynccontextmanager
async def _heartbeat(store: StateStore, lock: Lock, executor: Executor) -> AsyncIterator[None]:
    """Renew the lock while the body runs. Where it is lost, the executor's next write would be refused
    anyway; this only keeps it from starting further effects."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            # A busy or failing disk costs this beat; six in a row make the lock expire.
            with contextlib.suppress(StoreError):
                if not store.renew(lock, time.time()):
                    executor.lose()
                    return

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
