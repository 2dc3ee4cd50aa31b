"""What the handlers share: what is now, what is promised, who may call, and the ways to change something."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from servestate.planner.access import Caller, Level, grants_in, level_of
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.owners import API_VERB
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.stages import routes_only
from servestate.planner.state import EndpointRecord, State
from servestate.providers import kept_secrets
from servestate.providers.protocol import PermanentError, TransientError
from servestate.runtime.api import goals
from servestate.runtime.api.call import Refusal, absent, exists, invalid, unavailable
from servestate.runtime.api.hands import Busy, Hands, Interrupt, Interrupted, Planned
from servestate.runtime.api.keeper import Answer, Keeper, Tell, first_failure
from servestate.runtime.api.ledger import Ledger, Status, Update
from servestate.runtime.api.site import SiteSource
from servestate.runtime.api.view import View
from servestate.runtime.api.wording import said
from servestate.runtime.executor import Outcome
from servestate.runtime.keyring import Keyring
from servestate.runtime.store.protocol import StoreError
from servestate.runtime.workspace import Workspace, owner_of_this_process

ANSWER_S = 10.0
"""How long a request waits to be answered with more than that it is under way."""

_AGAIN_S = 5.0

_BRIEF_S = 0.5

Edit = Callable[[dict[str, Any]], None]
"""Changes the block of an endpoint (CreateServingEndpoint, without its config) in place."""


@dataclass(slots=True)
class Desk:
    """One of these, for all requests. `keyring` is replaced whole when the configuration changes; `document`
    gives the OpenAPI document."""

    source: SiteSource
    view: View
    ledger: Ledger
    hands: Hands
    keyring: Keyring
    tell: Tell
    document: Callable[[], dict[str, Any]] = dict
    # Writes wait for the lock and for each other: they must not keep reads from their threads.
    writers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16, "write"))
    _me: str = field(default_factory=lambda: owner_of_this_process(API_VERB).process)
    _reserved: set[str] = field(default_factory=set)
    _keepers: dict[str, Keeper] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # From a secret's being kept until it is promised what for, nobody may find that it is for nothing.
    _keeping: threading.Lock = field(default_factory=threading.Lock)

    # What is there.

    def record(self, name: str) -> EndpointRecord:
        """The record of that endpoint. Raises Refusal: 404, or 503 where it is promised and not made yet."""
        record = self.view.state().endpoints.get(name)
        update = self.ledger.get(name)
        if record is None and update is not None and update.status is Status.IN_PROGRESS:
            raise unavailable(f"{name!r} is being made: another command holds the lock", 2)
        if record is None:
            raise no_endpoint(name)
        return record

    def level(self, caller: Caller, record: EndpointRecord | None) -> Level:
        """What the caller may do with an endpoint; of one only promised so far, what its token says."""
        return level_of(caller, grants_in(record.block) if record is not None else ())

    # Changing something.

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Keep the name for one request that makes an endpoint. Raises Refusal 409 where it is taken: by an
        endpoint, by one that is promised, or by another request. One that failed before it was made has
        none."""
        update = self.ledger.get(name)
        promised = update is not None and update.status is Status.IN_PROGRESS
        if promised or name in self._reserved or name in self.view.state().endpoints:
            raise exists(f"there is an endpoint {name!r} already")
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)

    async def promise(self, update: Update, secrets: Mapping[str, str]) -> None:
        """Put the update into the ledger and have it pursued; returns once it is done or under way. `secrets`
        are those that came with the request. Raises InvalidInput where it cannot be planned, and Refusal."""
        with self._keeping:
            self._keep_secrets(secrets)
            self.ledger.put(update)
        try:
            answer = self._ask(update.endpoint)  # before anything can fail: what is promised is pursued
            # Whoever else holds the lock may do so for as long as a model loads.
            held = await self.run(lambda: self.source.workspace().store.held())
            elsewhere = held is not None and held.owner.process != self._me
            await self._answered(answer, _BRIEF_S if elsewhere else ANSWER_S)
        finally:
            if secrets:
                await self.run(self.forget_secrets)

    def _keep_secrets(self, secrets: Mapping[str, str]) -> None:
        try:
            kept_secrets.keep(self.source.workspace().kept_secrets_path, secrets)
        except OSError as error:
            raise unavailable(f"the secrets of the request cannot be kept: {error.strerror}", 5) from error

    def forget_secrets(self) -> None:
        """Drop the secrets that came with requests which nothing refers to any more."""
        workspace = self.source.workspace()
        if not workspace.kept_secrets_path.exists():
            return
        with self._keeping:
            # The ledger first: what leaves it meanwhile is in the state by then.
            used = [repr(update.block) for update in self.ledger.updates().values()]
            state = self.view.state(now=True)
            used += [record.block for record in state.endpoints.values()]
            used += [repr(one.spec) for one in state.instances.values()]
            try:
                kept_secrets.forget(workspace.kept_secrets_path, "\n".join(used))
            except (OSError, PermanentError) as error:  # they are dropped another time
                self.tell("secrets", f"those that nobody uses are still kept: {error}")

    async def delete(self, name: str, by: str) -> None:
        """Have the endpoint deleted; returns once its name is free. Raises Refusal."""
        if not await self._answered(self._ask(name, by)):
            raise unavailable(f'"{name}" will be deleted as soon as the lock of another command is free', 5)
        await self.run(self.forget_secrets)

    async def look_again(self, name: str) -> None:
        """Have somebody look at what the endpoint shall be: what was promised of it has been taken back."""
        await self._answered(self._ask(name))

    async def make_bare(self, block: dict[str, Any], by: str) -> None:
        """Make an endpoint that has no config yet. Raises Refusal and InvalidInput."""

        name = str(block["name"])

        def make() -> tuple[Planned, Plan]:
            def goal(state: State, workspace: Workspace) -> Resolved:
                if name in state.endpoints:
                    raise exists(f"there is an endpoint {name!r} already")
                return goals.resolved(block, None, workspace.site)

            planned = self.hands.plan(goal, frozenset({name}))
            return planned, planned.plan

        await self.run(lambda: _whole(self.hands.do(make, by, Interrupt(), ANSWER_S)))
        self.view.state(now=True)

    async def edit(self, name: str, change: Edit, by: str) -> None:
        """Change settings of the endpoint; nothing is started or stopped. Raises Refusal and InvalidInput."""

        def make() -> tuple[Planned, Plan]:
            def goal(state: State, workspace: Workspace) -> Resolved:
                record = state.endpoints.get(name)
                if record is None:
                    raise no_endpoint(name)
                block = goals.written_block(record)
                block.pop("config", None)
                change(block)
                return goals.resolved(block, record, workspace.site)

            planned = self.hands.plan(goal, frozenset({name}))
            return planned, routes_only(planned.plan, planned.state)

        await self.run(lambda: _whole(self.hands.do(make, by, Interrupt(), ANSWER_S)))
        self.view.state(now=True)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Do blocking work in a thread. Raises Refusal for what the world refuses."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.writers, work)
        except Busy:
            raise unavailable("another command holds the lock: try again in a moment", 2) from None
        except (StoreError, TransientError, PermanentError) as error:
            raise unavailable(said(str(error)), 2) from error

    async def _answered(self, answer: Answer, patience_s: float = ANSWER_S) -> bool:
        """Wait for an answer; False where it takes too long."""
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.shield(asyncio.wrap_future(answer))
        except TimeoutError:
            return False
        except Interrupted:
            raise unavailable("servestate is stopping", 5) from None
        except (TransientError, StoreError) as error:
            raise unavailable(said(str(error)), 2) from error
        finally:
            self.view.state(now=True)
        return True

    def _ask(self, name: str, deleted_by: str = "") -> Answer:
        answer: Answer = Answer()
        with self._lock:
            keeper = self._keepers.get(name)
            if keeper is not None and keeper.ask(answer, deleted_by):
                return answer
            keeper = self._keepers[name] = Keeper(name, self.hands, self.ledger, self.view, self.tell)
            keeper.ask(answer, deleted_by)
            # A daemon: what a second signal cuts short is in the ledger.
            threading.Thread(target=self._keep, args=(keeper,), name=f"keeper {name}", daemon=True).start()
        return answer

    def _keep(self, keeper: Keeper) -> None:
        try:
            keeper.run()
            # Again: a secret is in use until the last instance that names it is gone from the state.
            self.forget_secrets()
        finally:
            with self._lock:
                if self._keepers.get(keeper.name) is keeper:
                    del self._keepers[keeper.name]
            update = self.ledger.get(keeper.name)
            if update is not None and update.status is Status.IN_PROGRESS and not keeper.stopping:
                # Not even its failure could be written. It is tried again until it can.
                later = threading.Timer(_AGAIN_S, self._ask, (keeper.name,))
                later.daemon = True
                later.start()

    def resume(self) -> None:
        """Go on with what was promised before this process began, and clear away what one before has left."""
        updates = self.ledger.updates()
        promised = {name for name, update in updates.items() if update.status is Status.IN_PROGRESS}
        state = self.view.state(now=True)
        deleted = self.source.workspace().store.removed(API_VERB, own=True).keys() - state.endpoints.keys()
        left = goals.left_over(state, {*updates, *deleted})
        for name in sorted(promised | left):
            self._ask(name)

    def stop(self) -> None:
        """Let what is in flight finish, and wait for that."""
        with self._lock:
            keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.stop()
        while self._keepers:
            threading.Event().wait(0.05)
        self.writers.shutdown(wait=True, cancel_futures=True)
        self.ledger.close()


def _whole(done: tuple[Planned, Plan, Outcome]) -> None:
    """Raises TransientError where not all of it was done: it may be tried again."""
    _, _, outcome = done
    if not outcome.complete:
        raise TransientError(first_failure(outcome))


def no_endpoint(name: str) -> Refusal:
    """The very same answer for one that is not there and one that the caller may not see."""
    return absent(f"there is no endpoint {name!r}")


def findings(error: InvalidInput) -> Refusal:
    """All that is wrong with a request, as a refusal: each finding with its place and its way out."""
    lines = []
    for found in error.diagnostics:
        key = found.where.key if found.where is not None and found.where.key else ""
        place = f"{key}: " if key and not found.what.startswith(key) else ""
        detail = f" ({found.detail})" if found.detail else ""
        fix = f"; fix: {found.fix}" if found.fix else ""
        lines.append(f"{place}{found.code} {found.what}{detail}{fix}")
    return invalid(said("\n".join(lines)))
