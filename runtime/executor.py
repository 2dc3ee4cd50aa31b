"""Walks the step graph: intent committed before every effect, result after it. The one owner of State.

Steps run as tasks, as many at once as their needs allow; what they record goes through one commit at a time,
and whatever waits together is committed together. A crash at any moment leaves either an intent, which the
next apply settles by looking for the marks, or a result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, assert_never

from servestate.planner import state as state_events
from servestate.planner.address import InstanceAddress
from servestate.planner.diagnostics import Diagnostic
from servestate.planner.graph import Graph, build
from servestate.planner.launch import Spec
from servestate.planner.live import Live
from servestate.planner.match import settle
from servestate.planner.plan import Plan
from servestate.planner.plural import counted
from servestate.planner.stamp import Stamp
from servestate.planner.state import (
    BecameReady,
    DrainBegan,
    Event,
    Forgotten,
    IllegalEvent,
    Instance,
    LaunchFailed,
    LaunchIntended,
    Phase,
    Published,
    Registered,
    State,
    StopIntended,
    Stopped,
    StrayStopIntended,
    TableRewriteIntended,
    Withdrawn,
    apply_event,
)
from servestate.planner.steps import (
    AwaitReady,
    Drain,
    Forget,
    Launch,
    Node,
    PublishTable,
    Pull,
    Register,
    RewriteTable,
    Step,
    Stop,
    Withdraw,
)
from servestate.planner.table_build import build_table
from servestate.providers.protocol import (
    ImageKeeper,
    Launched,
    Marks,
    PermanentError,
    Provider,
    TransientError,
)
from servestate.providers.readiness import await_ready
from servestate.runtime.failpoints import reach
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import Lock, LostLock, StateStore, StoreError
from servestate.runtime.table_file import write_table

PARALLEL_EFFECTS = 10
"""How many launches and stops run at once."""

LAUNCH_ATTEMPTS = 3
"""How often a launch is tried while the provider says that the error may go away."""


_Waiting = tuple[Event, asyncio.Future[None]]
"""An event, and the step that waits until it is committed."""


class RouterLink(Protocol):
    """What the router tells. Where no router runs there is nothing to wait for."""

    async def adopted(self, table_version: int) -> None:
        """Return once the router routes by that version or a later one. Raises PermanentError when it
        refuses the table or does not answer in time: what the old table leads to must then stay."""

    async def drained(
        self, address: InstanceAddress, timeout_s: float, report: Callable[[str], None]
    ) -> None:
        """Return once nothing is in flight on the instance, or `timeout_s` is over."""


class StepFailed(Exception):
    """A step could not be done; the message says why and what to do."""


@dataclass(slots=True)
class Outcome:
    """What became of each step, by id. `lost` holds why writing state became impossible, empty otherwise."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    lost: Exception | None = None

    @property
    def complete(self) -> bool:
        """Whether every step was done."""
        return not (self.failed or self.skipped or self.lost or self.interrupted)


@dataclass(frozen=True, slots=True)
class World:
    """All that the executor touches. `new_id` mints ids of intents, `clock` is seconds since the epoch."""

    store: StateStore
    providers: Mapping[str, Provider]
    table_path: Path
    router: RouterLink
    new_id: Callable[[], str]
    clock: Callable[[], float] = time.time


class Executor:
    """Carries out one plan against one state, under a lock that is already held."""

    def __init__(self, world: World, state: State, lock: Lock, reporter: Reporter) -> None:
        self.state = state
        self._world = world
        self._lock = lock
        self._reporter = reporter
        self._effects = asyncio.Semaphore(PARALLEL_EFFECTS)
        self._pending: list[_Waiting] = []
        self.outcome = Outcome()
        self._waits: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._table_written = -1
        self._adopting: dict[int, asyncio.Future[None]] = {}
        self._abandoned: set[str] = set()

    async def run(self, plan: Plan, live: Live) -> Outcome:
        """Record what a crash left unrecorded, then do the steps. Never raises for what a step or the store
        does; everything that happened is in the outcome."""
        try:
            recovered = list(settle(self.state, live))
            if recovered:
                self._reporter.notice(f"recorded {counted(len(recovered), 'result')} of an interrupted apply")
                self._commit(recovered)
            await self._walk(build(plan.nodes))
        except (LostLock, StoreError) as error:
            self.outcome.lost = error
        return self.outcome

    def stop(self) -> None:
        """Start no further step and cut short what only waits; what is in flight finishes."""
        self._stopping = True
        self.outcome.interrupted = True
        self._cut_waits()

    def lose(self) -> None:
        """As `stop`, because the lock is lost: the next write would be refused."""
        self.outcome.lost = self.outcome.lost or LostLock()
        self._cut_waits()

    def _cut_waits(self) -> None:
        for task in self._waits:
            task.cancel()

    async def _walk(self, graph: Graph) -> None:
        missing = {id: len(node.needs) + len(node.after) for id, node in graph.nodes.items()}
        running: dict[asyncio.Task[None], str] = {}
        # One end at a time, in the order they came: the same run gives the same order of effects.
        ended: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
        ready = [id for id, n in missing.items() if n == 0]
        while ready or running:
            for id in ready:
                self._start(graph, id, running, ended)
            ready = []
            if not running:
                break
            task = await ended.get()
            id = running.pop(task)
            for waiting in self._released(graph, id, self._settle_task(graph, id, task)):
                missing[waiting] -= 1
                if not missing[waiting]:
                    ready.append(waiting)
        self._skip_rest(graph)

    def _released(self, graph: Graph, id: str, done: bool) -> Iterator[str]:
        """What waited for the end of this step: also those that only come after it, or after one that will
        never be started now."""
        yield from graph.followers.get(id, ())
        if done:
            yield from graph.dependents.get(id, ())
            return
        for skipped in graph.downstream(id):
            if self._ends_now(skipped):
                yield from graph.followers.get(skipped, ())

    def _ends_now(self, id: str) -> bool:
        """Whether a step that will not be started is told so for the first time."""
        if id in self._abandoned:
            return False
        self._abandoned.add(id)
        return True

    def _start(
        self,
        graph: Graph,
        id: str,
        running: dict[asyncio.Task[None], str],
        ended: asyncio.Queue[asyncio.Task[None]],
    ) -> None:
        if self._stopping or self.outcome.lost or id in self.outcome.skipped:
            return
        node = graph.nodes[id]
        self._reporter.step_started(node)
        task = asyncio.create_task(self._timed(node))
        task.add_done_callback(ended.put_nowait)
        running[task] = id
        if isinstance(node.step, AwaitReady | Drain | Pull):  # a pull that is cut goes on where it was
            self._waits.add(task)
            task.add_done_callback(self._waits.discard)

    async def _timed(self, node: Node) -> None:
        began = time.monotonic()
        try:
            await self._do(node)
        except (StepFailed, PermanentError, TransientError, IllegalEvent, OSError) as error:
            why = _explain(error)
            self._reporter.step_failed(node, why, time.monotonic() - began)
            raise StepFailed(why) from error
        self._reporter.step_done(node, time.monotonic() - began)

    def _settle_task(self, graph: Graph, id: str, task: asyncio.Task[None]) -> bool:
        """Book the end of a step; whether what needs it may go on."""
        if task.cancelled():
            return False
        error = task.exception()
        if error is None:
            self.outcome.done.append(id)
            return True
        if isinstance(error, LostLock | StoreError):
            self.outcome.lost = self.outcome.lost or error
            return False
        if not isinstance(error, StepFailed):
            raise error
        self.outcome.failed[id] = str(error)
        for dependent in graph.downstream(id):
            if dependent not in self.outcome.skipped:
                self.outcome.skipped[dependent] = f"dependency failed: {id}"
                self._reporter.step_skipped(graph.nodes[dependent], f"dependency failed: {id}")
        return False

    def _skip_rest(self, graph: Graph) -> None:
        accounted = {*self.outcome.done, *self.outcome.failed, *self.outcome.skipped}
        because = "the state could not be written" if self.outcome.lost else "interrupted"
        for id, node in graph.nodes.items():
            if id not in accounted:
                self.outcome.skipped[id] = because
                self._reporter.step_skipped(node, because)

    async def _do(self, node: Node) -> None:
        step: Step = node.step
        match step:
            case Pull():
                await self._pull(node, step)
            case Launch():
                await self._launch(step)
            case Register():
                await self._register(step)
            case AwaitReady():
                await self._await_ready(node, step)
            case PublishTable():
                await self._publish(step)
            case Withdraw(endpoint):
                reach("withdraw.before_intent")
                await self._record(Withdrawn(endpoint))
                await self._write_table("withdraw")
            case RewriteTable():
                await self._record(TableRewriteIntended())
                await self._write_table("rewrite")
            case Drain():
                await self._drain(node, step)
            case Stop():
                await self._stop(step)
            case Forget(address):
                reach("forget.before_intent")
                await self._record(Forgotten(address))
                reach("forget.after_result")
            case _:
                assert_never(step)

    async def _pull(self, node: Node, step: Pull) -> None:
        """An image is no instance: nothing is recorded, and a second pull of it finds it there."""
        provider = self._world.providers[step.provider]
        assert isinstance(provider, ImageKeeper), "a plan pulls for what runs images only"
        reach("pull.before_effect")
        await provider.pull(
            step.host, step.image, step.digest, lambda text: self._reporter.step_progress(node, text)
        )
        reach("pull.after_effect")

    async def _launch(self, step: Launch) -> None:
        op = self._world.new_id()
        provider = self._provider(step.spec)

        async def launch() -> Launched:
            # The intent again before every try: who has lost the lock since the last one must stop here.
            reach("launch.before_intent")
            await self._record(
                LaunchIntended(
                    step.address, step.spec, op, step.drain_timeout_s, step.stop_grace_s, step.placement
                )
            )
            reach("launch.after_intent")
            marks = Marks(self.state.lineage, step.address, self.state.serial, op, step.placement)
            return await provider.launch(step.spec, marks)

        async with self._effects:
            try:
                launched = await _retrying(launch)
            except (PermanentError, TransientError, OSError) as error:
                await self._record(LaunchFailed(step.address, _explain(error)))
                raise
            reach("launch.after_effect")
            await self._record(
                state_events.Launched(step.address, launched.handle, launched.url, launched.fields)
            )
            reach("launch.after_result")

    async def _register(self, step: Register) -> None:
        reach("register.before_intent")
        marks = Marks(self.state.lineage, step.address, self.state.serial, self._world.new_id())
        launched = await self._provider(step.spec).launch(step.spec, marks)
        reach("register.after_effect")
        await self._record(Registered(step.address, step.spec, launched.handle, launched.url))
        reach("register.after_result")

    async def _await_ready(self, node: Node, step: AwaitReady) -> None:
        instance = self._instance(step.address)
        provider = self._provider(instance.spec)

        def report(text: str) -> None:
            self._reporter.step_progress(node, text)

        try:
            await await_ready(provider, instance.handle, instance.spec, step.timeout_s, report)
        except (PermanentError, TransientError) as error:
            # Recorded first: if we die before the stop, the next apply finds it failed and stops it.
            await self._record(LaunchFailed(step.address, _explain(error)))
            reach("ready.after_failure")
            await provider.stop(instance.handle, 0)
            raise
        reach("ready.after_effect")
        await self._record(BecameReady(step.address))
        reach("ready.after_result")

    async def _publish(self, step: PublishTable) -> None:
        addresses = [address for target in step.record.targets for address in target.instances]
        unready = [a for a in addresses if self._instance(a).phase is not Phase.READY]
        if unready:
            raise StepFailed(f"not published: {', '.join(map(str, unready))} is not ready")
        reach("publish.before_intent")
        await self._record(Published(step.record, self._stamp()))
        reach("publish.after_intent")
        await self._write_table("publish")

    async def _write_table(self, point: str) -> None:
        """Write the table as state has it. Several publishes that were committed together write it once:
        the first to get here writes for all of them."""
        if self._table_written != self.state.table_serial or point == "rewrite":
            write_table(self._world.table_path, build_table(self.state))
            self._table_written = self.state.table_serial
        reach(f"{point}.after_effect")
        await self._adopted(self._table_written)

    async def _adopted(self, version: int) -> None:
        """Return once the router routes by that version. All who wait for the same one ask together: a router
        that is asked by a thousand publishes at once has no time left to adopt anything."""
        known = self._adopting.get(version)
        if known is None:
            known = asyncio.ensure_future(self._world.router.adopted(version))
            self._adopting = {version: known}  # who waits for an older one holds that by itself
        await asyncio.shield(known)

    async def _drain(self, node: Node, step: Drain) -> None:
        reach("drain.before_intent")
        await self._record(DrainBegan(step.address))
        reach("drain.after_intent")

        def report(text: str) -> None:
            self._reporter.step_progress(node, text)

        await self._world.router.adopted(self.state.table_serial)
        await self._world.router.drained(step.address, step.timeout_s, report)
        reach("drain.after_effect")

    async def _stop(self, step: Stop) -> None:
        recorded = self.state.instances.get(step.address)
        ours = recorded is not None and recorded.handle == step.handle
        async with self._effects:
            reach("stop.before_intent")
            if ours:
                self._check_unrouted(step.address)
                await self._record(StopIntended(step.address, self._world.new_id()))
            else:
                await self._record(StrayStopIntended(step.address, step.handle))
            reach("stop.after_intent")
            if step.handle:
                await self._world.providers[step.provider].stop(step.handle, step.grace_s)
            reach("stop.after_effect")
            if ours:
                await self._record(Stopped(step.address))
            reach("stop.after_result")

    def _check_unrouted(self, address: InstanceAddress) -> None:
        """No plan stops what a route leads to; if one ever did, this is where it ends."""
        record = self.state.endpoints.get(address.endpoint)
        if record and any(address in target.instances for target in record.targets):
            raise StepFailed(f"not stopped: requests are still routed to {address}")

    def _stamp(self) -> Stamp:
        owner = self._lock.owner
        return Stamp(owner.person, self._world.clock(), owner.verb)

    def _provider(self, spec: Spec) -> Provider:
        return self._world.providers[spec.provider]

    def _instance(self, address: InstanceAddress) -> Instance:
        instance = self.state.instances.get(address)
        if instance is None:
            raise StepFailed(f"{address} is not in state")
        return instance

    async def _record(self, event: Event) -> None:
        """Commit one event. Events of steps that wait at the same time share a transaction."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((event, done))
        if len(self._pending) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        await done

    def _flush(self) -> None:
        batch, self._pending = self._pending, []
        try:
            if self.outcome.lost:
                raise self.outcome.lost
            batch = self._commit_legal(batch)
        except (LostLock, StoreError) as error:
            self.outcome.lost = error
            _fail(batch, error)
            return
        for _, done in batch:
            if not done.done():
                done.set_result(None)

    def _commit_legal(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Commit what the state machine allows and return it. A step with an event that it does not allow
        fails, and only that one: the others wait at the same time by chance."""
        try:
            self._commit([event for event, _ in batch])
            return batch
        except IllegalEvent:
            legal = self._legal(batch)
        if legal:
            self._commit([event for event, _ in legal])
        return legal

    def _legal(self, batch: list[_Waiting]) -> list[_Waiting]:
        state, legal = self.state, []
        for waiting in batch:
            try:
                state = apply_event(state, waiting[0])
            except IllegalEvent as error:
                _fail([waiting], error)
            else:
                legal.append(waiting)
        return legal

    def _commit(self, events: list[Event]) -> None:
        self.state = self._world.store.commit(self.state, events, self._lock, self._world.clock())


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, done in batch:
        if not done.done():
            done.set_exception(error)


async def _retrying(launch: Callable[[], Awaitable[Launched]]) -> Launched:
    """Launch, again after what may go away by itself; the same address twice starts one instance."""
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(LAUNCH_ATTEMPTS),
        wait=wait_exponential(multiplier=0.2, max=5.0),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            launched = await launch()
    return launched


def _explain(error: Exception) -> str:
    """What went wrong, for people and for state: never holds a secret, since no error of ours does."""
    match error:
        case PermanentError():
            return str(Diagnostic(error.code, error.what, error.fix))
        case IllegalEvent():
            what, fix = f"the state does not allow this step: {error}", "see what is left: servestate plan"
            return str(Diagnostic("SS413", what, fix))
        case OSError():
            return str(
                Diagnostic("SS410", f"cannot write the routing table: {error}", "free space, apply again")
            )
        case _:
            return str(error)
