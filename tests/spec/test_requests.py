"""Create bodies as clients of the serving API send them are desired state: the same fields, under a key."""

import json
from typing import Any

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Desired, Document, load
from servestate.planner.spec.normal import normal_form

SITE = """
servestate:
  models:
    catalog.schema.model-A: {versions: {"1": {engine: command, argv: [serve, "{port}"]}}}
    catalog.schema.model-B: {versions: {"1": {engine: command, argv: [serve, "{port}"]}}}
    system.ai.mistral_7b_instruct_v0_1: {versions: {"2": {engine: llamacpp, source: "file://m.gguf"}}}
    system.ai.mixtral_8x7b_instruct_v0_1: {versions: {"3": {engine: llamacpp, source: "file://x.gguf"}}}
    ml.llm-catalog.foundation-model: {task: llm/v1/chat, versions: {3: {engine: llamacpp, source: "file://f"}}}
"""


def custom(name: str, model: str) -> dict[str, Any]:
    return {
        "name": name,
        "entity_name": model,
        "entity_version": "1",
        "workload_size": "Small",
        "scale_to_zero_enabled": True,
    }


def throughput(name: str, model: str, version: str, maximum: int) -> dict[str, Any]:
    return {
        "name": name,
        "entity_name": model,
        "entity_version": version,
        "min_provisioned_throughput": 0,
        "max_provisioned_throughput": maximum,
    }


def routes(**percentages: str | int) -> dict[str, Any]:
    return {"routes": [{"served_model_name": n, "traffic_percentage": p} for n, p in percentages.items()]}


TWO_CUSTOM = {
    "name": "multi-model",
    "config": {
        "served_entities": [
            custom("current", "catalog.schema.model-A"),
            custom("challenger", "catalog.schema.model-B"),
        ],
        "traffic_config": routes(current="90", challenger="10"),
    },
}
MISTRAL, MIXTRAL = "mistral_7b_instruct_v0_1-2", "mixtral_8x7b_instruct_v0_1-3"
THROUGHPUT = {
    "name": "multi-pt-model",
    "config": {
        "served_entities": [
            throughput(MISTRAL, "system.ai.mistral_7b_instruct_v0_1", "2", 1940),
            throughput(MIXTRAL, "system.ai.mixtral_8x7b_instruct_v0_1", "3", 1240),
        ],
        "traffic_config": routes(**{MISTRAL: "60", MIXTRAL: "40"}),
    },
}
UNNAMED = {
    "name": "prov-throughput-endpoint",
    "config": {
        "served_entities": [
            {
                "entity_name": "ml.llm-catalog.foundation-model",
                "entity_version": 3,
                "min_provisioned_throughput": 3160,
                "max_provisioned_throughput": 4740,
            }
        ]
    },
}


def external(name: str, model: str, provider: str, task: str, key: str) -> dict[str, Any]:
    config = {f"{provider}_api_key": f"{{{{secrets/{key}/{provider}_api_key}}}}"}
    return {
        "name": name,
        "external_model": {"name": model, "provider": provider, "task": task, f"{provider}_config": config},
    }


MIXED_PROVIDERS = {
    "name": "mix-chat-endpoint",
    "config": {
        "served_entities": [
            external("served_model_name_1", "gpt-4", "openai", "llm/v1/chat", "my_openai_secret_scope"),
            external("served_model_name_2", "claude-3-opus-20240229", "anthropic", "llm/v1/chat", "my_scope"),
        ],
        "traffic_config": routes(served_model_name_1=50, served_model_name_2=50),
    },
}
EMBEDDINGS = {
    "name": "openai_endpoint",
    "config": {
        "served_entities": [
            external("openai_embeddings", "text-embedding-ada-002", "openai", "llm/v1/embeddings", "my_scope")
        ]
    },
    "rate_limits": [{"calls": 100, "key": "user", "renewal_period": "minute"}],
    "tags": [{"key": "team", "value": "gen-ai"}],
}


def load_body(body: dict[str, Any]) -> Desired:
    """JSON is YAML: the body goes under its key as it is."""
    bundle = {"resources": {"model_serving_endpoints": {"my_key": body}}}
    return load([Document("site.yaml", SITE), Document("body.yaml", json.dumps(bundle))])


def refused(body: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        load_body(body)
    return [f"{finding.code} {finding.what}" for finding in caught.value.diagnostics]


def test_two_custom_models() -> None:
    desired = load_body(TWO_CUSTOM)
    (endpoint,) = desired.endpoints
    assert endpoint.key == "my_key"
    assert endpoint.spec.weights == {"current": 90, "challenger": 10}
    assert [e.entity_name for e in endpoint.spec.entities] == [
        "catalog.schema.model-A",
        "catalog.schema.model-B",
    ]
    assert [w.code for w in desired.warnings] == ["SS141"]


def test_provisioned_throughput_is_served_without_the_bound() -> None:
    desired = load_body(THROUGHPUT)
    assert desired.endpoints[0].spec.weights == {MISTRAL: 60, MIXTRAL: 40}
    assert [w.code for w in desired.warnings] == ["SS142", "SS142"]


def test_an_unnamed_entity_gets_its_default_name_and_all_traffic() -> None:
    (endpoint,) = load_body(UNNAMED).endpoints
    assert endpoint.spec.entities[0].name == "foundation-model-3"
    assert endpoint.spec.entities[0].entity_version == "3"
    assert endpoint.spec.weights == {"foundation-model-3": 100}


def test_a_provider_that_is_not_supported_yet_is_refused_by_name() -> None:
    assert refused(MIXED_PROVIDERS) == ['SS130 the external provider "anthropic" is not supported yet']


def test_a_limit_of_calls_is_part_of_what_is_desired() -> None:
    (endpoint,) = load_body(EMBEDDINGS).endpoints
    assert normal_form(endpoint.spec) == {
        "name": "openai_endpoint",
        "description": "",
        "route_optimized": False,
        "tags": {"team": "gen-ai"},
        "config": {
            "served_entities": [
                {
                    "name": "openai_embeddings",
                    "external_model": {
                        "provider": "openai",
                        "name": "text-embedding-ada-002",
                        "task": "llm/v1/embeddings",
                        "openai_config": {"openai_api_key": "{{secrets/my_scope/openai_api_key}}"},
                    },
                }
            ],
            "routes": {"openai_embeddings": 100},
        },
        "rate_limits": {"user": {"calls": 100, "key": "user", "renewal_period": "minute"}},
    }


@pytest.mark.parametrize("percentages", [("50", "50"), (50, "50"), (0, 100), ("100", 0)])
def test_a_changed_split_changes_nothing_but_the_routes(percentages: tuple[str | int, str | int]) -> None:
    changed = json.loads(json.dumps(TWO_CUSTOM))
    changed["config"]["traffic_config"] = routes(current=percentages[0], challenger=percentages[1])
    before, after = (normal_form(load_body(body).endpoints[0].spec) for body in (TWO_CUSTOM, changed))
    assert after["config"].pop("routes") == {
        "current": int(percentages[0]),
        "challenger": int(percentages[1]),
    }
    del before["config"]["routes"]
    assert before == after
