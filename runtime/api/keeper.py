"""Keepers: each sees to one endpoint for as long as there is something to do for it, in a thread of its own.

A keeper always asks anew what its endpoint shall be: gone, the config of an update in the ledger, or what is
recorded, of which it then only clears away what serves nothing. So a cancelled or failed update, a newer one
and a crash are all the same to it, and two keepers never work on one endpoint.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.owners import API_OWNER
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.rollout import ready_id
from servestate.planner.stages import (
    at_once,
    forgotten_first,
    publishes,
    retiring,
    shortened,
    waits,
)
from servestate.planner.state import EndpointRecord, State
from servestate.planner.steps import Launch, Node
from servestate.providers.protocol import PermanentError, TransientError
from servestate.runtime.api import goals
from servestate.runtime.api.hands import Busy, Hands, Interrupt, Interrupted, Planned
from servestate.runtime.api.ledger import EntityNote, Ledger, Status, Update
from servestate.runtime.api.view import View
from servestate.runtime.api.waiting import FINISH_S, wait_for
from servestate.runtime.executor import Outcome
from servestate.runtime.store.protocol import StoreError
from servestate.runtime.workspace import Workspace

PATIENCE_S = 3600.0
"""How long an update waits for the lock; an apply holds it while its models load."""

_RETRY_S = 1.0
_SHORT_TROUBLE = 3
"""How often somebody may not answer before an update has failed for that."""

_TRIES = 5
"""How often what is left over is tried to be cleared away; after that it is for the next apply."""

Tell = Callable[[str, str], None]
"""Takes an endpoint's name and what there is to say of it."""

Answer = Future[None]
"""Done once a request can be answered: what it asked for has happened or is under way. Fails with
InvalidInput where it cannot be planned; nothing is changed then."""


@dataclass(slots=True)
class Errand:
    """What a keeper is asked for beside the update in the ledger. `deleted_by` is who wants its endpoint
    gone, "" for nobody; `answers` are requests that wait."""

    deleted_by: str = ""
    answers: list[Answer] = field(default_factory=list)


class Keeper:
    """Sees to one endpoint. `run` is its thread's whole life; everything else may be called by any thread."""

    def __init__(self, name: str, hands: Hands, ledger: Ledger, view: View, tell: Tell) -> None:
        self.name = name
        self._hands = hands
        self._ledger = ledger
        self._view = view
        self._tell = tell
        self._scope = frozenset({name})
        self._lock = threading.Lock()
        self._errand = Errand()
        self._interrupt = Interrupt()
        self._over = False
        self.stopping = False

    def ask(self, answer: Answer, deleted_by: str = "") -> bool:
        """Look anew at what the endpoint shall be; False where the keeper has gone home already."""
        with self._lock:
            if self._over:
                return False
            self._errand.answers.append(answer)
            self._errand.deleted_by = deleted_by or self._errand.deleted_by
        self._interrupt.set()
        return True

    def stop(self) -> None:
        """Finish what is in flight and end; what is promised stays in the ledger."""
        self.stopping = True
        self._interrupt.set()

    def run(self) -> None:
        """See to the endpoint until nothing is left to do."""
        tries = 0
        while not self.stopping and tries < _TRIES:
            self._interrupt.clear()
            if self.stopping:  # it came in the very moment of the clearing
                break
            try:
                if self._work() and self._goes_home():
                    return
            except Interrupted:
                continue
            except Busy:
                self._tell(self.name, "waits: somebody else holds the lock")
            except (StoreError, TransientError) as error:
                tries += 1
                if tries >= _SHORT_TROUBLE:
                    self._failed(str(error))
                self._pause()
            except (PermanentError, InvalidInput) as error:
                tries += 1
                self._failed(str(error))
                self._pause()
            except Exception:
                traceback.print_exc()
                self._failed("servestate has failed; its log says how")
                break
        why = Interrupted() if self.stopping else TransientError("it cannot be done: see what serve says")
        self._give_up(why, over=True)

    def _goes_home(self) -> bool:
        with self._lock:
            if self._errand.answers or self._errand.deleted_by or self._interrupt.is_set:
                return False
            self._over = True
            return True

    def _pause(self) -> None:
        """Who does not answer is asked again a little later, unless there is something else to do."""
        deadline = time.monotonic() + _RETRY_S
        while not self._interrupt.is_set and time.monotonic() < deadline:
            time.sleep(_RETRY_S / 20)

    def _work(self) -> bool:
        """Do what can be done now; whether nothing is left."""
        with self._lock:
            deleted_by = self._errand.deleted_by
        if deleted_by:
            self._delete(deleted_by)
            return False
        update = self._ledger.get(self.name)
        if update is not None and update.status is Status.IN_PROGRESS:
            self._pursue(update)
            return False
        self._answer()
        return self._tidy()

    # Deletion.

    def _delete(self, by: str) -> None:
        """Out of the routes and out of the state; what served is then ended as what serves nothing."""

        def make() -> tuple[Planned, Plan]:
            planned = self._hands.plan(self._gone, self._scope, destroy=True)
            return planned, forgotten_first(planned.plan)

        given_up = self._ledger.get(self.name)
        _, _, outcome = self._hands.do(make, by, Interrupt(), PATIENCE_S)
        if not outcome.complete:
            raise TransientError(first_failure(outcome))
        if given_up is not None:  # and not one of whoever has made the name anew by now
            self._ledger.end(given_up, None)
        with self._lock:
            self._errand.deleted_by = ""
        self._answer()

    def _gone(self, state: State, workspace: Workspace) -> Resolved:
        record = state.endpoints.get(self.name)
        return goals.nothing(record.owner if record is not None else API_OWNER)

    # Updates.

    def _pursue(self, update: Update) -> None:
        """Take the update as far as it goes: until its config is active, or it has failed."""
        try:
            self._take(update)
        except InvalidInput as error:
            self._refused(update, error)
        except _Superseded as error:
            self._end(update, Status.CANCELED, str(error), {})
        except _Active:
            self._catch_up()
            self._active(update)

    def _take(self, update: Update) -> None:
        waited: set[str] = set()
        while True:
            planned, now, outcome = self._stage(update, waited)
            if not outcome.complete:
                self._not_done(update, outcome, planned)
                return
            if not publishes(planned.plan) or any(_activates(node, self.name) for node in now.nodes):
                self._active(update)
                return
            self._answer()
            steps = waits(planned.plan, [node.id for node in now.nodes])
            found = wait_for(
                {id: step for id, step in steps.items() if id not in waited},
                planned.workspace,
                self._interrupt,
            )
            if failed := {id: why for id, why in found.items() if why}:
                # Whoever applied another config has ended what this one waited for.
                self._check_wanted(update, self._view.state(now=True).endpoints.get(self.name))
                self._not_ready(update, planned, failed)
                return
            waited |= found.keys()

    def _active(self, update: Update) -> None:
        """The update is done."""
        self._view.state(now=True)  # first: who finds no update must find its config
        if self._ledger.end(update, None):
            self._answer()

    def _stage(self, update: Update, waited: set[str]) -> tuple[Planned, Plan, Outcome]:
        def make() -> tuple[Planned, Plan]:
            planned = self._hands.plan(lambda s, w: self._wanted(update, s, w), self._scope)
            # What died after it was ready is launched anew, and waited for anew.
            waited.difference_update(
                ready_id(n.step.address) for n in planned.plan.nodes if isinstance(n.step, Launch)
            )
            now = at_once(planned.plan, waited)
            if self.name not in planned.state.endpoints and len(now.nodes) < len(planned.plan.nodes):
                return self._claim(update)
            return planned, shortened(now, dict.fromkeys(waited, FINISH_S))

        return self._hands.do(make, update.by, self._interrupt, PATIENCE_S)

    def _wanted(self, update: Update, state: State, workspace: Workspace) -> Resolved:
        record = state.endpoints.get(self.name)
        self._check_wanted(update, record)
        return goals.wanted(update, record, workspace.site)

    def _check_wanted(self, update: Update, record: EndpointRecord | None) -> None:
        if goals.config_digest(record) != update.before:
            if record is not None and goals.has_config(record, update):
                raise _Active  # the process before this one ended in the very moment
            owner = record.owner if record is not None else "somebody"
            raise _Superseded(f'another config was applied meanwhile: see bundle "{owner}"')

    def _catch_up(self) -> None:
        """See that the router routes as is recorded: who died between the two has left the table behind."""

        def make() -> tuple[Planned, Plan]:
            planned = self._hands.plan(self._recorded, self._scope)
            return planned, at_once(retiring(planned.plan, planned.state))

        _, _, outcome = self._hands.do(make, API_OWNER, self._interrupt, PATIENCE_S)
        _check_done(outcome)

    def _claim(self, update: Update) -> tuple[Planned, Plan]:
        """The endpoint without its config: it has name and owner before anything is started for it."""
        bare = {key: value for key, value in update.block.items() if key != "config"}
        planned = self._hands.plan(lambda s, w: goals.resolved(bare, None, w.site), self._scope)
        return planned, planned.plan

    def _refused(self, update: Update, error: InvalidInput) -> None:
        """It cannot be planned. Whoever waits for an answer gets that, and nothing has happened; a later
        finding is a failure like any other."""
        with self._lock:
            answers, self._errand.answers = self._errand.answers, []
        if answers:
            self._ledger.end(update, None)
            for answer in answers:
                answer.set_exception(error)
        else:
            self._end(update, Status.FAILED, str(error), {})

    def _not_done(self, update: Update, outcome: Outcome, planned: Planned) -> None:
        if outcome.interrupted and not outcome.failed:
            raise Interrupted
        if outcome.failed:
            self._not_ready(update, planned, outcome.failed)
        elif isinstance(outcome.lost, StoreError):
            raise outcome.lost
        # Else the lock was broken: plan anew.

    def _not_ready(self, update: Update, planned: Planned, failed: Mapping[str, str]) -> None:
        """End the update for what has failed, by the id of each step."""
        addresses = {n.id: n.step.address for n in planned.plan.nodes if hasattr(n.step, "address")}
        entities = {id: getattr(addresses.get(id), "entity", "") for id in failed}
        notes = {
            entity: EntityNote("DEPLOYMENT_FAILED", failed[id]) for id, entity in entities.items() if entity
        }
        self._end(update, Status.FAILED, next(iter(failed.values())), notes)

    def _end(self, update: Update, status: Status, message: str, notes: dict[str, EntityNote]) -> None:
        names = [entity.get("name", "") for entity in update.config.get("served_entities", [])]
        aborted = EntityNote("DEPLOYMENT_ABORTED", "the update has ended" if notes else message)
        if not self._ledger.end(
            update, update.ended(status, message, {**dict.fromkeys(names, aborted), **notes})
        ):
            return  # somebody has cancelled it, or wants another one
        self._tell(self.name, f"{status}: {message.partition(chr(10))[0]}")
        self._answer()

    def _failed(self, why: str) -> None:
        """The world cannot be looked at or written: an update fails, anything else is tried again."""
        update = self._ledger.get(self.name)
        if update is not None and update.status is Status.IN_PROGRESS:
            self._end(update, Status.FAILED, why, {})
        else:
            self._tell(self.name, why)
            self._give_up(TransientError(why), over=False)

    # What serves nothing.

    def _tidy(self) -> bool:
        """End what is left over; whether there was nothing."""

        def make() -> tuple[Planned, Plan]:
            planned = self._hands.plan(self._recorded, self._scope)
            record = planned.state.endpoints.get(self.name)
            whole = record is None or all(target.instances for target in record.targets)
            plan = retiring(planned.plan, planned.state) if whole else planned.plan
            return planned, plan

        def stage() -> tuple[Planned, Plan]:
            planned, plan = make()
            found.append(plan)
            return planned, shortened(at_once(plan, waited), dict.fromkeys(waited, FINISH_S))

        waited: set[str] = set()
        while True:
            found: list[Plan] = []
            planned, now, outcome = self._hands.do(stage, API_OWNER, self._interrupt, PATIENCE_S)
            plan = found[-1]
            if not plan.nodes:
                return True
            _check_done(outcome)
            if not now.nodes:
                waited |= wait_for(waits(plan), planned.workspace, self._interrupt).keys()

    def _recorded(self, state: State, workspace: Workspace) -> Resolved:
        record = state.endpoints.get(self.name)
        return goals.nothing(API_OWNER) if record is None else goals.as_recorded(record, workspace.site)

    # Answers.

    def _answer(self) -> None:
        with self._lock:
            answers, self._errand.answers = self._errand.answers, []
        for answer in answers:
            answer.set_result(None)

    def _give_up(self, error: Exception, *, over: bool) -> None:
        with self._lock:
            self._over = over
            answers, self._errand.answers = self._errand.answers, []
        for answer in answers:
            answer.set_exception(error)


class _Active(Exception):
    """The config that the update wants is the endpoint's."""


class _Superseded(Exception):
    """Somebody has applied another config since the update began."""


def _activates(node: Node, name: str) -> bool:
    record: EndpointRecord | None = getattr(node.step, "record", None)
    return (
        record is not None and record.name == name and node.id == f"publish:{name}" and bool(record.targets)
    )


def _check_done(outcome: Outcome) -> None:
    """Raises Interrupted or TransientError where not all of it was done."""
    if outcome.interrupted:
        raise Interrupted
    if not outcome.complete:
        raise TransientError(first_failure(outcome))


def first_failure(outcome: Outcome) -> str:
    """Why not all of it was done."""
    if outcome.failed:
        return next(iter(outcome.failed.values()))
    return str(outcome.lost) if outcome.lost is not None else "interrupted"
