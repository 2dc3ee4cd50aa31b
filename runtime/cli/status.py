"""`servestate status`: what is applied, what runs and keeps running, how traffic was really split."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from servestate.planner.address import InstanceAddress
from servestate.planner.drift import DriftKind, find_drift
from servestate.planner.launch import ExternalSpec
from servestate.planner.live import Live
from servestate.planner.plan import settled_state
from servestate.planner.state import EndpointRecord, State
from servestate.providers.protocol import TransientError
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import say
from servestate.runtime.look import see
from servestate.runtime.router_link import router_status
from servestate.runtime.supervision import (
    Condition,
    Supervised,
    Supervision,
    describe_supervised,
    read_supervision,
    supervision_path,
)
from servestate.runtime.workspace import Workspace


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    workspace = workspace_of(arguments)
    found = asyncio.run(_found(workspace))
    say(json.dumps(found, indent=2) if arguments.json else "\n".join(_lines(found)))
    return exit_codes.OK


async def _found(workspace: Workspace) -> dict[str, Any]:
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
    keys = ("pid", "listen", "table_version", "table_error", "connections")
    return None if router is None else {key: router[key] for key in keys}


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


def _lines(found: dict[str, Any]) -> list[str]:
    router = found["router"]
    lines = ["state: none yet"]
    if found["serial"]:
        lines = [f"state: serial {found['serial']}, lineage {found['lineage']}"]
    if "router_error" in found:
        lines.append(f"router: {found['router_error']}")
    elif router is None:
        lines.append("router: not running (servestate serve)")
    else:
        lines.append(f"router: {router['listen']}, table {router['table_version']}, pid {router['pid']}")
        if router["table_error"]:
            lines.append(f"  refuses the newest table: {router['table_error']}")
    lines += _controller_lines(found)
    for endpoint in found["endpoints"]:
        lines += ["", f"{endpoint['name']}  (config version {endpoint['config_version']})"]
        for entity in endpoint["entities"]:
            lines += _entity_lines(entity)
    if not found["endpoints"]:
        lines += ["", "no endpoints are applied here"]
    # The first lines tell of the router already, and apply cannot repair it.
    drift = [d for d in found["drift"] if d["kind"] != DriftKind.ROUTER]
    if drift:
        lines += ["", "drift (servestate apply repairs it):"]
        lines += [_indented(f"{d['address']}: {d['recorded']} -> {d['live']}") for d in drift]
    return lines


def _controller_lines(found: dict[str, Any]) -> list[str]:
    """Whether what dies is replaced. Where neither it nor a router runs, the router's line says enough."""
    if controller := found["controller"]:
        silent = [f"  provider {name} does not answer: {why}" for name, why in controller["silent"].items()]
        return [f"controller: pid {controller['pid']}", *silent]
    return ["controller: not running: what dies is not replaced"] if found["router"] else []


def _entity_lines(entity: dict[str, Any]) -> list[str]:
    observed = entity["observed_percent"]
    seen = "-" if observed is None else f"{observed:g} %"
    requests = entity["counters"].get("requests", 0)
    split = f"desired {entity['desired_percent']:>3} %  observed {seen:>7}"
    lines = [f"  {entity['entity']:<24} {split}  requests {requests}"]
    for instance in entity["instances"]:
        why = f"  ({instance['why'].splitlines()[0]})" if instance.get("why") else ""
        facts = f"{instance['phase']}, {instance['health']}"
        lines.append(f"    {instance['address']}  {facts}  {instance['url']}{why}")
    supervision = entity["supervision"]
    if supervision is not None and (supervision["restarts"] or supervision["condition"] != Condition.RUNNING):
        lines += [f"    {supervision['text']}", *(f"      | {line}" for line in supervision["log"])]
    return lines


def _indented(text: str) -> str:
    """`text` with its further lines, the end of a log, deeper than the first."""
    first, *rest = text.splitlines()
    return "\n".join([f"  {first}", *(f"      {line}" for line in rest)])
