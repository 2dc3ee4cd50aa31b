"""Endpoints as the serving API answers with them: ServingEndpointDetailed, and the shorter form of lists.

Pure: everything comes in. What a reply never holds is left out where the record is made: no plaintext, and no
reference to a secret that a request brought along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from servestate.planner.access import ANONYMOUS, Level
from servestate.planner.spec.complete import default_name
from servestate.planner.spec.endpoint import ServedEntity
from servestate.planner.spec.written import written_form
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord, State, Target
from servestate.providers.kept_secrets import without_kept
from servestate.runtime.api.ledger import EntityNote, Status, Update
from servestate.runtime.supervision import Supervised

_CREATING = EntityNote("DEPLOYMENT_CREATING")
_READY = EntityNote("DEPLOYMENT_READY")
_NOBODY = Stamp(ANONYMOUS, 0.0, "")


def detailed(
    id: str,
    record: EndpointRecord,
    state: State,
    update: Update | None,
    supervised: Mapping[str, Supervised],
    level: Level,
) -> dict[str, Any]:
    """One endpoint, whole."""
    block = written_form(json.loads(record.block), [target.entity for target in record.targets])
    notes = {target.entity: _note(record, target, state, supervised) for target in record.targets}
    reply = _common(id, record, block, update, notes, level)
    if record.targets and "config" in block:
        reply["config"] = _config(block["config"], notes, _changed(record))
        reply["config"]["config_version"] = record.config_version
    if update is not None and _is_pending(update, record, block):
        reply["pending_config"] = _pending(update, record)
    if task := _task(record, state, update):
        reply["task"] = task
    return reply


def listed(
    id: str,
    record: EndpointRecord,
    state: State,
    update: Update | None,
    supervised: Mapping[str, Supervised],
) -> dict[str, Any]:
    """One endpoint, as an item of a list."""
    block = written_form(json.loads(record.block), [target.entity for target in record.targets])
    notes = {target.entity: _note(record, target, state, supervised) for target in record.targets}
    reply = _common(id, record, block, update, notes, Level.NONE)
    for key in ("route_optimized", "permission_level", "email_notifications"):
        reply.pop(key, None)
    if record.targets and "config" in block:
        kept = ("name", "entity_name", "entity_version", "external_model")
        entities = [
            {key: entity[key] for key in kept if key in entity}
            for entity in block["config"]["served_entities"]
        ]
        reply["config"] = {"served_entities": without_kept(entities)}
    if task := _task(record, state, update):
        reply["task"] = task
    return reply


def _common(
    id: str,
    record: EndpointRecord,
    block: Mapping[str, Any],
    update: Update | None,
    notes: Mapping[str, EntityNote],
    level: Level,
) -> dict[str, Any]:
    history = record.history
    created = history.created if history is not None else _NOBODY
    ready = bool(record.targets) and all(note.deployment == _READY.deployment for note in notes.values())
    reply: dict[str, Any] = {
        "name": record.name,
        "id": id,
        "state": {
            "ready": "READY" if ready else "NOT_READY",
            "config_update": str(update.status) if update is not None else "NOT_UPDATING",
        },
        "creator": created.by,
        "creation_timestamp": _ms(created),
        "last_updated_timestamp": _ms(_changed(record)),
        "tags": block.get("tags", []),
        "description": block.get("description", ""),
        "route_optimized": block.get("route_optimized", False),
        "permission_level": level.name,
    }
    for key in ("ai_gateway", "email_notifications", "budget_policy_id", "telemetry_config"):
        if key in block:
            reply[key] = block[key]
    return reply


def _config(config: Mapping[str, Any], notes: Mapping[str, EntityNote], made: Stamp) -> dict[str, Any]:
    """A config with the state of each entity."""
    entities = [_entity(entity, notes.get(entity["name"], _CREATING), made) for entity in _named(config)]
    reply: dict[str, Any] = {"served_entities": without_kept(entities)}
    for key in ("traffic_config", "auto_capture_config"):
        if key in config:
            reply[key] = config[key]
    return reply


def _named(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        entity
        if entity.get("name")
        else {**entity, "name": default_name(ServedEntity.model_validate(entity))}
        for entity in config["served_entities"]
    ]


def _entity(entity: Mapping[str, Any], note: EntityNote, made: Stamp) -> dict[str, Any]:
    state = {"deployment": note.deployment, "deployment_state_message": note.message}
    return {**entity, "creator": made.by, "creation_timestamp": _ms(made), "state": state}


def _is_pending(update: Update, record: EndpointRecord, block: Mapping[str, Any]) -> bool:
    """Whether its config is still to come. One that is active already is in progress until the router routes
    by it, and no longer pending."""
    if update.status is Status.IN_PROGRESS and record.targets:
        return block.get("config") != update.config
    return update.status is not Status.CANCELED


def _pending(update: Update, record: EndpointRecord) -> dict[str, Any]:
    made = Stamp(update.by, update.started, "")
    config = _config(update.config, update.entities, made)
    return {**config, "config_version": record.config_version + 1, "start_time": _ms(made)}


def _note(
    record: EndpointRecord, target: Target, state: State, supervised: Mapping[str, Supervised]
) -> EntityNote:
    """How an entity of the active config fares."""
    if not target.instances:
        return _CREATING
    if not all(address in state.instances for address in target.instances):
        return EntityNote("DEPLOYMENT_RECOVERING", "it is being replaced")
    one = supervised.get(f"{record.name}/{target.entity}")
    if one is not None and one.backoff.healthy_since is None:
        first = one.reason.partition("\n")[0]
        return EntityNote("DEPLOYMENT_RECOVERING", first or "it has ended and is started again")
    return _READY


def _task(record: EndpointRecord, state: State, update: Update | None) -> str:
    """The task that all entities share; "" where they do not, or nothing is active."""
    addresses = [address for target in record.targets for address in target.instances]
    tasks = {state.instances[a].spec.task for a in addresses if a in state.instances}
    return tasks.pop() if len(tasks) == 1 else ""


def _changed(record: EndpointRecord) -> Stamp:
    return record.history.changed if record.history is not None else _NOBODY


def _ms(stamp: Stamp) -> int:
    return int(stamp.at * 1000)
