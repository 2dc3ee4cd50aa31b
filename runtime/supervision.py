"""The status file: what the controller knows and does, written by it alone, read by `servestate status`.

It is also the controller's memory: one that takes over from one that was killed goes on counting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from servestate.planner.plural import counted
from servestate.providers import identity
from servestate.runtime.backoff import Backoff
from servestate.runtime.workspace import Workspace

FORMAT_VERSION = 1

HEARTBEAT_S = 10.0
"""How often the status file is written at least: the sign of life that the guard looks for."""


class Condition(StrEnum):
    """How a supervised entity fares."""

    RUNNING = "running"
    RESTARTING = "restarting"
    CRASH_LOOPING = "crash_looping"


@dataclass(frozen=True, slots=True)
class Supervised:
    """One entity. `since` is when it came up or went down, in seconds since the epoch, as are the times of
    `backoff`; `reason` says what ended it last: the cause, then the last lines of its log, masked by its
    provider; "" where nothing ever did."""

    backoff: Backoff
    since: float
    reason: str = ""

    @property
    def condition(self) -> Condition:
        """Crash-looping stays so, up or down, until it was healthy for long."""
        if self.backoff.crash_looping:
            return Condition.CRASH_LOOPING
        return Condition.RUNNING if self.backoff.healthy_since is not None else Condition.RESTARTING


@dataclass(frozen=True, slots=True)
class Supervision:
    """All of it. `process` is the controller's identity; `entities` are by address; `silent` says of each
    provider that cannot be asked now why."""

    process: str
    entities: Mapping[str, Supervised] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether that controller runs now."""
        process = identity.parse(self.process)
        return process is not None and identity.alive(process)


def supervision_path(workspace: Workspace) -> Path:
    """Where the status file of a site is."""
    return workspace.folder / f"{workspace.prefix}supervision.json"


def write_supervision(path: Path, supervision: Supervision) -> None:
    """Replace the file. Raises OSError. It need not survive a power cut: nor does what it tells of."""
    entities = {address: asdict(one) for address, one in supervision.entities.items()}
    body = {"format_version": FORMAT_VERSION, "process": supervision.process}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(
            os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump({**body, "entities": entities, "silent": dict(supervision.silent)}, file)
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def read_supervision(path: Path) -> Supervision | None:
    """What the last controller wrote; None where there is nothing that this version can read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format_version"] != FORMAT_VERSION:
            return None
        entities = {str(address): _supervised(one) for address, one in found["entities"].items()}
        return Supervision(str(found["process"]), entities, dict(found["silent"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _supervised(one: dict[str, Any]) -> Supervised:
    backoff = one["backoff"]
    return Supervised(
        Backoff(int(backoff["restarts"]), _time(backoff["next_try"]), _time(backoff["healthy_since"])),
        float(one["since"]),
        str(one["reason"]),
    )


def _time(value: Any) -> float | None:
    return None if value is None else float(value)


def describe_supervised(one: Supervised, now: float) -> str:
    """How it fares in one line for people: "crash_looping: 5 restarts, next in 14 s: exit code 1"."""
    first = one.reason.partition("\n")[0]
    facts = ", ".join([counted(one.backoff.restarts, "restart"), _outlook(one, now)])
    return f"{one.condition}: {facts}" + (f": {first}" if first else "")


def _outlook(one: Supervised, now: float) -> str:
    if one.backoff.healthy_since is not None:
        return f"up for {_seconds(now - one.backoff.healthy_since)}"
    if one.backoff.next_try is not None:
        return f"next in {_seconds(one.backoff.next_try - now)}"
    return "starting"


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s"
