"""`servestate status`: what is applied, what runs and keeps running, how traffic was really split."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from servestate.planner.drift import DriftKind
from servestate.planner.plural import counted
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import server_of, workspace_of
from servestate.runtime.cli.output import say
from servestate.runtime.status import status_of
from servestate.runtime.supervision import Condition
from servestate.runtime.troubles import TROUBLES


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    server = server_of(arguments)
    found = asyncio.run(status_of(workspace_of(arguments))) if server is None else server.status()
    say(json.dumps(found, indent=2) if arguments.json else "\n".join(_lines(found)))
    return exit_codes.OK


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
        where = f"router: {router['listen']}, table {router['table_version']}, pid {router['pid']}"
        lines.append(where + _ending(router))
        lines += _worker_lines(router)
        if router["table_error"]:
            lines.append(_indented(TROUBLES["table_error"].told(router["table_error"])))
        lines += [_indented(_told(key, why)) for key, why in router.get("troubles", {}).items()]
        lines += _ejected_lines(router.get("ejected", {}), found["endpoints"])
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


def _ending(router: dict[str, Any]) -> str:
    if not router.get("draining"):
        return ""
    return f", draining: {counted(router['inflight'], 'request')} in flight"


def _told(key: str, why: str) -> str:
    """A trouble of the router; by its key where it is a site elsewhere that is newer and has others."""
    trouble = TROUBLES.get(key)
    return trouble.told(why) if trouble is not None else f"{key}: {why}"


def _worker_lines(router: dict[str, Any]) -> list[str]:
    """The processes that answer, where they are others than the router's own, and the router whose place this
    one is taking."""
    lines = []
    for worker in router["workers"]:
        if worker["pid"] != router["pid"]:
            table = f", table {worker['table_version']}" if worker["state"] == "ready" else ""
            again = f", started again {counted(worker['restarts'], 'time')}" if worker["restarts"] else ""
            lines.append(f"  worker: pid {worker['pid']}, {worker['state']}{table}{again}")
    if router.get("replacing"):
        lines.append(
            f"  replaces the router with pid {router['replacing']}, which ends what it has in flight"
        )
    return lines


def _ejected_lines(ejected: dict[str, str], endpoints: list[dict[str, Any]]) -> list[str]:
    """Replicas that failed too often. Where an entity has no other, its requests go on going there, or to
    another entity where the endpoint falls back."""
    entities = [entity["instances"] for endpoint in endpoints for entity in endpoint["entities"]]
    alone = {only["address"] for only, *more in filter(None, entities) if not more}
    return [
        _indented(
            f"would leave out {name}, but its entity has no other; it gets what goes nowhere else: {why}"
            if name in alone
            else f"leaves out {name}: {why}"
        )
        for name, why in ejected.items()
    ]


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
