"""Two spellings of one endpoint have one normal form (N1 to N7, N11), and a real change has another."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servestate.planner.spec.bundle import Document, load
from servestate.planner.spec.complete import complete
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.normal import normal_form

NAMES = st.sampled_from(["current", "challenger", "canary", "old"])


def form(block: dict[str, Any]) -> dict[str, Any]:
    """The normal form of one block, by way of a whole bundle."""
    bundle = {"resources": {"model_serving_endpoints": {"k": block}}}
    return normal_form(load([Document("b.yaml", json.dumps(bundle))]).endpoints[0].spec)


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """A valid endpoint with everything given."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    cut = draw(st.integers(0, 100))
    percentages = [cut, 100 - cut, 0, 0] if len(names) > 1 else [100]
    entities = [
        {
            "name": name,
            "entity_name": f"c.s.{name}",
            "entity_version": draw(st.integers(1, 9)),
            "workload_size": draw(st.sampled_from(["Small", "Medium"])),
            "environment_vars": draw(
                st.dictionaries(st.sampled_from(["A", "B"]), st.text("xyz"), max_size=2)
            ),
        }
        for name in names
    ]
    routes = [
        {"served_entity_name": name, "traffic_percentage": percentage}
        for name, percentage in zip(names, percentages, strict=False)
    ]
    tags = draw(st.dictionaries(st.sampled_from(["team", "cost", "env"]), st.text("abc"), max_size=3))
    return {
        "name": "e",
        "config": {"served_entities": entities, "traffic_config": {"routes": routes}},
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }


@st.composite
def respelt(draw: st.DrawFn, block: dict[str, Any]) -> dict[str, Any]:
    """The same endpoint written otherwise: N1 aliases, N3 and N4 order, N5 types, N6 and N7 empty parts."""
    config = block["config"]
    entities = [dict(entity) for entity in config["served_entities"]]
    routes = [dict(route) for route in config["traffic_config"]["routes"]]
    for entity in entities:
        if draw(st.booleans()):
            entity["entity_version"] = str(entity["entity_version"])
        if entity["workload_size"] == "Small" and draw(st.booleans()):
            del entity["workload_size"]
        if draw(st.booleans()):
            entity |= {"workload_type": "CPU", "scale_to_zero_enabled": False, "burst_scaling_enabled": False}
    for route in routes:
        if draw(st.booleans()):
            route["traffic_percentage"] = str(route["traffic_percentage"])
        spelling = draw(st.sampled_from(["served_entity_name", "served_model_name", "both"]))
        name = route.pop("served_entity_name")
        keys = ["served_entity_name", "served_model_name"] if spelling == "both" else [spelling]
        route |= dict.fromkeys(keys, name)
    tags = [dict(tag) for tag in block["tags"]]
    for tag in tags:
        if tag["value"] == "" and draw(st.booleans()):
            del tag["value"]
    written: dict[str, Any] = {
        "name": block["name"],
        "config": {
            "served_entities": draw(st.permutations(entities)),
            "traffic_config": {"routes": draw(st.permutations(routes))},
        },
    }
    if tags or draw(st.booleans()):
        written["tags"] = draw(st.permutations(tags))
    if len(entities) == 1 and draw(st.booleans()):
        written["config"]["traffic_config"] = draw(st.sampled_from([None, {}, {"routes": []}]))
    if draw(st.booleans()):
        written["config"] = _old_spelling(written["config"])
    if draw(st.booleans()):
        written |= {
            "description": draw(st.sampled_from(["", None])),
            "route_optimized": False,
            "budget_policy_id": None,
            "ai_gateway": draw(st.sampled_from([None, {}, {"fallback_config": {"enabled": False}}])),
            "email_notifications": {"on_update_success": []},
            "lifecycle": {"prevent_destroy": "false"},
        }
    return dict(draw(st.permutations(list(written.items()))))


def _old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    renamed = {"entity_name": "model_name", "entity_version": "model_version"}
    models = [
        {"scale_to_zero_enabled": False} | {renamed.get(key, key): value for key, value in entity.items()}
        for entity in config["served_entities"]
    ]
    return {"served_models": models, "traffic_config": config["traffic_config"]}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_spelling_order_types_and_defaults_do_not_matter(data: st.DataObject) -> None:
    block = data.draw(blocks())
    assert form(data.draw(respelt(block))) == form(block)


@settings(max_examples=100, deadline=None)
@given(blocks())
def test_the_normal_form_is_json_and_stays_itself(block: dict[str, Any]) -> None:
    once = form(block)
    assert json.loads(json.dumps(once, allow_nan=False)) == once


BASE: dict[str, Any] = {
    "name": "e",
    "config": {
        "served_entities": [
            {"name": "a", "entity_name": "m", "entity_version": "1"},
            {"name": "b", "entity_name": "m", "entity_version": "2"},
        ],
        "traffic_config": {
            "routes": [
                {"served_entity_name": "a", "traffic_percentage": 90},
                {"served_entity_name": "b", "traffic_percentage": 10},
            ]
        },
    },
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**BASE, **parts}


def with_entity(**fields: Any) -> dict[str, Any]:
    block: dict[str, Any] = json.loads(json.dumps(BASE))
    block["config"]["served_entities"][0] |= fields
    return block


@pytest.mark.parametrize(
    "block",
    [
        changed(name="f"),
        changed(description="x"),
        changed(route_optimized=True),
        changed(tags=[{"key": "a"}]),
        changed(permissions=[{"level": "CAN_VIEW", "user_name": "ann"}]),
        changed(lifecycle={"prevent_destroy": True}),
        changed(email_notifications={"on_update_failure": ["a@example.com"]}),
        changed(telemetry_config={"telemetry_profile_id": "x"}),
        changed(ai_gateway={"usage_tracking_config": {"enabled": True}}),
        with_entity(entity_name="n"),
        with_entity(entity_version="3"),
        with_entity(workload_size="Large"),
        with_entity(workload_type="GPU_SMALL"),
        with_entity(scale_to_zero_enabled=True),
        with_entity(environment_vars={"A": ""}),
        with_entity(min_provisioned_throughput=0, max_provisioned_throughput=10),
        with_entity(instance_profile_arn="arn:x"),
        changed(budget_policy_id="x"),
        changed(rate_limits=[{"calls": 10, "renewal_period": "minute"}]),
    ],
    ids=range(19),
)
def test_a_real_change_shows(block: dict[str, Any]) -> None:
    assert form(block) != form(BASE)


@pytest.mark.parametrize(
    "block",
    [with_entity(burst_scaling_enabled=False)],
    ids=["burst"],
)
def test_what_is_never_compared_is_not_there(block: dict[str, Any]) -> None:
    assert form(block) == form(BASE)


def _direct(block: dict[str, Any]) -> dict[str, Any]:
    """The normal form of a block that `load` would refuse today."""
    return normal_form(complete(Endpoint.model_validate(block)))


def test_with_fallback_the_order_of_entities_matters() -> None:
    entities = BASE["config"]["served_entities"]
    turned = changed(config={**BASE["config"], "served_entities": entities[::-1]})
    gateway = {"fallback_config": {"enabled": True}}
    assert form(BASE) == form(turned)
    assert _direct(BASE | {"ai_gateway": gateway}) != _direct(turned | {"ai_gateway": gateway})


def test_gateway_limits_are_a_set_and_disabled_parts_are_nothing() -> None:
    limits = [
        {"renewal_period": "minute", "calls": "10", "key": "user"},
        {"renewal_period": "minute", "tokens": 5},
    ]
    one = _direct(BASE | {"ai_gateway": {"rate_limits": limits}})
    other = _direct(
        BASE | {"ai_gateway": {"rate_limits": limits[::-1], "guardrails": {"input": {"pii": {}}}}}
    )
    assert one == other
    off = {"inference_table_config": {"enabled": False, "catalog_name": "c"}}
    assert _direct(BASE | {"ai_gateway": off}) == _direct(BASE)


def test_bedrock_provider_has_no_case_and_plaintext_is_left_out() -> None:
    def bedrock(provider: str, **more: str) -> dict[str, Any]:
        config = {"aws_region": "r", "bedrock_provider": provider, **more}
        model = {"name": "m", "provider": "amazon-bedrock", "task": "t", "amazon_bedrock_config": config}
        return _direct({"name": "e", "config": {"served_entities": [{"external_model": model}]}})

    assert bedrock("Anthropic") == bedrock("anthropic", aws_access_key_id_plaintext="CANARY")
    assert bedrock("amazon") != bedrock("anthropic")
