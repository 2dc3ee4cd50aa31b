"""Plans and progress as JSON lines, in the field names that readers of Terraform's output know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from servestate.planner.address import EndpointAddress, EntityAddress
from servestate.planner.change import Action, Change
from servestate.planner.codec import use_to_json
from servestate.planner.diagnostics import Diagnostic, Severity
from servestate.planner.launch import Placement
from servestate.planner.plan import Plan
from servestate.planner.render import NO_CHANGES, counts, summary
from servestate.planner.steps import Launch
from servestate.planner.version import VERSION
from servestate.runtime.store.protocol import Lock

UI_VERSION = "1.2"
"""A higher minor only adds; a reader rejects another major."""

_ACTIONS = {Action.CREATE_THEN_DELETE: "replace", Action.DELETE_THEN_CREATE: "replace"}


def line(type: str, message: str, level: str = "info", **fields: Any) -> str:
    """One object on one line."""
    stamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    head = {"@level": level, "@message": message, "@module": "servestate.ui", "@timestamp": stamp}
    return json.dumps({**head, "type": type, **fields}, ensure_ascii=False)


def version_line() -> str:
    """Always the first line."""
    return line("version", f"servestate {VERSION}", servestate=VERSION, ui=UI_VERSION)


def plan_lines(plan: Plan) -> Iterator[str]:
    """A plan: its drift, its changes, its summary."""
    yield version_line()
    for drift in plan.drift:
        seen = {"kind": str(drift.kind), "recorded": drift.recorded, "live": drift.live}
        message = f"{drift.address}: {drift.recorded} -> {drift.live}"
        yield line("resource_drift", message, change={"address": drift.address, **seen})
    places = {n.step.address.of: n.step.placement for n in plan.nodes if isinstance(n.step, Launch)}
    for found in plan.changes:
        told = _change(found) | _placed(found.address, places)
        yield line("planned_change", f"{found.address}: Plan to {found.action}", change=told)
    add, change, remove = counts(plan.changes)
    for use in plan.capacity:
        peak = f"{use.host}: peak {use.peak} of {use.total or '?'} GPUs"
        yield line("gpu_use", peak, capacity=use_to_json(use))
    totals = {"add": add, "change": change, "import": 0, "remove": remove, "operation": "plan"}
    yield line("change_summary", NO_CHANGES if plan.is_empty else summary(plan), changes=totals)


def diagnostic_line(found: Diagnostic) -> str:
    """One finding; `range` is where it was made, absent when it has no place."""
    body: dict[str, Any] = {"severity": str(found.severity), "summary": found.what, "detail": found.detail}
    body |= {"code": found.code, "fix": found.fix}
    if found.where is not None:
        start = {"line": found.where.line, "column": found.where.column}
        body["range"] = {"filename": found.where.file, "start": start}
    level = "warn" if found.severity is Severity.WARNING else "error"
    return line("diagnostic", f"{found.code} {found.what}", level=level, diagnostic=body)


def lock_line(held: Lock, message: str) -> str:
    """Who holds the lock that was not to be had; `created` is in seconds since the epoch."""
    owner = held.owner
    pid = int(owner.process.partition(".")[0])
    holder = {"verb": owner.verb, "person": owner.person, "host": owner.host, "pid": pid}
    facts = {"id": held.id, "created": held.created, "ci_url": owner.ci_url, **holder}
    return line("lock", message, level="error", lock=facts)


def _placed(
    address: EndpointAddress | EntityAddress, places: Mapping[EntityAddress, Placement]
) -> dict[str, Any]:
    """Where an entity will be launched; nothing for what is not."""
    place = places.get(address) if isinstance(address, EntityAddress) else None
    if place is None:
        return {}
    return {"placement": {"host": place.host, "gpus": list(place.gpus), "fraction": place.fraction}}


def _change(change: Change) -> dict[str, Any]:
    return {
        "resource": {"addr": str(change.address)},
        "action": _ACTIONS.get(change.action, str(change.action)),
        "order": str(change.action),
        "reason": str(change.reason),
        "category": str(change.category),
        "fields": [{"path": f.path, "old": f.old, "new": f.new, "forces": f.forces} for f in change.fields],
        "note": change.note,
        "remarks": list(change.remarks),
        "blocked": change.blocked,
    }
