"""The serving endpoints: made, changed and deleted as the serving API does it.

A write is judged first, without any effect; then it is promised in the ledger, and carried out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from servestate.planner.state import EndpointRecord
from servestate.runtime.api import goals
from servestate.runtime.api.admission import accepted, check_secrets, check_units, owned
from servestate.runtime.api.call import Call, conflict, invalid
from servestate.runtime.api.desk import Desk, no_endpoint
from servestate.runtime.api.ledger import Status, Update
from servestate.runtime.api.reach import check_hosts
from servestate.runtime.api.reading import show

_METADATA = (
    "description",
    "route_optimized",
    "tags",
    "ai_gateway",
    "rate_limits",
    "email_notifications",
    "budget_policy_id",
    "telemetry_config",
)
_CONFIG = ("served_entities", "served_models", "traffic_config", "auto_capture_config")


async def create(desk: Desk, call: Call) -> Any:
    """POST."""
    return await _create(desk, call, call.object(), units=False)


async def create_units(desk: Desk, call: Call) -> Any:
    """POST /pt: an endpoint of provisioned model units."""
    body = call.object()
    check_units(body.get("config"))
    return await _create(desk, call, body, units=True)


async def _create(desk: Desk, call: Call, body: Mapping[str, Any], *, units: bool) -> Any:
    name = body.get("name")
    if not isinstance(name, str):
        raise invalid("the body needs a name, which is text")
    block, secrets = accepted({k: v for k, v in body.items() if k in ("name", "config", *_METADATA)})
    block = owned(desk, block, call.caller)
    found = goals.resolved(block, None, desk.source.site(), units=units)
    judged = goals.as_judged(found)
    check_secrets(desk, call.caller, body.get("config"))
    check_hosts(desk, call.caller, found, None)
    with desk.reserved(name):
        if "config" not in judged:
            await desk.make_bare(judged, call.caller.name)
        else:
            await desk.promise(Update(name, judged, "", time.time(), call.caller.name, units), secrets)
    return show(desk, name, call.caller)


async def update_config(desk: Desk, call: Call) -> Any:
    """PUT /{name}/config."""
    return await _update(desk, call, call.object(), units=False)


async def update_units(desk: Desk, call: Call) -> Any:
    """PUT /pt/{name}/config."""
    config = call.object().get("config")
    check_units(config)
    assert isinstance(config, dict), "checked"
    return await _update(desk, call, config, units=True)


async def _update(desk: Desk, call: Call, body: Mapping[str, Any], *, units: bool) -> Any:
    name = call.path["name"]
    given = {key: body[key] for key in _CONFIG if body.get(key) is not None}
    if not given:
        raise invalid(f"the body has none of {', '.join(_CONFIG)}")
    check_idle(desk, name)
    record = desk.record(name)
    parts, secrets = accepted({"config": given})
    config = _merged(record, parts["config"])
    block = {**goals.written_block(record), "config": config}
    judged = goals.resolved(block, record, desk.source.site(), units=units)
    wanted = {"name": name, "config": goals.as_judged(judged)["config"]}
    _check_kind(record, wanted["config"])
    check_secrets(desk, call.caller, given)
    check_hosts(desk, call.caller, judged, record)
    check_idle(desk, name)
    before = goals.config_digest(record)
    await desk.promise(Update(name, wanted, before, time.time(), call.caller.name, units), secrets)
    return show(desk, name, call.caller)


def check_idle(desk: Desk, name: str) -> None:
    """R13: one update at a time. Raises Refusal."""
    update = desk.ledger.get(name)
    if update is not None and update.status is Status.IN_PROGRESS:
        raise conflict(f"an update of {name!r} is in progress: wait for it, or cancel it")


def _merged(record: EndpointRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and of the config that is active what is not: absent entities stay, and so do the routes
    where the entities do."""
    active = goals.written_block(record).get("config", {})
    if "served_entities" in given or "served_models" in given:
        kept = (
            {"auto_capture_config": active["auto_capture_config"]} if "auto_capture_config" in active else {}
        )
        return {**kept, **given}
    if not active:
        raise invalid("the endpoint has no served entities yet: give served_entities")
    return {**active, **given}


def _check_kind(record: EndpointRecord, config: Mapping[str, Any]) -> None:
    """R5: an endpoint of external models stays one, and one of others never becomes one. `config` is one that
    keeps the rules, so its entities are of one kind. Raises Refusal."""
    active = goals.written_block(record).get("config", {}).get("served_entities", [])
    if active and ("external_model" in active[0]) != ("external_model" in config["served_entities"][0]):
        raise invalid(
            "an endpoint with external models cannot lose them, nor can one without get any: "
            "make another endpoint"
        )


async def cancel(desk: Desk, call: Call) -> Any:
    """POST /{name}/cancel-update: what is not active yet is given up; what serves goes on serving."""
    name = call.path["name"]
    update = desk.ledger.get(name)
    if update is None or update.status is not Status.IN_PROGRESS:
        desk.record(name)
        raise conflict(f"no update of {name!r} is in progress")
    message = f"canceled by {call.caller.name}"
    record = desk.view.state(now=True).endpoints.get(name)
    if record is not None and goals.has_config(record, update):
        raise conflict(f"the update of {name!r} is done: its config is active")
    if record is None:
        # It was not made yet, since somebody holds the lock, and now it never will be.
        reply = show(desk, name, call.caller)
        if desk.ledger.end(update, None):
            await desk.look_again(name)
            return {**reply, "state": {"ready": "NOT_READY", "config_update": str(Status.CANCELED)}}
        raise conflict(f"the update of {name!r} is over by now")
    if desk.ledger.end(update, update.ended(Status.CANCELED, message, {})):
        await desk.look_again(name)
    return show(desk, name, call.caller)


async def delete(desk: Desk, call: Call) -> Any:
    """DELETE /{name}; an update of it is given up."""
    name = call.path["name"]
    record = desk.view.state().endpoints.get(name)
    if record is not None and record.protected:
        raise invalid(f"{name!r} is protected by lifecycle.prevent_destroy of bundle {record.owner!r}")
    update = desk.ledger.get(name)
    if record is None and update is None:
        raise no_endpoint(name)
    if update is not None and update.status is Status.IN_PROGRESS:
        desk.ledger.end(update, update.ended(Status.CANCELED, "the endpoint is being deleted", {}))
    await desk.delete(name, call.caller.name)
    return {}
