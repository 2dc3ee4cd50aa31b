"""Findings, progress and endings between a server and its clients, as JSON values: a client shows an apply
that happens elsewhere with the same words as one that happens here."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from servestate.planner.diagnostics import Diagnostic, InvalidInput, Severity, Where
from servestate.planner.steps import Node
from servestate.runtime.apply import Finished, Stale
from servestate.runtime.causes import diagnostics_of
from servestate.runtime.executor import Outcome
from servestate.runtime.reporter import Reporter
from servestate.runtime.store.protocol import (
    JournalEntry,
    Lock,
    LockHeld,
    LostLock,
    Owner,
    StoreError,
)

PREFIX = "/api/servestate/v1"
"""Before every path that only servestate's own clients know."""

PROGRESS_EVERY_S = 1.0
"""How often the progress of one step is told; every word would be kept until the client has asked for it."""

LARGEST_PLAN = 256 << 20
"""Bytes."""

Json = dict[str, Any]


class FormError(ValueError):
    """The other side speaks of something that this version does not know."""


# Plans.


def pack(plan: str) -> str:
    """The text of a plan, deflated (RFC 1950) and in base64: one of ten thousand endpoints, 15 MB, would be
    more than a request may hold."""
    return base64.b64encode(zlib.compress(plan.encode())).decode("ascii")


def unpack(packed: str) -> str:
    """The text of the plan again. Raises FormError where it is none, or larger than LARGEST_PLAN."""
    inflating = zlib.decompressobj()
    try:
        text = inflating.decompress(base64.b64decode(packed, validate=True), LARGEST_PLAN)
        if not inflating.eof:
            raise FormError(f"the plan is cut off, or larger than {LARGEST_PLAN} bytes")
        return text.decode()
    except (ValueError, zlib.error) as error:
        raise FormError(f"this is no plan: {error}") from error


# Findings.


def diagnostics_to_json(found: Iterable[Diagnostic]) -> list[Json]:
    """Findings, each with its place."""
    return [asdict(one) for one in found]


def diagnostics_from_json(value: Any) -> tuple[Diagnostic, ...]:
    """The findings again. Raises FormError."""
    try:
        return tuple(_diagnostic(one) for one in value)
    except (KeyError, TypeError, ValueError) as error:
        raise FormError(f"findings of another version: {error}") from error


def _diagnostic(value: Json) -> Diagnostic:
    where = Where(**value["where"]) if value["where"] is not None else None
    return Diagnostic(**{**value, "where": where, "severity": Severity(value["severity"])})


# Locks.


def lock_to_json(lock: Lock) -> Json:
    """A lock with its owner."""
    return asdict(lock)


def lock_from_json(value: Any) -> Lock:
    """The lock again. Raises FormError."""
    try:
        return Lock(**{**value, "owner": Owner(**value["owner"])})
    except (KeyError, TypeError) as error:
        raise FormError(f"a lock of another version: {error}") from error


# Progress.


class Recorder(Reporter):
    """Hands progress on as JSON values; `replay` gives it to another reporter."""

    def __init__(self, tell: Callable[[Json], None]) -> None:
        self._tell = tell
        self._told: dict[str, float] = {}

    def notice(self, text: str) -> None:
        """See `Reporter`."""
        self._tell({"type": "notice", "text": text})

    def step_started(self, node: Node) -> None:
        """See `Reporter`."""
        self._tell({"type": "started", "step": node.id})

    def step_progress(self, node: Node, text: str) -> None:
        """See `Reporter`."""
        now = time.monotonic()
        if now - self._told.get(node.id, 0.0) >= PROGRESS_EVERY_S:
            self._told[node.id] = now
            self._tell({"type": "progress", "step": node.id, "text": text})

    def step_done(self, node: Node, elapsed_s: float) -> None:
        """See `Reporter`."""
        self._tell({"type": "done", "step": node.id, "elapsed_s": elapsed_s})

    def step_failed(self, node: Node, why: str, elapsed_s: float) -> None:
        """See `Reporter`."""
        self._tell({"type": "failed", "step": node.id, "why": why, "elapsed_s": elapsed_s})

    def step_skipped(self, node: Node, because: str) -> None:
        """See `Reporter`."""
        self._tell({"type": "skipped", "step": node.id, "because": because})


def replay(event: Any, nodes: Mapping[str, Node], reporter: Reporter) -> None:
    """Give the reporter what a Recorder has heard; `nodes` are the plan's, by id. Raises FormError."""
    try:
        if event["type"] == "notice":
            reporter.notice(event["text"])
            return
        node = nodes[event["step"]]
        match event["type"]:
            case "started":
                reporter.step_started(node)
            case "progress":
                reporter.step_progress(node, event["text"])
            case "done":
                reporter.step_done(node, event["elapsed_s"])
            case "failed":
                reporter.step_failed(node, event["why"], event["elapsed_s"])
            case "skipped":
                reporter.step_skipped(node, event["because"])
            case _:
                raise FormError(f"progress of another version: {event['type']}")
    except (KeyError, TypeError) as error:
        raise FormError(f"progress of another version: {error!r}") from error


# Endings.


def ending_to_json(result: Stale | Finished) -> Json:
    """How an apply has ended. What ended it early is the client's to know."""
    if isinstance(result, Stale):
        return {"kind": "stale", "moved": result.moved, "journal": [asdict(e) for e in result.journal]}
    outcome = result.outcome
    return {
        "kind": "finished",
        "done": outcome.done,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
        "interrupted": outcome.interrupted,
        "lost": None if outcome.lost is None else _lost_to_json(outcome.lost),
    }


def _lost_to_json(lost: Exception) -> Json:
    of_store = diagnostics_to_json(diagnostics_of(lost)) if isinstance(lost, StoreError) else []
    return {"findings": of_store}


def locked_to_json(lock: Lock) -> Json:
    """An apply that did not get the lock."""
    return {"kind": "locked", "lock": lock_to_json(lock)}


def error_to_json(error: Exception) -> Json:
    """An apply that ended before it did anything."""
    return {"kind": "error", "findings": diagnostics_to_json(diagnostics_of(error))}


INTERRUPTED: Json = {"kind": "interrupted"}
"""An apply that was called off while it waited for the lock."""


def ending_from_json(value: Any, signal: int) -> Stale | Finished:
    """How it has ended, with the signal by which the client called it off (0: it did not). Raises LockHeld,
    InvalidInput, KeyboardInterrupt, and FormError."""
    try:
        match value["kind"]:
            case "stale":
                journal = tuple(JournalEntry(**entry) for entry in value["journal"])
                return Stale(tuple(value["moved"]), journal)
            case "finished":
                return Finished(_outcome(value), signal)
            case "locked":
                raise LockHeld(lock_from_json(value["lock"]))
            case "error":
                raise InvalidInput(diagnostics_from_json(value["findings"]))
            case "interrupted":
                raise KeyboardInterrupt
            case kind:
                raise FormError(f"an ending of another version: {kind}")
    except (KeyError, TypeError) as error:
        raise FormError(f"an ending of another version: {error!r}") from error


def _outcome(value: Json) -> Outcome:
    lost = value["lost"]
    error: Exception | None = None
    if lost is not None:
        found = diagnostics_from_json(lost["findings"])
        error = StoreError(found[0]) if found else LostLock()
    return Outcome(value["done"], value["failed"], value["skipped"], value["interrupted"], error)
