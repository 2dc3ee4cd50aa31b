"""The normal form of an endpoint back in the shape of the serving API: for replies, exports, and for changing
one part of what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def written_form(form: Mapping[str, Any], order: Sequence[str] = ()) -> dict[str, Any]:
    """The block whose normal form is `form`; what was never set is left out. Entities and routes stand in the
    `order` of the names given, which the normal form does not keep."""
    block: dict[str, Any] = {"name": form["name"]}
    for key in ("description", "route_optimized"):
        if form.get(key):
            block[key] = form[key]
    if form.get("tags"):
        block["tags"] = [{"key": key, "value": value} for key, value in form["tags"].items()]
    if "config" in form:
        block["config"] = _config(form["config"], order)
    if "ai_gateway" in form:
        block["ai_gateway"] = _gateway(form["ai_gateway"])
    if "rate_limits" in form:
        block["rate_limits"] = list(form["rate_limits"].values())
    for key in ("budget_policy_id", "email_notifications", "telemetry_config", "lifecycle", "permissions"):
        if key in form:
            block[key] = form[key]
    return block


def _config(form: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    place = {name: index for index, name in enumerate(order)}
    entities = sorted(form["served_entities"], key=lambda e: place.get(e["name"], len(place)))
    config: dict[str, Any] = {"served_entities": [dict(entity) for entity in entities]}
    if "routes" in form:
        routes = sorted(form["routes"].items(), key=lambda r: place.get(r[0], len(place)))
        config["traffic_config"] = {"routes": [_route(name, share) for name, share in routes]}
    if "auto_capture_config" in form:
        config["auto_capture_config"] = dict(form["auto_capture_config"])
    return config


def _route(name: str, share: int) -> dict[str, Any]:
    """Under both names, as the API answers."""
    return {"served_model_name": name, "served_entity_name": name, "traffic_percentage": share}


def _gateway(form: Mapping[str, Any]) -> dict[str, Any]:
    limits = form.get("rate_limits")
    return {**form, "rate_limits": list(limits.values())} if limits else dict(form)
