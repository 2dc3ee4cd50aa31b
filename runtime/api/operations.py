"""Plans and applies for clients that are elsewhere: `servestate plan --server` and its like.

The configuration comes with the request; what it runs on is this site's. An apply goes on when its client
has gone; its progress can be asked for while it is one of the last that there were.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets as random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from servestate.planner.access import Caller
from servestate.planner.codec import FormatError, decode_plan, encode_plan
from servestate.planner.diagnostics import Diagnostic, InvalidInput, Severity
from servestate.planner.match import settle
from servestate.planner.plan import Plan
from servestate.planner.resolve import Resolved
from servestate.planner.spec.bundle import Desired, load
from servestate.planner.spec.findings import Findings
from servestate.planner.spec.places import Block
from servestate.planner.spec.report import Report
from servestate.planner.spec.site import Site
from servestate.planner.spec.site_rules import SITE_RULES
from servestate.planner.spec.tree import Document, Source, compose
from servestate.planner.spec.variables import ENVIRONMENT_PREFIX
from servestate.planner.state import State
from servestate.runtime.api.call import Call, Need, Refusal, Row, absent, invalid, unavailable
from servestate.runtime.api.desk import Desk
from servestate.runtime.api.hands import Interrupt, Interrupted
from servestate.runtime.api.shapes import Empty, Shape
from servestate.runtime.api.wording import said
from servestate.runtime.apply import Finished, routed
from servestate.runtime.causes import EXPECTED, diagnostics_of
from servestate.runtime.executor import Outcome
from servestate.runtime.status import status_of
from servestate.runtime.store.protocol import Lock, LockHeld, LostLock, Owner
from servestate.runtime.wanted import nothing_of, sole_owner, wanted
from servestate.runtime.wire import (
    INTERRUPTED,
    PREFIX,
    FormError,
    Json,
    Recorder,
    diagnostics_to_json,
    ending_to_json,
    error_to_json,
    lock_to_json,
    locked_to_json,
    unpack,
)
from servestate.runtime.workspace import Workspace, is_gone, owner_of_this_process

POLL_S = 5.0
"""How long a request waits for news before it is answered with none; a server that is told to stop waits for
such requests."""

KEPT = 50
"""Operations that are remembered."""

_LOOK_S = 0.25
_PAGE = 1000
_LARGEST = 16 << 20
_OF_SERVER = ("state", "router", "management", "secrets", "providers", "access")
_OF_CLIENT = ("models", "workload_types", "overrides", "traffic")
_LONGEST_URL = 500

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


# Bodies and answers.


class _Form(BaseModel):
    """What a client of this version sends. What it would have dropped, it does not act on."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DocumentText(_Form):
    """One document of a configuration; findings call it by its name."""

    name: str
    text: str


class Configuration(_Form):
    """A bundle as its client sees it. `environ` is searched for BUNDLE_VAR_<name>."""

    documents: tuple[DocumentText, ...] = ()
    target: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    environ: dict[str, str] = Field(default_factory=dict)


class PlanOrder(Configuration):
    """Wanted: a plan. `wait_s` is how long to wait for a lock that somebody holds, in seconds."""

    destroy: bool = False
    pull: Literal["never", "missing", "always"] | None = None
    wait_s: float = 0.0


class ApplyOrder(_Form):
    """Wanted: a plan that was made here carried out; `plan` is packed, see `wire.pack`. `configuration` is
    compared with what it was made from, where it is given. `settled` says that there is nothing to do, and
    asks only whether the router routes by the table. `ci_url` is the page of the job that asks."""

    plan: str
    configuration: Configuration | None = None
    settled: bool = False
    lock_timeout_s: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    ci_url: str = Field(default="", max_length=_LONGEST_URL)


class PlanMade(Shape):
    """A plan, its warnings and whose it is; or who holds the lock."""

    plan: str | None = None
    settled: bool | None = None
    owner: str | None = None
    warnings: list[dict[str, Any]] | None = None
    locked: dict[str, Any] | None = None


class Begun(Shape):
    """Where to ask for the progress of an apply."""

    operation: str


class News(Shape):
    """What has happened since the event that was asked after; `result` once that is all."""

    events: list[dict[str, Any]]
    result: dict[str, Any] | None


class Status(Shape):
    """What `servestate status --json` prints."""

    serial: int
    endpoints: list[dict[str, Any]]


# Operations.


class Operation:
    """An apply: what it has told so far (`events`), and how it has ended (`result`), None while it has not.
    Made on the loop of the server; its thread tells."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.interrupt = Interrupt()
        self.events: list[Json] = []
        self.result: Json | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def tell(self, event: Json) -> None:
        """One more thing has happened."""
        self.events.append(event)
        self._loop.call_soon_threadsafe(self._news.set)

    def end(self, result: Json) -> None:
        """Nothing more will."""
        self.result = result
        self._loop.call_soon_threadsafe(self._news.set)

    async def heard(self, after: int) -> None:
        """Return once there is more than so many events, it has ended, or POLL_S is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                while self.result is None and len(self.events) <= after:
                    self._news.clear()  # what is told from here on sets it after this, on the loop
                    await self._news.wait()


class Operations:
    """The last applies of this process. Each runs in a thread of its own."""

    def __init__(self) -> None:
        self._known: dict[str, Operation] = {}
        self._threads = ThreadPoolExecutor(KEPT, "apply")
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Callable[[Operation], Json]) -> Operation:
        """Have the work done. Raises Refusal where too much is under way."""
        ended = [id for id, operation in self._known.items() if operation.result is not None]
        if len(self._known) >= KEPT:
            if not ended:
                raise unavailable("too many applies wait for the lock", 10)
            del self._known[ended[0]]
        operation = Operation(random.token_hex(8))
        self._known[operation.id] = operation
        task = asyncio.create_task(self._see_to(operation, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return operation

    def get(self, id: str) -> Operation:
        """The operation. Raises Refusal 404."""
        found = self._known.get(id)
        if found is None:
            raise absent(f"no apply {id!r} is known: the server has been started anew, or that is long ago")
        return found

    async def _see_to(self, operation: Operation, work: Callable[[Operation], Json]) -> None:
        """Ends with the work. When the server ends first, what is in flight is finished before it does."""
        run = asyncio.get_running_loop().run_in_executor(self._threads, _ended, operation, work)
        try:
            await asyncio.shield(run)
        except asyncio.CancelledError:
            operation.interrupt.set()
            await run


def _ended(operation: Operation, work: Callable[[Operation], Json]) -> None:
    # What ends without any of these is a mistake of ours: its traceback is in the log, and nobody waits.
    what = "the server has failed; its log says how"
    result = error_to_json(InvalidInput([Diagnostic("SS500", what, "look there")]))
    try:
        result = work(operation)
    except LockHeld as error:
        result = locked_to_json(error.lock)
    except Interrupted:
        result = INTERRUPTED
    except (*EXPECTED, LostLock) as error:
        result = error_to_json(error)
    finally:
        operation.end(result)


_OPERATIONS = Operations()
"""Of this process, which serves one site."""


# Handlers.


async def plan(desk: Desk, call: Call) -> Any:
    """POST /plans."""
    order = _form(PlanOrder, call)
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
        found.append(_desired(order, workspace.site))
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
    order = _form(ApplyOrder, call)
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
    desired = _desired(order.configuration, desk.hands.workspace().site)
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


# The configuration of a client on the site of the server.


def _desired(order: Configuration, site: Site) -> Desired:
    """What the documents ask for, on this site. Raises InvalidInput."""
    documents = tuple(Document(one.name, one.text) for one in order.documents)
    environ = {k: v for k, v in order.environ.items() if k.startswith(ENVIRONMENT_PREFIX)}
    source = Source(documents, order.target, order.variables, environ)
    desired = load(documents, target=order.target, variables=order.variables, environ=environ)
    theirs = desired.site
    given = {name: getattr(theirs, name) for name in _OF_CLIENT if name in theirs.model_fields_set}
    ours = site.model_copy(update=given)
    _check_site(ours, desired, source)
    return replace(desired, site=ours, warnings=(*desired.warnings, *_not_theirs(theirs, site)))


def _check_site(site: Site, desired: Desired, source: Source) -> None:
    """The client's part of the site must be right on the server's too: its hosts, its policy for images."""
    names = [document.name for document in source.documents]
    specs = [endpoint.spec for endpoint in desired.endpoints]

    def check(block: Block) -> Findings:
        findings = Findings(names)
        for rule in SITE_RULES:
            rule(site, specs, Report(findings, block, ("servestate",)))
        return findings

    if check(Block.at(0)).failed:
        # Read once more for the places; only who has made a mistake waits for that.
        try:
            check(compose(source, Findings(names)).site).check()
        except InvalidInput as error:
            raise InvalidInput(d for d in error.diagnostics if d.severity is Severity.ERROR) from None


def _not_theirs(theirs: Site, ours: Site) -> tuple[Diagnostic, ...]:
    """A warning of what the documents say about the server and it does otherwise."""
    given = theirs.model_fields_set
    other = [n for n in _OF_SERVER if n in given and getattr(theirs, n) != getattr(ours, n)]
    if not other:
        return ()
    what = (
        f"{', '.join(f'servestate.{name}' for name in other)} of this configuration counts for nothing here"
    )
    fix = "with --server that is the server's own; change it there"
    return (Diagnostic("SS619", what, fix, severity=Severity.WARNING),)


# What they share.


def _form(kind: type[M], call: Call) -> M:
    """The body as that form. Raises Refusal."""
    try:
        return kind.model_validate(call.object())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise invalid(
            f"the client is of another version, or no servestate: {place}: {first['msg']}"
        ) from None


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
