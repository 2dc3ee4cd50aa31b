"""The commands of clients that are elsewhere: `servestate plan --server` and its like.

The configuration comes with the request; what it runs on is this site's.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from servestate.planner.access import Caller
from servestate.planner.codec import FormatError, decode_plan, encode_plan
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.match import settle
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.spec.bundle import Desired
from servestate.planner.state import State
from servestate.runtime.api import orders
from servestate.runtime.api.call import Call, Need, Refusal, Row, invalid
from servestate.runtime.api.desk import Desk
from servestate.runtime.api.operations import POLL_S, Operation, Operations
from servestate.runtime.api.orders import ApplyOrder, Begun, News, PlanMade, PlanOrder, Status
from servestate.runtime.api.shapes import Empty
from servestate.runtime.api.their_configuration import desired_of
from servestate.runtime.api.wording import said
from servestate.runtime.apply import Finished, routed
from servestate.runtime.causes import EXPECTED, diagnostics_of
from servestate.runtime.executor import Outcome
from servestate.runtime.status import status_of
from servestate.runtime.store.protocol import Lock, Owner
from servestate.runtime.wanted import nothing_of, sole_owner, wanted
from servestate.runtime.wire import (
    PREFIX,
    FormError,
    Json,
    Recorder,
    diagnostics_to_json,
    ending_to_json,
    lock_to_json,
    unpack,
)
from servestate.runtime.workspace import Workspace, is_gone, owner_of_this_process

_LOOK_S = 0.25
_PAGE = 1000
_LARGEST = 16 << 20

T = TypeVar("T")

_OPERATIONS = Operations()
"""Of this process, which serves one site."""


async def plan(desk: Desk, call: Call) -> Any:
    """POST /plans."""
    order = orders.read(PlanOrder, call)
    if not order.documents and not order.destroy:  # a bundle without endpoints would delete all that it owns
        raise invalid("there are no documents to plan for")
    if order.wait_s > 0 and (lock := await _held(desk, order.wait_s)) is not None:
        return {"locked": lock_to_json(lock)}
    return await _judged(desk, lambda: _made(desk, order))


def _made(desk: Desk, order: PlanOrder) -> Json:
    found: list[Desired] = []

    def goal(state: State, workspace: Workspace) -> Resolved:
        if order.destroy and not order.documents:
            return nothing_of(sole_owner(state))
        found.append(desired_of(order, workspace.site))
        return wanted(found[0], destroy=order.destroy)

    planned = desk.hands.plan(goal, None, destroy=order.destroy, pull=order.pull)
    text = encode_plan(planned.plan)
    desk.ledger.add_plan(_sha256(text))
    return {
        "plan": text,
        "settled": planned.plan.is_empty and not any(settle(planned.state, planned.live)),
        "owner": planned.plan.bundle,
        "warnings": diagnostics_to_json(found[0].warnings if found else ()),
    }


async def apply(desk: Desk, call: Call) -> Any:
    """POST /applies."""
    order = orders.read(ApplyOrder, call)
    wanted_plan = await _judged(desk, lambda: _known(desk, order.plan))
    if wanted_plan.blocked:
        raise invalid("the plan holds steps that are blocked")
    digest = await _judged(desk, lambda: _digest(desk, order, destroy=wanted_plan.destroy))
    owner = _owner(call.caller, wanted_plan, order)

    def work(operation: Operation) -> Json:
        if order.settled and wanted_plan.is_empty:
            workspace = desk.hands.workspace()
            asyncio.run(routed(workspace, workspace.store.read() or State("")))
            return ending_to_json(Finished(Outcome()))
        reporter = Recorder(operation.tell)
        interrupt, patience_s = operation.interrupt, order.lock_timeout_s
        return ending_to_json(desk.hands.apply(wanted_plan, digest, owner, interrupt, patience_s, reporter))

    return {"operation": _OPERATIONS.begin(work).id}


def _known(desk: Desk, packed: str) -> Plan:
    """The plan, which must have been made here: nobody carries out what was never shown. Raises Refusal."""
    try:
        text = unpack(packed)
        if not desk.ledger.knows_plan(_sha256(text)):
            raise invalid("this server has not made that plan, or too many others since: plan anew")
        return decode_plan(text)
    except (FormError, FormatError) as error:
        raise invalid(str(error)) from error


def _digest(desk: Desk, order: ApplyOrder, *, destroy: bool) -> str | None:
    """Of the configuration beside the plan; None where there is none."""
    if order.configuration is None:
        return None
    desired = desired_of(order.configuration, desk.hands.workspace().site)
    return wanted(desired, destroy=destroy).digest


def _owner(caller: Caller, plan: Plan, order: ApplyOrder) -> Owner:
    ours = owner_of_this_process("destroy" if plan.destroy else "apply")
    page = order.ci_url if order.ci_url.isprintable() else ""
    return replace(ours, person=caller.name, ci_url=page)


async def news(desk: Desk, call: Call) -> Any:
    """GET /operations/{id}: what has happened after the first N events, waiting a while for the next."""
    operation = _OPERATIONS.get(call.path["id"])
    text = call.query.get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid("after must be a whole number from 0")
    after = int(text)
    await operation.heard(after)
    # The result is read first: what is told before it is among the events then.
    result = operation.result
    events = operation.events[after : after + _PAGE]
    whole = after + len(events) >= len(operation.events)
    return {"events": events, "result": result if whole else None}


async def cancel(desk: Desk, call: Call) -> Any:
    """POST /operations/{id}/cancel: no further step is begun; what is in flight finishes."""
    _OPERATIONS.get(call.path["id"]).interrupt.set()
    return {}


async def status(desk: Desk, call: Call) -> Any:
    """GET /status."""
    return await _judged(desk, lambda: asyncio.run(status_of(desk.source.workspace())))


async def _held(desk: Desk, wait_s: float) -> Lock | None:
    """The lock that somebody still holds after that time, or after as long as a request waits."""
    store = desk.source.workspace().store
    deadline = time.monotonic() + min(wait_s, POLL_S)
    while True:
        held = await _judged(desk, store.held)
        if held is None or held.is_free(time.time(), is_gone):
            return None
        if time.monotonic() >= deadline:
            return held
        await asyncio.sleep(_LOOK_S)


async def _judged(desk: Desk, work: Callable[[], T]) -> T:
    """Do blocking work in a thread. What it finds wrong goes to the client word by word."""
    try:
        return await asyncio.get_running_loop().run_in_executor(desk.writers, work)
    except EXPECTED as error:
        found = diagnostics_of(error)
        status, code = (400, "INVALID_PARAMETER_VALUE")
        if not isinstance(error, InvalidInput):
            status, code = (503, "TEMPORARILY_UNAVAILABLE")
        message = said("\n".join(str(one) for one in found))
        raise Refusal(status, code, message, more={"details": diagnostics_to_json(found)}) from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_ONE = f"{PREFIX}/operations/{{id}}"

ROWS: tuple[Row, ...] = (
    Row(
        "POST",
        f"{PREFIX}/plans",
        Need.APPLY,
        plan,
        "Make a plan",
        takes=PlanOrder,
        gives=PlanMade,
        largest=_LARGEST,
    ),
    Row(
        "POST",
        f"{PREFIX}/applies",
        Need.APPLY,
        apply,
        "Carry out a plan that was made here",
        takes=ApplyOrder,
        gives=Begun,
        largest=_LARGEST,
    ),
    Row("GET", _ONE, Need.APPLY, news, "The progress of an apply", gives=News, query=("after",)),
    Row("POST", f"{_ONE}/cancel", Need.APPLY, cancel, "Call an apply off", gives=Empty),
    Row("GET", f"{PREFIX}/status", Need.APPLY, status, "What is applied and how it fares", gives=Status),
)
