"""What the serving API offers and this version does not do yet.

A field that promises protection or a limit is honoured or refused, never just stored; a field that only makes
things cheaper or prettier is accepted with a note.
"""

from __future__ import annotations

from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.external_rules import externals
from servestate.planner.spec.report import Report

PROVIDERS = ("openai", "custom", "databricks-model-serving")
TASKS = ("llm/v1/chat", "llm/v1/completions", "llm/v1/embeddings")

_AZURE_TYPES = ("azure", "azuread", "azure_ad")
_AZURE_FIELDS = (
    "openai_api_version",
    "openai_deployment_name",
    "microsoft_entra_client_id",
    "microsoft_entra_tenant_id",
    "microsoft_entra_client_secret",
    "microsoft_entra_client_secret_plaintext",
)
_CAPACITY = (
    "min_provisioned_throughput",
    "max_provisioned_throughput",
    "min_provisioned_concurrency",
    "max_provisioned_concurrency",
)


def provider(endpoint: Endpoint, report: Report) -> None:
    """Providers whose wire format is not spoken yet."""
    for model, at in externals(endpoint):
        if model.provider not in PROVIDERS:
            what = f'the external provider "{model.provider}" is not supported yet'
            fix = (
                f"use one of {', '.join(PROVIDERS)}; many servers are reached as openai with openai_api_base"
            )
            report.error("SS130", what, fix, *at, "provider")


def azure(endpoint: Endpoint, report: Report) -> None:
    """OpenAI models behind Azure."""
    for model, at in externals(endpoint):
        config = model.openai_config
        if config is None:
            continue
        used = [field for field in _AZURE_FIELDS if getattr(config, field)]
        if config.openai_api_type.lower() in _AZURE_TYPES:
            used.insert(0, "openai_api_type")
        if used:
            what = f"{used[0]}: OpenAI models behind Azure are not supported yet"
            fix = f"remove {', '.join(used)}, and give openai_api_base if it is not the public API"
            report.error("SS131", what, fix, *at, "openai_config", used[0])


def task(endpoint: Endpoint, report: Report) -> None:
    """Tasks that have no known path and shape."""
    for model, at in externals(endpoint):
        if model.task not in TASKS:
            report.error(
                "SS132",
                "the task of this external model is not supported",
                f"use one of {', '.join(TASKS)}",
                *at,
                "task",
            )


def guardrails(endpoint: Endpoint, report: Report) -> None:
    """What would need another model to judge it."""
    gateway = endpoint.ai_gateway
    if gateway is None or gateway.guardrails is None:
        return
    for side in ("input", "output"):
        parameters = getattr(gateway.guardrails, side)
        for field in ("safety", "valid_topics"):
            if parameters is not None and getattr(parameters, field):
                what = f"{field} of {side} guardrails is not supported yet, so it would not guard anything"
                fix = "remove it; pii and invalid_keywords are looked for"
                report.error("SS135", what, fix, "ai_gateway", "guardrails", side, field)


def model_units(endpoint: Endpoint, report: Report) -> None:
    """R20: model units belong to another kind of endpoint."""
    for index, entity in enumerate(endpoint.entities):
        if entity.provisioned_model_units is not None:
            what = "provisioned_model_units are not supported yet"
            fix = "use min_provisioned_throughput and max_provisioned_throughput"
            report.error("SS137", what, fix, "config", "served_entities", index, "provisioned_model_units")


def old_spelling(endpoint: Endpoint, report: Report) -> None:
    """R8: served_models alone are converted, with a warning."""
    if report.is_written("config", "served_models"):
        report.note(
            "SS140",
            "served_models is deprecated; it is read as served_entities",
            "rename it",
            "config",
            "served_entities",
        )


def scale_to_zero(endpoint: Endpoint, report: Report) -> None:
    """Instances stay up, which serves the same."""
    for index, entity in enumerate(endpoint.entities):
        if entity.scale_to_zero_enabled:
            what = "scale_to_zero_enabled has no effect yet: instances are kept running, and serve"
            report.note("SS141", what, "", *_entity(index), "scale_to_zero_enabled")


def capacity(endpoint: Endpoint, report: Report) -> None:
    """Bounds of throughput and concurrency."""
    for index, entity in enumerate(endpoint.entities):
        for field in _CAPACITY:
            if getattr(entity, field) is not None:
                what = f"{field} has no effect yet: requests are served without that bound"
                report.note(
                    "SS142",
                    what,
                    "",
                    *_entity(index),
                    field,
                )


def instance_profile(endpoint: Endpoint, report: Report) -> None:
    """Means something on AWS only."""
    for index, entity in enumerate(endpoint.entities):
        if entity.instance_profile_arn:
            what = "instance_profile_arn has no effect here: it is kept, and means something on AWS only"
            fix = "give the model its access through environment_vars"
            report.note("SS143", what, fix, *_entity(index), "instance_profile_arn")


def _entity(index: int) -> tuple[str, str, int]:
    return ("config", "served_entities", index)


def route_optimized(endpoint: Endpoint, report: Report) -> None:
    """There is only one path."""
    if endpoint.route_optimized:
        what = "route_optimized has no effect here: there is no slower path"
        report.note("SS145", what, "", "route_optimized")


def no_config(endpoint: Endpoint, report: Report) -> None:
    """N12: an endpoint without a config serves nothing, or goes on with what it has."""
    if endpoint.config is None:
        what = "an endpoint has no config: nothing about its models changes"
        report.note("SS146", what, "add config.served_entities, or remove the block to delete the endpoint")
