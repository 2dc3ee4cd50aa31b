"""Bodies of create calls that are refused, by the rule that each breaks, and of those that this version does
not do yet."""

from __future__ import annotations

from typing import Any

from tests.clients.harness import CHAT, TOKENS, UNITS, endpoint, external, hosted

NOWHERE = "http://127.0.0.1:1"


def two(**shares: int) -> dict[str, Any]:
    return endpoint("refused", hosted("a", CHAT), hosted("b", CHAT, "2"), **shares)


def one(**more: Any) -> dict[str, Any]:
    """A create body whose entity has further fields."""
    return endpoint("refused", {**hosted("a", CHAT), **more})


def sized(**more: Any) -> dict[str, Any]:
    """A create body of an entity that says in other words how large it is."""
    model = more.pop("model", TOKENS)
    return endpoint("refused", {"entity_name": model, "entity_version": "1", **more})


def abroad(**more: Any) -> dict[str, Any]:
    """A create body of an external model with further fields; None takes one away."""
    entity = external("a", NOWHERE)
    changed = {**entity["external_model"], **more}
    entity["external_model"] = {key: value for key, value in changed.items() if value is not None}
    return endpoint("refused", entity)


def with_routes(*routes: dict[str, Any]) -> dict[str, Any]:
    body = two(a=50, b=50)
    body["config"]["traffic_config"] = {"routes": list(routes)}
    return body


def route(name: str, share: Any, **more: Any) -> dict[str, Any]:
    return {"served_model_name": name, "traffic_percentage": share, **more}


def limited(*limits: dict[str, Any]) -> dict[str, Any]:
    every = [{"renewal_period": "minute", **limit} for limit in limits]
    return {**endpoint("refused", external("a", NOWHERE)), "ai_gateway": {"rate_limits": every}}


def gateway(**part: Any) -> dict[str, Any]:
    return {**endpoint("refused", external("a", NOWHERE)), "ai_gateway": part}


COHERE = {"provider": "cohere", "openai_config": None, "cohere_config": {"cohere_api_key": "{{secrets/a/b}}"}}
ANTHROPIC = {
    "provider": "anthropic",
    "openai_config": None,
    "anthropic_config": {"anthropic_api_key": "{{secrets/a/b}}"},
}
REFUSED: dict[str, dict[str, Any]] = {
    "R1 no name": {"config": two(a=50, b=50)["config"]},
    "R1 empty": {**one(), "name": ""},
    "R1 long": {**one(), "name": "a" * 64},
    "R1 alphabet": {**one(), "name": "a b"},
    "R1 dots": {**one(), "name": "a.b"},
    "R1 reserved": {**one(), "name": "pt"},
    "R1 reserved too": {**one(), "name": "get-model-optimization-info"},
    "R2 both kinds": endpoint("refused", hosted("a", CHAT), external("b", NOWHERE), a=50, b=50),
    "R3 two tasks": endpoint(
        "refused", external("a", NOWHERE), external("b", NOWHERE, "llm/v1/completions"), a=50, b=50
    ),
    "R4 entity_name": endpoint("refused", {**external("a", NOWHERE), "entity_name": CHAT}),
    "R4 workload_size": endpoint("refused", {**external("a", NOWHERE), "workload_size": "Small"}),
    "R6 names twice": endpoint("refused", hosted("a", CHAT), hosted("a", CHAT, "2"), a=100),
    "R6 alphabet": endpoint("refused", hosted("a/b", CHAT)),
    "R7 none": endpoint("refused"),
    "R7 eleven": endpoint("refused", *(hosted(f"e{n}", CHAT) for n in range(11)), e0=100),
    "R8 both spellings": {
        "name": "refused",
        "config": {
            "served_entities": [hosted("a", CHAT)],
            "served_models": [
                {"model_name": CHAT, "model_version": "1", "scale_to_zero_enabled": False, "name": "a"}
            ],
        },
    },
    "R9 above 100": with_routes(route("a", 101), route("b", 0)),
    "R9 below 0": with_routes(route("a", -1), route("b", 101)),
    "R9 fraction": with_routes(route("a", 50.5), route("b", 49.5)),
    "R9 flag": with_routes(route("a", True), route("b", 99)),
    "R9 text": with_routes(route("a", "half"), route("b", 50)),
    "R10 stranger": with_routes(route("a", 50), route("c", 50)),
    "R10 not all": with_routes(route("a", 100)),
    "R10 twice": with_routes(route("a", 50), route("a", 25), route("b", 25)),
    "R10 two names": with_routes(route("a", 50, served_entity_name="b"), route("b", 50)),
    "R10 sum": two(a=90, b=20),
    "R11 no routes": two(),
    "R16 size twice": one(min_provisioned_concurrency=4, max_provisioned_concurrency=4),
    "R16 order": sized(model=CHAT, min_provisioned_concurrency=8, max_provisioned_concurrency=4),
    "R17 no max": sized(min_provisioned_throughput=100),
    "R18 step": sized(min_provisioned_throughput=0, max_provisioned_throughput=150),
    "R18 order": sized(min_provisioned_throughput=200, max_provisioned_throughput=100),
    "R18 nothing": sized(min_provisioned_throughput=0, max_provisioned_throughput=0),
    "R19 not eligible": sized(model=CHAT, min_provisioned_throughput=0, max_provisioned_throughput=100),
    "R20 other call": sized(model=UNITS, provisioned_model_units=50),
    "R21 no catalog": gateway(inference_table_config={"enabled": True}),
    "R22 hour": limited({"renewal_period": "hour", "calls": 1}),
    "R22 limits nothing": limited({"key": "user"}),
    "R22 zero": limited({"calls": 0}),
    "R22 whose": limited({"calls": 1, "key": "user_group"}),
    "R22 nobody's": limited({"calls": 1, "key": "endpoint", "principal": "ada@example.com"}),
    "R22 twice": limited({"calls": 1}, {"calls": 2, "key": "endpoint"}),
    "R23 no config": abroad(openai_config=None),
    "R23 other config": abroad(provider="custom"),
    "R23 two configs": abroad(cohere_config={"cohere_api_key": "{{secrets/a/b}}"}),
    "R23 both keys": abroad(
        openai_config={"openai_api_key": "{{secrets/demo/key}}", "openai_api_key_plaintext": "k"}
    ),
    "R23 no key": abroad(openai_config={"openai_api_base": NOWHERE}),
    "kinds of size": one(workload_size="Tiny"),
    "kinds of machine": one(workload_type="TPU"),
}
NOT_YET: dict[str, dict[str, Any]] = {
    "safety": gateway(guardrails={"input": {"safety": True}}),
    "topics": gateway(guardrails={"output": {"valid_topics": ["law"]}}),
    "anthropic": abroad(**ANTHROPIC),
    "cohere": abroad(**COHERE),
    "azure": abroad(openai_config={"openai_api_key": "{{secrets/demo/key}}", "openai_api_type": "azure"}),
}
