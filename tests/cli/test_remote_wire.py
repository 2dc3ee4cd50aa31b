"""What crosses the network between a client and its server comes out as it went in, and is bounded."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import Any

import pytest

from servestate.planner.address import EndpointAddress
from servestate.planner.diagnostics import Diagnostic, InvalidInput, Severity, Where
from servestate.planner.steps import Node, RewriteTable, Withdraw
from servestate.runtime import wire
from servestate.runtime.api.call import Refusal
from servestate.runtime.api.operations import KEPT, Operation, Operations
from servestate.runtime.apply import Finished, Stale
from servestate.runtime.causes import LOST_LOCK, diagnostics_of
from servestate.runtime.executor import Outcome
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import JournalEntry, Lock, LockHeld, LostLock, Owner, StoreError
from servestate.runtime.wire import (
    INTERRUPTED,
    FormError,
    Json,
    Recorder,
    diagnostics_from_json,
    diagnostics_to_json,
    ending_from_json,
    ending_to_json,
    error_to_json,
    locked_to_json,
    pack,
    replay,
    unpack,
)

FOUND = (
    Diagnostic("SS104", "what", "fix", Where("a.yaml", 3, 4, "a.b"), "more\nlines"),
    Diagnostic("SS619", "so so", severity=Severity.WARNING),
)
LOCK = Lock("0123456789ab", Owner("apply", "ana", "host", "7.8.9", "https://ci.example/1"), 1.5, 61.5)


def crossed(value: Any) -> Any:
    """The value on the other side."""
    return json.loads(json.dumps(value))


class Heard(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def notice(self, text: str) -> None:
        self.calls.append(("notice", text))

    def step_started(self, node: Node) -> None:
        self.calls.append(("started", node))

    def step_progress(self, node: Node, text: str) -> None:
        self.calls.append(("progress", node, text))

    def step_done(self, node: Node, elapsed_s: float) -> None:
        self.calls.append(("done", node, elapsed_s))

    def step_failed(self, node: Node, why: str, elapsed_s: float) -> None:
        self.calls.append(("failed", node, why, elapsed_s))

    def step_skipped(self, node: Node, because: str) -> None:
        self.calls.append(("skipped", node, because))


def tell_everything(reporter: Reporter, one: Node, other: Node) -> None:
    reporter.notice("broke a lock")
    reporter.step_started(one)
    reporter.step_progress(one, "1 request in flight")
    reporter.step_done(one, 1.25)
    reporter.step_started(other)
    reporter.step_failed(other, "why\nand more", 2.5)
    reporter.step_skipped(one, "interrupted")


def test_progress() -> None:
    one = Node("withdraw:a", Withdraw(EndpointAddress("a")))
    other = Node("rewrite-table", RewriteTable())
    events: list[Json] = []
    heard, direct = Heard(), Heard()
    tell_everything(Recorder(events.append), one, other)
    tell_everything(direct, one, other)
    for event in crossed(events):
        replay(event, {node.id: node for node in (one, other)}, heard)
    assert heard.calls == direct.calls


def test_much_progress_of_one_step_is_told_now_and_then() -> None:
    node = Node("rewrite-table", RewriteTable())
    events: list[Json] = []
    recorder = Recorder(events.append)
    for number in range(1000):
        recorder.step_progress(node, str(number))
    assert len(events) < 5


@pytest.mark.parametrize(
    "event", [{}, {"type": "started", "step": "nowhere"}, {"type": "started"}, {"type": "grown"}, [], None]
)
def test_progress_of_another_version(event: Any) -> None:
    with pytest.raises(FormError):
        replay(event, {}, Heard())


def test_plans() -> None:
    text = '{"plan": "é"}\n' * 1000
    assert unpack(pack(text)) == text
    assert len(pack(text)) < 1000
    for other in ("", "no plan", pack(text)[:40], "AAAA", base64.b64encode(text.encode()).decode()):
        with pytest.raises(FormError):
            unpack(other)


def test_a_plan_that_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LARGEST_PLAN", 1000)
    assert unpack(pack("x" * 1000)) == "x" * 1000
    with pytest.raises(FormError, match="larger than 1000 bytes"):
        unpack(pack("x" * 1001))


def test_findings() -> None:
    assert diagnostics_from_json(crossed(diagnostics_to_json(FOUND))) == FOUND
    for other in ([{}], [None], 7, [{"severity": "mild"}]):
        with pytest.raises(FormError):
            diagnostics_from_json(other)


@pytest.mark.parametrize(
    "result",
    [
        Stale(("serial",), (JournalEntry(5, 1.0, "Published", "a", "ana (apply)"),)),
        Finished(Outcome(["a"], {"b": "why"}, {"c": "interrupted"}, interrupted=True), 2),
        Finished(Outcome(), 2),
    ],
)
def test_endings(result: Stale | Finished) -> None:
    assert ending_from_json(crossed(ending_to_json(result)), 2) == result


@pytest.mark.parametrize("lost", [LostLock(), StoreError(FOUND[0])])
def test_why_writing_became_impossible(lost: Exception) -> None:
    found = ending_from_json(crossed(ending_to_json(Finished(Outcome(lost=lost)))), 0)
    assert isinstance(found, Finished)
    assert found.outcome.lost is not None
    assert type(found.outcome.lost) is type(lost)
    assert (str(found.outcome.lost) or LOST_LOCK) == (str(lost) or LOST_LOCK)
    assert diagnostics_of(found.outcome.lost) == diagnostics_of(lost)


def test_endings_before_anything_was_done() -> None:
    with pytest.raises(LockHeld) as held:
        ending_from_json(crossed(locked_to_json(LOCK)), 0)
    assert held.value.lock == LOCK
    with pytest.raises(InvalidInput) as invalid:
        ending_from_json(crossed(error_to_json(InvalidInput(FOUND))), 0)
    assert invalid.value.diagnostics == FOUND
    with pytest.raises(KeyboardInterrupt):
        ending_from_json(crossed(INTERRUPTED), 0)
    for other in ({}, {"kind": "new"}, {"kind": "finished"}, {"kind": "locked", "lock": {}}):
        with pytest.raises(FormError):
            ending_from_json(other, 0)


def test_the_last_operations_are_remembered() -> None:
    async def run() -> None:
        operations = Operations()
        ids = []
        for _ in range(KEPT + 3):
            operation = operations.begin(lambda _: {"kind": "none"})
            ids.append(operation.id)
            await operation.heard(0)
        assert operations.get(ids[-1]).result == {"kind": "none"}
        assert operations.get(ids[3]).result
        for id in ids[:3]:
            with pytest.raises(Refusal):
                operations.get(id)

    asyncio.run(run())


def test_no_more_than_that_at_once() -> None:
    async def run() -> None:
        operations, gate = Operations(), threading.Event()

        def work(_: Operation) -> Json:
            gate.wait(20)
            return {}

        begun = [operations.begin(work) for _ in range(KEPT)]
        with pytest.raises(Refusal, match="too many"):
            operations.begin(work)
        gate.set()
        for operation in begun:
            await operation.heard(0)

    asyncio.run(run())


def test_an_end_of_the_server_calls_off_what_is_under_way() -> None:
    seen: list[bool] = []

    async def run() -> None:
        stopped = threading.Event()

        def work(operation: Operation) -> Json:
            operation.interrupt.watch(stopped.set)
            seen.append(stopped.wait(20))
            return {}

        operation = Operations().begin(work)
        await asyncio.sleep(0.05)
        assert operation.result is None

    asyncio.run(run())
    assert seen == [True]
