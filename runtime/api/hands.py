"""The API's hands: one plan at a time is made and carried out, whoever asks.

Waiting is done elsewhere and without the lock, so a model that loads for minutes keeps nobody waiting. While
somebody else holds the lock, an apply on the command line for instance, the plan is made anew after it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from servestate.planner.live import Live
from servestate.planner.match import settle
from servestate.planner.plan import Plan, make_plan
from servestate.planner.resolve import Resolved
from servestate.planner.state import State
from servestate.runtime.apply import Attend, Finished, Stale, carry_out
from servestate.runtime.executor import Executor, Outcome
from servestate.runtime.look import look_around, pull_policy, state_of
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import LockHeld, Owner, StateStore
from servestate.runtime.workspace import Workspace, is_gone, owner_of_this_process

POLL_S = 0.1
"""How often a lock that somebody holds is asked for again."""


class Busy(Exception):
    """Somebody else holds the lock, or writes all the time; nothing was done."""


class Interrupted(Exception):
    """Whoever asked does not want it any more."""


class Interrupt:
    """Ends early what is going on on somebody's behalf: a wait at once, a plan after what is in flight. Any
    thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._set = False

    @property
    def is_set(self) -> bool:
        """Whether it was asked for and not yet cleared."""
        return self._set

    def set(self) -> None:
        """Ask for an end."""
        with self._lock:  # also while it is called: its loop is closed once nobody is to be told any more
            self._set = True
            if self._stop is not None:
                self._stop()

    def clear(self) -> None:
        """Start afresh."""
        with self._lock:
            self._set = False

    def watch(self, stop: Callable[[], object] | None) -> None:
        """What to call from now on; it is called at once where an end was asked for already."""
        with self._lock:
            self._stop = stop
            if self._set and stop is not None:
                stop()


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what it was made from."""

    plan: Plan
    state: State
    live: Live
    workspace: Workspace


class Hands:
    """Makes plans and carries them out, one at a time within this process. `open_site` gives the workspace as
    it is configured now."""

    def __init__(self, open_site: Callable[[], Workspace]) -> None:
        self._open = open_site
        self._lock = threading.Lock()

    def workspace(self) -> Workspace:
        """The workspace as it is configured now."""
        return self._open()

    def plan(
        self,
        goal: Callable[[State, Workspace], Resolved],
        scope: frozenset[str] | None,
        *,
        destroy: bool = False,
        pull: str | None = None,
    ) -> Planned:
        """A plan for the goal, which is told the state. `pull` is the policy for images, the site's where it
        is None. Raises InvalidInput, StoreError, TransientError, PermanentError."""
        workspace = self._open()
        state = state_of(workspace)
        desired = goal(state, workspace)
        live, surroundings = asyncio.run(look_around(workspace, desired, state, pull_policy(workspace, pull)))
        plan = make_plan(desired, state, live, surroundings, destroy=destroy, scope=scope)
        return Planned(plan, state, live, workspace)

    def do(
        self,
        make: Callable[[], tuple[Planned, Plan]],
        by: str,
        interrupt: Interrupt,
        patience_s: float,
        reporter: Reporter | None = None,
    ) -> tuple[Planned, Plan, Outcome]:
        """Make a plan and carry it out: `make` gives what was planned and the part of it to do now. It is
        called again where the world has moved in between. What a crash left unrecorded is recorded, also
        where there is nothing else to do. Raises Busy after `patience_s`, Interrupted, StoreError, and what
        `make` raises."""
        deadline = time.monotonic() + patience_s
        while True:
            if interrupt.is_set:
                raise Interrupted
            if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise Busy
            try:
                planned, now = make()
                if not now.nodes and not any(settle(planned.state, planned.live)):
                    return planned, now, Outcome()
                done = self._once(planned, now, by, interrupt, reporter or Reporter())
            finally:
                self._lock.release()
            if done is not None:
                return planned, now, done.outcome
            _await_lock(planned.workspace.store, interrupt, deadline)

    def _once(
        self, planned: Planned, plan: Plan, by: str, interrupt: Interrupt, reporter: Reporter
    ) -> Finished | None:
        """What came of it; None where somebody else was there."""
        owner = replace(owner_of_this_process("api"), person=by)
        try:
            result = carry_out(planned.workspace, plan, None, owner, reporter, 0.0, _until(interrupt))
        except LockHeld:
            return None
        return None if isinstance(result, Stale) else result

    def apply(
        self,
        plan: Plan,
        desired_digest: str | None,
        owner: Owner,
        interrupt: Interrupt,
        patience_s: float,
        reporter: Reporter,
    ) -> Finished | Stale:
        """Carry out a plan that somebody has seen, if the world is still the one it was made against. It
        takes as long as its models load, so only the lock of the state keeps others away meanwhile, who then
        hear that somebody holds it. Raises LockHeld after `patience_s`, Interrupted, and what `carry_out`
        raises."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return carry_out(self._open(), plan, desired_digest, owner, reporter, 0.0, _until(interrupt))
            except LockHeld:
                if time.monotonic() >= deadline:
                    raise
            if interrupt.is_set:
                raise Interrupted
            time.sleep(POLL_S)


def _await_lock(store: StateStore, interrupt: Interrupt, deadline: float) -> None:
    """Return once nobody holds the lock, or on an interrupt. Only the lock is looked at: a plan of many
    endpoints, made anew ten times a second, would take a core from whoever applies. Raises Busy."""
    while not interrupt.is_set:
        if time.monotonic() >= deadline:
            raise Busy
        time.sleep(POLL_S)
        held = store.held()
        if held is None or held.is_free(time.time(), is_gone):
            return


def _until(interrupt: Interrupt) -> Attend:
    """Runs an executor to its end, or until the interrupt."""

    async def attend(executor: Executor, plan: Plan, live: Live, _: Reporter) -> Finished:
        loop = asyncio.get_running_loop()
        interrupt.watch(lambda: loop.call_soon_threadsafe(executor.stop))
        try:
            return Finished(await executor.run(plan, live))
        finally:
            interrupt.watch(None)

    return attend
