"""What is applied, what runs and keeps running, and how traffic was really split, as JSON values."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from servestate.planner.address import InstanceAddress
from servestate.planner.drift import find_drift
from servestate.planner.launch import ExternalSpec
from servestate.planner.live import Live
from servestate.planner.plan import settled_state
from servestate.planner.state import EndpointRecord, State
from servestate.providers.protocol import TransientError
from servestate.runtime.look import see
from servestate.runtime.router_link import router_status
from servestate.runtime.supervision import (
    Supervised,
    Supervision,
    describe_supervised,
    read_supervision,
    supervision_path,
)
from servestate.runtime.troubles import TROUBLES
from servestate.runtime.workspace import Workspace


async def status_of(workspace: Workspace) -> dict[str, Any]:
    """Everything about one site. Raises StoreError, TransientError, PermanentError."""
    state = workspace.store.read() or State("")
    # Both wait for a router that does not answer: together, or it would take twice as long.
    live, router = await asyncio.gather(
        see(workspace, workspace.providers(state), state), _asked(workspace.control_path)
    )
    state = settled_state(state, live)
    supervision = read_supervision(supervision_path(workspace))
    if isinstance(router, TransientError):
        return {**describe(state, live, None, supervision), "router_error": str(router)}
    return describe(state, live, router, supervision)


async def _asked(control_path: Path) -> dict[str, Any] | TransientError | None:
    try:
        return await router_status(control_path)
    except TransientError as error:
        return error


def describe(
    state: State, live: Live, router: dict[str, Any] | None, supervision: Supervision | None
) -> dict[str, Any]:
    """Everything, as JSON values. What a controller said that no longer runs is not told."""
    if supervision is not None and not supervision.alive:
        supervision = None
    return {
        "lineage": state.lineage if state.serial else None,
        "serial": state.serial,
        "router": _router(router),
        "controller": _controller(supervision),
        "endpoints": [
            _endpoint(r, state, live, router, supervision) for _, r in sorted(state.endpoints.items())
        ],
        "drift": [
            {"address": d.address, "kind": str(d.kind), "recorded": d.recorded, "live": d.live}
            for d in find_drift(state, live)
        ],
    }


def _router(router: dict[str, Any] | None) -> dict[str, Any] | None:
    """What matters of a router's report: `troubles` are what it cannot do, `ejected` the replicas that it
    leaves out, each with the reason; `replacing` the process of the router that it is taking over from, None
    where there is none; `draining` that it only ends what is in flight."""
    if router is None:
        return None
    keys = ("pid", "listen", "table_version", "table_error", "connections")
    reports = {**router, **router.get("books", {})}
    troubles = {key: reports[key] for key in TROUBLES if key != "table_error" and reports.get(key)}
    ejected = {
        name: replica["reason"]
        for name, replica in router.get("replicas", {}).items()
        if replica.get("state", "healthy") != "healthy"
    }
    return {key: router[key] for key in keys} | {
        "workers": router.get("workers", []),
        "replacing": router.get("replacing"),
        "draining": router.get("draining", False),
        "inflight": router.get("inflight", 0),
        "troubles": troubles,
        "ejected": ejected,
    }


def _controller(supervision: Supervision | None) -> dict[str, Any] | None:
    if supervision is None:
        return None
    return {"pid": int(supervision.process.partition(".")[0]), "silent": dict(supervision.silent)}


def _supervised(one: Supervised | None) -> dict[str, Any] | None:
    if one is None:
        return None
    reason, *log = one.reason.splitlines() or [""]
    return {
        "condition": str(one.condition),
        "restarts": one.backoff.restarts,
        "next_try_at": one.backoff.next_try,
        "since": one.since,
        "reason": reason,
        "log": [line.removeprefix("| ") for line in log],
        "text": describe_supervised(one, time.time()),
    }


def _endpoint(
    record: EndpointRecord,
    state: State,
    live: Live,
    router: dict[str, Any] | None,
    supervision: Supervision | None,
) -> dict[str, Any]:
    seen = (router or {}).get("endpoints", {}).get(record.name, {}).get("entities", {})
    assigned = sum(entity["assigned"] for entity in seen.values())
    supervised = supervision.entities if supervision is not None else {}
    entities = []
    for target in record.targets:
        counted = seen.get(target.entity, {})
        share = round(100 * counted["assigned"] / assigned, 2) if assigned and counted else None
        entities.append(
            {
                "entity": target.entity,
                "desired_percent": target.weight,
                "observed_percent": share,
                "counters": counted,
                "supervision": _supervised(supervised.get(f"{record.name}/{target.entity}")),
                "instances": [_instance(address, state, live) for address in target.instances],
            }
        )
    return {"name": record.name, "config_version": record.config_version, "entities": entities}


def _instance(address: InstanceAddress, state: State, live: Live) -> dict[str, str]:
    instance = state.instances[address]
    seen = live.instances.get(address)
    if isinstance(instance.spec, ExternalSpec):
        health = "external"
    elif seen is None:
        health = "gone"
    else:
        health = str(seen.status)
    facts = {"address": str(address), "phase": str(instance.phase), "health": health, "url": instance.url}
    return {**facts, "why": seen.why} if seen is not None and seen.why else facts
