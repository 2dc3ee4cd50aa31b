"""The written form is the inverse of the normal form, for everything that an endpoint may say."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from servestate.planner.spec.bundle import load
from servestate.planner.spec.complete import complete
from servestate.planner.spec.endpoint import Endpoint
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Site
from servestate.planner.spec.tree import Document
from servestate.planner.spec.written import written_form
from tests.planner.bundles import bundles, text_of
from tests.spec.test_normal_form import blocks

Block = dict[str, Any]

_TEXT = st.text("abc -", min_size=1, max_size=6)
_LIMITS = st.fixed_dictionaries(
    {"calls": st.integers(1, 99), "renewal_period": st.just("minute")},
    optional={"key": st.sampled_from(["endpoint", "user"])},
)
_GRANTS = st.builds(
    lambda level, kind, who: {"level": level, kind: who},
    st.sampled_from(["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]),
    st.sampled_from(["user_name", "group_name", "service_principal_name"]),
    _TEXT,
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "description": _TEXT,
        "route_optimized": st.booleans(),
        "budget_policy_id": _TEXT,
        "rate_limits": st.lists(_LIMITS, max_size=2, unique_by=lambda one: one.get("key", "endpoint")),
        "permissions": st.lists(_GRANTS, max_size=3),
        "lifecycle": st.fixed_dictionaries({"prevent_destroy": st.booleans()}),
        "email_notifications": st.fixed_dictionaries(
            {}, optional={"on_update_success": st.lists(_TEXT), "on_update_failure": st.lists(_TEXT)}
        ),
        "telemetry_config": st.fixed_dictionaries(
            {},
            optional={
                "telemetry_profile_id": _TEXT,
                "enabled_telemetry_features": st.lists(_TEXT, max_size=2),
                "table_names": st.fixed_dictionaries({"logs_table": _TEXT}),
            },
        ),
        "ai_gateway": st.fixed_dictionaries(
            {},
            optional={
                "rate_limits": st.lists(
                    _LIMITS, max_size=2, unique_by=lambda one: one.get("key", "endpoint")
                ),
                "usage_tracking_config": st.fixed_dictionaries({"enabled": st.booleans()}),
                "fallback_config": st.fixed_dictionaries({"enabled": st.booleans()}),
                "guardrails": st.fixed_dictionaries(
                    {"input": st.fixed_dictionaries({"safety": st.booleans()})}
                ),
                "inference_table_config": st.just(
                    {"enabled": True, "catalog_name": "main", "schema_name": "logs"}
                ),
            },
        ),
    },
)
CAPACITIES = st.sampled_from(
    [
        {},
        {"min_provisioned_concurrency": 0, "max_provisioned_concurrency": 8},
        {"min_provisioned_throughput": 0, "max_provisioned_throughput": 970},
        {"provisioned_model_units": 50},
        {"instance_profile_arn": "arn:x", "scale_to_zero_enabled": True, "workload_type": "GPU_SMALL"},
    ]
)


@st.composite
def whole(draw: st.DrawFn) -> Block:
    """An endpoint with any of the settings there are, some of which no loader takes today."""
    block: Block = {**draw(blocks()), **draw(SETTINGS)}
    capacity = draw(CAPACITIES)
    for entity in block["config"]["served_entities"]:
        if "provisioned" in str(capacity):
            del entity["workload_size"]
        entity |= capacity
    if draw(st.booleans()):
        table = {"enabled": True, "catalog_name": "c", "schema_name": "s", "table_name_prefix": "p"}
        block["config"]["auto_capture_config"] = table
    return block


def form_of(block: Block) -> Block:
    """The normal form, past the rules of what is supported."""
    return normal_form(complete(Endpoint.model_validate(block)))


def through_json(form: Block) -> Block:
    """As state keeps it."""
    found: Block = json.loads(json.dumps(form, sort_keys=True))
    return found


@settings(max_examples=200, deadline=None)
@given(whole())
def test_what_is_written_has_the_very_same_normal_form(block: Block) -> None:
    form = through_json(form_of(block))
    assert form_of(written_form(form)) == form


@settings(max_examples=100, deadline=None)
@given(whole())
def test_writing_it_twice_is_writing_it_once(block: Block) -> None:
    once = written_form(form_of(block))
    assert written_form(form_of(once)) == once


@settings(max_examples=60, deadline=None)
@given(bundles())
def test_a_bundle_comes_back_through_a_request(bundle: Block) -> None:
    desired = load([Document("b.yaml", text_of(bundle))])
    for endpoint in desired.endpoints:
        form = through_json(normal_form(endpoint.spec))
        (again,) = load_request(written_form(form), desired.site, "shop", endpoint.key).endpoints
        assert normal_form(again.spec) == form


@given(blocks(), st.data())
def test_entities_and_routes_stand_in_the_order_asked_for(block: Block, data: st.DataObject) -> None:
    names = [entity["name"] for entity in block["config"]["served_entities"]]
    order = data.draw(st.permutations(names))
    config = written_form(through_json(form_of(block)), order)["config"]
    assert [entity["name"] for entity in config["served_entities"]] == order
    assert [route["served_entity_name"] for route in config["traffic_config"]["routes"]] == order


def test_routes_carry_both_names_and_empty_parts_are_left_out() -> None:
    entity = {"name": "only", "entity_name": "m", "entity_version": 1}
    block = {"name": "e", "tags": [{"key": "team"}], "config": {"served_entities": [entity]}}
    assert written_form(form_of(block)) == {
        "name": "e",
        "tags": [{"key": "team", "value": ""}],
        "config": {
            "served_entities": [
                {
                    "name": "only",
                    "entity_name": "m",
                    "entity_version": "1",
                    "workload_type": "CPU",
                    "workload_size": "Small",
                    "scale_to_zero_enabled": False,
                }
            ],
            "traffic_config": {
                "routes": [
                    {"served_entity_name": "only", "served_model_name": "only", "traffic_percentage": 100}
                ]
            },
        },
    }


def test_one_without_a_config_stays_without() -> None:
    assert written_form(form_of({"name": "e"})) == {"name": "e"}
    assert load_request({"name": "e"}, Site(), "api", "e").endpoints[0].spec.config is None
