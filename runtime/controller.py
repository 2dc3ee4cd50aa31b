"""The daemon's loop: notice what has died under a route, and bring it back through the same plan and executor
as everybody else.

    python -P -m servestate.runtime.controller ROOT      with an `Order` on standard input

It replaces what is gone or has exited, and nothing else: see `planner/repair.py`. A repair takes the lock
twice and holds it for moments: once to launch the replacement, once, when that is ready, to move the routes
and to clear away the dead. In between it waits for readiness without the lock, so a model that loads for
minutes keeps neither another repair nor anybody's apply waiting; an apply in between finds the replacement by
the state, and goes on with it. Each entity has a backoff of its own. Whoever holds the lock is left alone.

Signals are waited for as in apply: the first one lets what is in flight finish. The kernel sends one when the
process that started this one has died.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from servestate.planner.address import EntityAddress, parse_address
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.live import Live
from servestate.planner.owners import REPAIR_VERB
from servestate.planner.plan import Plan, settled_state
from servestate.planner.recorded import ready_timeout_s
from servestate.planner.repair import (
    Refused,
    Served,
    by_owner,
    entity_of,
    find_served,
    launches,
    plan_repair,
    to_survey,
    until_ready,
    up_to_launch,
)
from servestate.planner.spec.site import DockerProvider, Site
from servestate.planner.state import Instance, State
from servestate.planner.steps import Node
from servestate.planner.surroundings import Surroundings
from servestate.providers import identity
from servestate.providers.protocol import Failed, PermanentError, Provider, TransientError
from servestate.providers.readiness import await_ready
from servestate.runtime.apply import Stale, carry_out
from servestate.runtime.backoff import Backoff
from servestate.runtime.executor import Outcome
from servestate.runtime.order import decode_order, dies_with
from servestate.runtime.reporter import Reporter
from servestate.runtime.sight import LOOK_S, Sight
from servestate.runtime.store.protocol import LockHeld, StoreError
from servestate.runtime.supervision import (
    HEARTBEAT_S,
    Supervised,
    Supervision,
    describe_supervised,
    read_supervision,
    supervision_path,
    write_supervision,
)
from servestate.runtime.survey import survey
from servestate.runtime.table_file import read_version
from servestate.runtime.workspace import Workspace, open_workspace, owner_of_this_process

REASON_S = 5.0
"""How long the provider of something dead may take to say why it died."""

SURVEY_S = 20.0
"""How long hosts and registries may take to answer before a repair is planned; others are not looked after
for so long."""

FINISH_S = 30.0
"""How long a replacement that has just proved ready may take to prove it once more, under the lock."""

LAST_LOOK_S = 1.0
"""The same for one that has failed or run out of time: only to have that recorded."""

Tell = Callable[[str, str], None]
"""Takes what a line is about, an address or a provider, and what there is to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reachable(Workspace):
    """The workspace, with stand-ins for the providers that a repair of others must not wait for."""

    whole: Workspace
    stand_ins: Mapping[str, Provider]

    def providers(self, state: State) -> Mapping[str, Provider]:
        """See `Workspace.providers`."""
        return {**self.whole.providers(state), **self.stand_ins}


class _Beats(Reporter):
    """Gives a sign of life whenever a repair gets on."""

    def __init__(self, beat: Callable[[], None], tell: Tell) -> None:
        self._beat = beat
        self._tell = tell

    def notice(self, text: str) -> None:
        """See `Reporter`."""
        self._tell("state", text)

    def step_started(self, node: Node) -> None:
        """See `Reporter`."""
        self._beat()

    def step_progress(self, node: Node, text: str) -> None:
        """See `Reporter`."""
        self._beat()

    def step_done(self, node: Node, elapsed_s: float) -> None:
        """See `Reporter`."""
        self._beat()


@dataclass(slots=True)
class _Due:
    """What one look has found to do: entities to start again, and those whose replacement's fate is known,
    each with why it failed, "" where it is ready. `state` and `live` are what it was found in."""

    state: State
    live: Live
    start: list[Served] = field(default_factory=list)
    finish: list[tuple[Served, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Repair:
    """One plan to carry out, made in `state`: it takes in the replacement of `finishes`, which failed because
    of `why`, "" where it is ready; or it launches replacements, where `finishes` is None."""

    plan: Plan
    state: State
    finishes: EntityAddress | None = None
    why: str = ""


class Controller:
    """Supervises one site. `clock` is seconds since the epoch, which the status file is in; `monotonic` is
    seconds of a clock that nobody sets; `random` gives numbers from 0 to 1."""

    def __init__(
        self,
        workspace: Workspace,
        tell: Tell,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._workspace = workspace
        self._tell = tell
        self._clock = clock
        self._monotonic = monotonic
        self._random = random
        self._sight = Sight(_hosts(workspace.site), tell, monotonic)
        self._path = supervision_path(workspace)
        self._entities = _remembered(read_supervision(self._path))
        self._me = str(identity.identify(os.getpid()))
        self._loading: dict[EntityAddress, tuple[str, asyncio.Task[str]]] = {}
        self._written: tuple[Supervision | None, float] = (None, 0.0)
        self._complaints: dict[str, str] = {}
        self.stopping = False

    def run(self) -> None:
        """Supervise until `stopping`."""
        with asyncio.Runner() as runner:
            while not self.stopping:
                repair = runner.run(self._next_repair())
                if repair is not None and not self.carry_out(repair):
                    runner.run(asyncio.sleep(LOOK_S))

    async def _next_repair(self) -> _Repair | None:
        """Look on until there is something to do; None when `stopping`."""
        while not self.stopping:
            due = await self.look()
            self._write()
            if due is not None and (repair := await self.choose(due)) is not None:
                return None if self.stopping else repair
            await self._wait(due)
        return None

    async def look(self) -> _Due | None:
        """See what is there, judge it, say what is to be done; None where nothing can be told."""
        try:
            due = await self._look()
        except StoreError as error:
            self._complain("state", str(error))
            return None
        self._complain("state", "")
        return due

    async def _look(self) -> _Due | None:
        state = self._workspace.store.read()
        if state is None:
            self._entities.clear()
            return None
        if not {i.spec.provider for i in state.instances.values()} <= self._sight.providers.keys():
            self._sight.add(self._workspace.providers(state))
        live = await self._sight.look(state, read_version(self._workspace.table_path, state.lineage))
        due = _Due(state, live)
        unseen = self._sight.unseen(state)
        self._tell_elsewhere(self._sight.elsewhere(state))
        served = find_served(settled_state(state, live), live, unseen)
        self._forget_others({one.address for one in served})
        for one in served:
            if not {i.address for i in (*one.routed, *_some(one.starting))} & unseen:
                await self._judge(one, due)
        return due

    def _tell_elsewhere(self, places: Sequence[str]) -> None:
        """Say once that the site which this process was started with is not the one that was applied."""
        where = f"nothing is looked after on {', '.join(places)}: not in the site that serve has read"
        self._complain("site", where if places else "")

    def _forget_others(self, served: set[EntityAddress]) -> None:
        for address in [a for a in self._entities if a not in served]:
            del self._entities[address]
        for address in [a for a in self._loading if a not in served]:
            self._loading.pop(address)[1].cancel()

    async def _judge(self, one: Served, due: _Due) -> None:
        """Book what one entity does, and put it among what is due."""
        now = self._clock()
        entry = self._entities.get(one.address)
        if one.dead or (entry is not None and not one.routed and entry.backoff.healthy_since is None):
            await self._judge_down(one, entry, due, now)
        elif one.routed:
            self._judge_up(one, entry, now)

    def _judge_up(self, one: Served, entry: Supervised | None, now: float) -> None:
        if waiting := self._loading.pop(one.address, None):
            waiting[1].cancel()
        if entry is None:
            self._entities[one.address] = Supervised(Backoff(healthy_since=now), now)
            return
        was_down = entry.backoff.healthy_since is None
        if was_down:
            self._tell(str(one.address), f"up again after {now - entry.since:.1f} s")
        backoff = entry.backoff.healthy(now)
        since = now if was_down else entry.since
        self._entities[one.address] = replace(entry, backoff=backoff, since=since)

    async def _judge_down(self, one: Served, entry: Supervised | None, due: _Due, now: float) -> None:
        if entry is None or entry.backoff.healthy_since is not None:
            if self._has_moved(due.state):
                return  # somebody is at work, and may well have stopped it
            reason = await self._reason(one, due.live)
            self._fail(one.address, entry or Supervised(Backoff(), now), reason, now)
            return
        if one.starting is not None:
            why = self._fate(one, one.starting, due.state)
            if why is not None and (entry.backoff.next_try is None or entry.backoff.due(now)):
                due.finish.append((one, why))
        elif entry.backoff.due(now):
            due.start.append(one)
        elif entry.backoff.next_try is None:  # its restart was interrupted before it had any effect
            self._fail(one.address, entry, entry.reason, now)

    def _has_moved(self, state: State) -> bool:
        now = self._workspace.store.read()
        return now is None or now.serial != state.serial

    def _fail(self, address: EntityAddress, entry: Supervised, reason: str, now: float) -> None:
        """Book a death, or a restart that failed."""
        backoff = entry.backoff.failed(now, self._random)
        since = now if entry.backoff.healthy_since is not None else entry.since
        failed = Supervised(backoff, since, reason)
        self._entities[address] = failed
        self._tell(str(address), describe_supervised(failed, now))

    async def _reason(self, one: Served, live: Live) -> str:
        """Why it has ended, with the last lines of its log, as its provider tells and masks them."""
        dead = one.dead[0]
        seen = live.instances.get(dead.address)
        told = seen.why if seen is not None and seen.why else "it is gone"
        self._beat()
        try:
            async with asyncio.timeout(REASON_S):
                found = await self._sight.providers[dead.spec.provider].probe(dead.handle, dead.spec)
        except (TransientError, PermanentError, TimeoutError):
            return told
        return found.why if isinstance(found, Failed) else told

    def _fate(self, one: Served, starting: Instance, state: State) -> str | None:
        """Why the replacement failed, "" where it is ready, None while it loads."""
        handle, task = self._loading.get(one.address, ("", None))
        if task is None or handle != starting.handle:
            if task is not None:
                task.cancel()
            record = state.endpoints[one.address.endpoint]
            timeout_s = ready_timeout_s(self._workspace.site, record, one.address.entity)
            provider = self._sight.providers[starting.spec.provider]
            task = asyncio.create_task(_loaded(provider, starting, timeout_s))
            self._loading[one.address] = (starting.handle, task)
        return task.result() if task.done() else None

    async def choose(self, due: _Due) -> _Repair | None:
        """The one repair to do next. What waits for a slow provider comes after what does not."""
        used = {
            one.address: _used(due.state, one.address)
            for one in (*(one for one, _ in due.finish), *due.start)
        }
        at_once = {a for a, names in used.items() if names.isdisjoint(self._sight.unreachable)}
        repair = await self._choose(due, at_once)
        if repair is not None or at_once == used.keys():
            return repair
        self._beat()
        await self._sight.settle(set().union(*used.values()))
        # A provider that a repair uses is never stood in for: it would have failed for nothing.
        late = {a for a, names in used.items() if names.isdisjoint(self._sight.unreachable)}
        return await self._choose(due, late - at_once)

    async def _choose(self, due: _Due, among: Collection[EntityAddress]) -> _Repair | None:
        """A replacement to take in, else what is to be started, all at once where there is a plan for all.
        What has no plan keeps nothing else waiting."""
        for one, why in due.finish:
            if one.address in among and (plan := await self._plan(due, [one])) is not None:
                timeout_s = LAST_LOOK_S if why else FINISH_S
                return _Repair(until_ready(plan, timeout_s), due.state, one.address, why)
        for group in by_owner([one for one in due.start if one.address in among]).values():
            for some in [group, *([one] for one in group if len(group) > 1)]:
                plan = await self._plan(due, some)
                # Without a launch, each waits for one that loads.
                if plan is not None and launches(plan := up_to_launch(plan)):
                    return _Repair(plan, due.state)
        return None

    async def _plan(self, due: _Due, group: Sequence[Served]) -> Plan | None:
        """The plan that repairs these, None where there is none. What alone has none has failed once more."""
        try:
            return plan_repair(due.state, due.live, group, await self._survey(due.state, group))
        except (Refused, InvalidInput, TransientError, PermanentError) as error:
            if len(group) == 1:
                self._refused(group[0].address, str(error))
            return None

    async def _survey(self, state: State, group: Sequence[Served]) -> Surroundings:
        """What a repair of the group has to know of the world. Raises TransientError where that takes too
        long."""
        workspace = self._workspace
        docker = workspace.site.providers.docker
        pull = "never" if docker is not None and docker.pull == "never" else "missing"
        self._beat()
        try:
            async with asyncio.timeout(SURVEY_S):
                return await survey(
                    to_survey(state, group),
                    state.lineage,
                    self._sight.providers,
                    workspace.secrets,
                    workspace.root,
                    pull,
                    estimates=False,
                )
        except TimeoutError:
            raise TransientError(
                f"its hosts or the registry have not said within {SURVEY_S:.0f} s what is there"
            ) from None

    def _refused(self, address: EntityAddress, why: str) -> None:
        """Book a restart for which there is no plan; it counts as one, so that the next is tried later."""
        entry = self._entities[address]
        self._fail(address, replace(entry, backoff=entry.backoff.restarted()), why, self._clock())

    def carry_out(self, repair: _Repair) -> bool:
        """Do a repair; whether it was begun, and the world may be another now."""
        before = dict(self._entities)
        for address in launches(repair.plan) if repair.finishes is None else ():
            entry = self._entities[address]
            self._entities[address] = replace(entry, backoff=entry.backoff.restarted())
            self._tell(str(address), f"restart {entry.backoff.restarts + 1}")
        self._write()  # before the effect: whoever takes over from this process goes on counting
        outcome = self._outcome(repair)
        if outcome is None:
            self._entities = before
            return False
        for address in {repair.finishes} if repair.finishes is not None else launches(repair.plan):
            self._loading.pop(address, None)
            if failed := _failure(outcome, repair.plan, address):
                self._fail(address, self._entities[address], repair.why or failed, self._clock())
        return True

    def _outcome(self, repair: _Repair) -> Outcome | None:
        """What came of a plan; None where it was not begun: somebody else is at work, or the world has moved
        on, and it is to be looked at again."""
        workspace = self._workspace
        reachable = _Reachable(
            workspace.root,
            workspace.folder,
            workspace.site,
            workspace.store,
            workspace.prefix,
            whole=workspace,
            stand_ins=self._sight.stand_ins(repair.state),
        )
        reporter = _Beats(self._beat, self._tell)
        try:
            result = carry_out(
                reachable, repair.plan, None, owner_of_this_process(REPAIR_VERB), reporter, 0.0
            )
        except LockHeld as held:
            owner = held.lock.owner
            self._complain(
                "lock", f"a repair waits for the lock of {owner.person}@{owner.host} ({owner.verb})"
            )
            return None
        except (StoreError, TransientError, PermanentError) as error:
            self._complain("repair", str(error))
            return None
        finally:
            self.hear_signals()
        for about in ("lock", "repair"):
            self._complaints.pop(about, None)
        if isinstance(result, Stale):
            return None
        self.stopping = self.stopping or bool(result.signal)
        return result.outcome

    async def _wait(self, due: _Due | None) -> None:
        """Return when it is time to look again."""
        pending: set[asyncio.Task[object]] = set()
        if due is not None:
            pending |= self._sight.pending(due.state.lineage)
            pending |= {task for _, task in self._loading.values() if not task.done()}
        now = self._clock()
        tries = [e.backoff.next_try for e in self._entities.values() if e.backoff.next_try is not None]
        timeout = min([LOOK_S, *(t - now for t in tries if t > now)])
        if pending:
            await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(timeout)

    def _complain(self, about: str, text: str) -> None:
        """Say once what keeps supervision from its work, and once that it no longer does, which is ""."""
        if text != self._complaints.get(about, ""):
            self._tell(about, text.partition("\n")[0] or "all is well again")
        self._complaints[about] = text

    def _beat(self) -> None:
        if self._monotonic() - self._written[1] >= HEARTBEAT_S:
            self._write()

    def _write(self) -> None:
        """Keep the status file up to date; it is written where it changes, and as a sign of life."""
        entities = {str(address): entry for address, entry in sorted(self._entities.items())}
        current = Supervision(self._me, entities, self._sight.silent)
        last, at = self._written
        now = self._monotonic()
        if current == last and now - at < HEARTBEAT_S:
            return
        try:
            write_supervision(self._path, current)
        except OSError:
            # A full disk must not end supervision: the file tells of before then, but is a sign of life.
            with suppress(OSError):
                os.utime(self._path)
        else:
            self._written = (current, now)

    def hear_signals(self) -> None:
        """Let SIGTERM and SIGINT end the loop. Carrying out a plan has its own handlers, and leaves none."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True


def _hosts(site: Site) -> Mapping[str, Collection[str]]:
    """The hosts that providers look at, of those that have hosts of their own."""
    return {"docker": (site.providers.docker or DockerProvider()).by_name.keys()}


def _remembered(before: Supervision | None) -> dict[EntityAddress, Supervised]:
    """What the controller before this one knew, so that counting goes on."""
    found: dict[EntityAddress, Supervised] = {}
    for text, one in before.entities.items() if before is not None else ():
        with suppress(ValueError):  # damaged, and no worse than a file that is not there
            address = parse_address(text)
            if isinstance(address, EntityAddress):
                found[address] = one
    return found


def _used(state: State, address: EntityAddress) -> set[str]:
    """The providers that a repair of that entity calls."""
    return {i.spec.provider for i in state.instances.values() if i.address.of == address}


def _some(instance: Instance | None) -> tuple[Instance, ...]:
    return () if instance is None else (instance,)


async def _loaded(provider: Provider, instance: Instance, timeout_s: float) -> str:
    """Wait for readiness; "" when it is reached, else why it will not be."""
    try:
        await await_ready(provider, instance.handle, instance.spec, timeout_s, lambda progress: None)
    except PermanentError as error:
        return error.what
    except TransientError as error:
        return str(error)
    return ""


def _failure(outcome: Outcome, plan: Plan, address: EntityAddress) -> str:
    """Why an entity's part of a plan was not done; "" where it was."""
    own = {node.id for node in plan.nodes if entity_of(node) == address}
    for id, why in outcome.failed.items():
        if id in own or id.startswith(("publish", "routing")):
            return why
    if outcome.lost is not None:
        return str(outcome.lost) or "lost lock: somebody else writes this state now"
    return "interrupted" if own & outcome.skipped.keys() else ""


def tell(subject: str, text: str) -> None:
    """One line on standard error, which is that of serve."""
    with suppress(OSError):  # nobody reads any more; supervision goes on
        print(f"servestate: controller: {subject}: {text}", file=sys.stderr, flush=True)


def main(root: str) -> int:
    """Supervise the site in that folder until told to stop, or until the process that started this one has
    gone."""
    order = decode_order(sys.stdin.buffer.read())
    if not dies_with(order.parent):
        return 0
    workspace = open_workspace(Path(root), order.site)
    controller = Controller(workspace, tell)
    controller.hear_signals()
    controller.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
