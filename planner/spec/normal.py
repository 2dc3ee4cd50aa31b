"""The normal form of an endpoint: two blocks mean the same exactly when their normal forms are equal.

Implements N1 to N8 and N11 of the serving API: defaults filled, numbers as numbers, tags and routes as maps,
empty parts left out, nothing that is write-only.
"""

from __future__ import annotations

from typing import Any

from servestate.planner.spec.endpoint import Endpoint, EndpointConfig, ServedEntity
from servestate.planner.spec.external import ExternalModel
from servestate.planner.spec.gateway import AiGateway, InferenceTableConfig

_OPTIONAL = (
    "min_provisioned_concurrency",
    "max_provisioned_concurrency",
    "min_provisioned_throughput",
    "max_provisioned_throughput",
    "provisioned_model_units",
    "instance_profile_arn",
)


def normal_form(endpoint: Endpoint) -> dict[str, Any]:
    """`endpoint`, which `load()` has completed, as plain JSON values. What is not set is left out.

    Left out as well, because it is never compared (N8): `burst_scaling_enabled`. `rate_limits` of the old
    spelling and `budget_policy_id` are in it, though the vendor's API does not return them: here the first is
    enforced and the second is echoed, so a change of either is one.
    """
    form: dict[str, Any] = {
        "name": endpoint.name,
        "description": endpoint.description,
        "route_optimized": endpoint.route_optimized,
        "tags": {tag.key: tag.value for tag in endpoint.tags},
    }
    if endpoint.config is not None:
        form["config"] = _config(endpoint.config, ordered=endpoint.fallback)
    if endpoint.ai_gateway is not None and (gateway := _gateway(endpoint.ai_gateway)):
        form["ai_gateway"] = gateway
    _put(form, "rate_limits", {limit.key: _given(limit) for limit in endpoint.rate_limits})
    _put(form, "budget_policy_id", endpoint.budget_policy_id)
    if endpoint.email_notifications is not None:
        _put(form, "email_notifications", _given(endpoint.email_notifications))
    if endpoint.telemetry_config is not None:
        _put(form, "telemetry_config", _given(endpoint.telemetry_config))
    if endpoint.lifecycle is not None:
        _put(form, "lifecycle", _given(endpoint.lifecycle))
    if endpoint.permissions:
        form["permissions"] = sorted(
            (_given(p) for p in endpoint.permissions), key=lambda p: sorted(p.items())
        )
    return form


def _put(form: dict[str, Any], key: str, value: Any) -> None:
    if value:
        form[key] = value


def _config(config: EndpointConfig, ordered: bool) -> dict[str, Any]:
    entities = [_entity(entity) for entity in config.served_entities]
    if not ordered:
        entities.sort(key=lambda entity: str(entity["name"]))
    form: dict[str, Any] = {"served_entities": entities}
    if config.traffic_config is not None:
        form["routes"] = {route.entity: route.traffic_percentage for route in config.traffic_config.routes}
    if config.auto_capture_config is not None:
        _put(form, "auto_capture_config", _table(config.auto_capture_config))
    return form


def _entity(entity: ServedEntity) -> dict[str, Any]:
    if entity.external_model is not None:
        form: dict[str, Any] = {"name": entity.name, "external_model": _external(entity.external_model)}
    else:
        form = {
            "name": entity.name,
            "entity_name": entity.entity_name,
            "entity_version": entity.entity_version,
            "workload_type": entity.workload_type,
            "scale_to_zero_enabled": entity.scale_to_zero_enabled,
        }
        if _needs_size(entity):
            form["workload_size"] = entity.workload_size or "Small"
    for name in _OPTIONAL:
        if (value := getattr(entity, name)) not in (None, ""):
            form[name] = value
    if entity.environment_vars:
        form["environment_vars"] = dict(entity.environment_vars)
    return form


def _needs_size(entity: ServedEntity) -> bool:
    """The API fills a size in unless capacity is given in another way."""
    return (
        entity.min_provisioned_concurrency is None
        and entity.max_provisioned_concurrency is None
        and entity.max_provisioned_throughput is None
        and entity.provisioned_model_units is None
    )


def _external(model: ExternalModel) -> dict[str, Any]:
    form = _given(model)
    if bedrock := form.get("amazon_bedrock_config"):
        bedrock["bedrock_provider"] = bedrock["bedrock_provider"].lower()
    return form


def _given(model: Any) -> dict[str, Any]:
    """The fields that hold something, without write-only ones (`*_plaintext`)."""
    return _pruned(model.model_dump(mode="json"))


def _pruned(form: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in form.items():
        below = _pruned(value) if isinstance(value, dict) else value
        if below not in (None, "", [], {}, False) and not key.endswith("_plaintext"):
            kept[key] = below
    return kept


def _gateway(gateway: AiGateway) -> dict[str, Any]:
    form = _pruned(
        gateway.model_dump(mode="json", exclude={"rate_limits", "inference_table_config", "guardrails"})
    )
    limits = {f"{x.key}:{x.principal}": _given(x) for x in gateway.rate_limits}
    _put(form, "rate_limits", limits)
    if gateway.inference_table_config is not None:
        _put(form, "inference_table_config", _table(gateway.inference_table_config))
    if gateway.guardrails is not None:
        sides = {"input": gateway.guardrails.input, "output": gateway.guardrails.output}
        _put(
            form, "guardrails", {side: _given(g) for side, g in sides.items() if g is not None and g.enabled}
        )
    return form


def _table(table: InferenceTableConfig) -> dict[str, Any]:
    """Names of a table that is switched off mean nothing."""
    return _given(table) if table.enabled else {}
