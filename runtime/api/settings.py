"""What an endpoint has beside its config, changed one kind at a time; nothing is started or stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servestate.runtime.api import goals
from servestate.runtime.api.call import Call, invalid
from servestate.runtime.api.desk import Desk
from servestate.runtime.api.endpoints import check_idle
from servestate.runtime.api.reading import show


async def patch_tags(desk: Desk, call: Call) -> Any:
    """PATCH /{name}/tags."""
    body = call.object()
    added, deleted = _listed(body, "add_tags"), _listed(body, "delete_tags")
    if not all(isinstance(key, str) for key in deleted):
        raise invalid("delete_tags must be a list of keys")
    if not all(isinstance(tag, dict) and isinstance(tag.get("key"), str) for tag in added):
        raise invalid("add_tags must be a list of tags, each with a key")

    def change(block: dict[str, Any]) -> None:
        tags = {tag["key"]: tag for tag in block.get("tags", [])}
        for key in deleted:
            tags.pop(key, None)
        tags |= {tag["key"]: {"key": tag["key"], "value": tag.get("value") or ""} for tag in added}
        block["tags"] = list(tags.values())

    await desk.edit(call.path["name"], change, call.caller.name)
    return {"tags": show(desk, call.path["name"], call.caller)["tags"]}


def _listed(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(f"{key} must be a list")
    return value


async def put_rate_limits(desk: Desk, call: Call) -> Any:
    """PUT /{name}/rate-limits, the old spelling."""
    limits = _listed(call.object(), "rate_limits")

    def change(block: dict[str, Any]) -> None:
        block["rate_limits"] = limits

    await desk.edit(call.path["name"], change, call.caller.name)
    return {"rate_limits": goals.written_block(desk.record(call.path["name"])).get("rate_limits", [])}


async def put_gateway(desk: Desk, call: Call) -> Any:
    """PUT /{name}/ai-gateway: replaces all of it."""
    body = call.object()

    def change(block: dict[str, Any]) -> None:
        block["ai_gateway"] = body

    await desk.edit(call.path["name"], change, call.caller.name)
    return goals.written_block(desk.record(call.path["name"])).get("ai_gateway", {})


async def patch_notifications(desk: Desk, call: Call) -> Any:
    """PATCH /{name}/notifications."""
    wanted = call.object().get("email_notifications")

    def change(block: dict[str, Any]) -> None:
        block["email_notifications"] = wanted

    name = call.path["name"]
    await desk.edit(name, change, call.caller.name)
    return {"name": name, "email_notifications": show(desk, name, call.caller).get("email_notifications", {})}


async def patch_telemetry(desk: Desk, call: Call) -> Any:
    """PATCH /{name}/telemetry-config; without one it is removed."""
    name = call.path["name"]
    wanted = call.object().get("telemetry_config")
    check_idle(desk, name)
    active = goals.written_block(desk.record(name)).get("config", {}).get("served_entities", [])
    if not active or "external_model" in active[0]:
        raise invalid("telemetry is for endpoints that serve models of their own")

    def change(block: dict[str, Any]) -> None:
        block["telemetry_config"] = wanted

    await desk.edit(name, change, call.caller.name)
    return show(desk, name, call.caller)
