"""Bodies of the serving API are judged as YAML is: the same findings, in the same words, at paths of keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.owners import API_OWNER
from servestate.planner.spec.bundle import Desired, load
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.request import REQUEST, load_request
from servestate.planner.spec.site import Site
from servestate.planner.spec.tree import Document
from tests.planner.bundles import bundles, text_of

Block = dict[str, Any]

BODY: Block = {
    "name": "chat",
    "config": {
        "served_entities": [
            {"name": "a", "entity_name": "m", "entity_version": "1", "workload_size": "Small"},
            {"name": "b", "entity_name": "m", "entity_version": "2", "workload_size": "Small"},
        ],
        "traffic_config": {
            "routes": [
                {"served_model_name": "a", "traffic_percentage": 90},
                {"served_model_name": "b", "traffic_percentage": 10},
            ]
        },
    },
    "tags": [{"key": "team", "value": "search"}],
}


def requested(body: Block, *, units: bool = False) -> Desired:
    return load_request(body, Site(), API_OWNER, "chat", units=units)


def form_of(body: Block) -> Block:
    (endpoint,) = requested(body).endpoints
    return normal_form(endpoint.spec)


def findings(body: Block, *, units: bool = False) -> list[Diagnostic]:
    with pytest.raises(InvalidInput) as caught:
        requested(body, units=units)
    return list(caught.value.diagnostics)


def changed(path: str, value: Any) -> Block:
    """The body with one other value; `path` is dotted, lists by number."""
    body: Block = json.loads(json.dumps(BODY))
    *above, last = path.split(".")
    place: Any = body
    for key in above:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return body


def test_the_endpoint_is_the_only_one_of_its_owner() -> None:
    desired = requested(BODY)
    (endpoint,) = desired.endpoints
    assert (desired.bundle, endpoint.key, endpoint.spec.name) == (API_OWNER, "chat", "chat")
    assert endpoint.spec.weights == {"a": 90, "b": 10}


NEWER: Block = {
    "future": {"of": ["this", "api"]},
    "config.auto_scaling": "yes",
    "config.served_entities.0.compute_profile": {"x": 1},
    "config.served_entities.0.external_model": None,
    "config.traffic_config.shadow": [1, 2],
    "config.traffic_config.routes.1.weight_class": "low",
    "tags.0.colour": "red",
    "ai_gateway": {"new_feature": {"enabled": True}},
}


@pytest.mark.parametrize("path", NEWER)
def test_fields_of_newer_clients_are_ignored_wherever_they_are(path: str) -> None:
    assert form_of(changed(path, NEWER[path])) == form_of(BODY)


def test_yaml_refuses_what_a_request_may_say_too_much() -> None:
    bundle = {"resources": {"model_serving_endpoints": {"chat": changed("future", 1)}}}
    with pytest.raises(InvalidInput, match="future"):
        load([Document("b.yaml", json.dumps(bundle))])


NULLS = (
    "description",
    "route_optimized",
    "ai_gateway",
    "rate_limits",
    "email_notifications",
    "budget_policy_id",
    "telemetry_config",
    "config.served_models",
    "config.auto_capture_config",
    "config.served_entities.0.environment_vars",
    "config.served_entities.0.workload_type",
    "config.served_entities.0.min_provisioned_throughput",
    "config.served_entities.0.scale_to_zero_enabled",
)


@pytest.mark.parametrize("path", NULLS)
def test_null_means_not_given(path: str) -> None:
    assert form_of(changed(path, None)) == form_of(BODY)


def test_a_name_that_is_null_is_missing() -> None:
    (found,) = findings(changed("name", None))
    assert "name" in found.what


ODD = {
    "a control character": "a\x00b",
    "an escape": "a\x1b[2Kb",
    "a change of direction": "a\u202eb",
    "half of a surrogate pair": "a\ud800b",
    "a byte order mark": "a\ufeffb",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize(
    "path",
    ["description", "tags.0.value", "config.served_entities.0.entity_name", "config.served_entities.1.name"],
)
def test_characters_that_cannot_be_shown_are_refused_where_they_are(path: str, text: str) -> None:
    found = [one for one in findings(changed(path, text)) if one.code == "SS151"]
    shown = path.replace(".0", "[0]").replace(".1", "[1]")
    assert [(one.where.file, one.where.key) for one in found if one.where is not None] == [(REQUEST, shown)]
    assert text[1] not in found[0].what


def test_odd_characters_in_a_key_are_refused_and_not_repeated() -> None:
    found = findings(changed("config.served_entities.0.environment_vars", {"A\u202eB": "x"}))
    assert "SS151" in [one.code for one in found]
    assert "\u202e" not in "".join(map(str, found))


PLAINTEXT = {
    "name": "a",
    "external_model": {
        "name": "m",
        "provider": "openai",
        "task": "llm/v1/chat",
        "openai_config": {"openai_api_key_plaintext": "sk-CANARY"},
    },
}
WRONG: dict[str, tuple[str, Any]] = {
    "a name": ("name", "no spaces!"),
    "a reserved name": ("name", "pt"),
    "percentages": ("config.traffic_config.routes.0.traffic_percentage", 80),
    "a percentage": ("config.traffic_config.routes.0.traffic_percentage", "many"),
    "a route to nobody": ("config.traffic_config.routes.0.served_model_name", "nobody"),
    "a size": ("config.served_entities.0.workload_size", "Gigantic"),
    "a type": ("config.served_entities.0", "text"),
    "a list": ("config.served_entities", {"name": "a"}),
    "tags": ("tags", "search"),
    "a number": ("config.served_entities.0.max_provisioned_throughput", "1.5"),
    "bounds": ("config.served_entities.0.max_provisioned_throughput", 0),
    "a limit": ("rate_limits", [{"calls": 0, "renewal_period": "minute"}]),
    "a period": ("rate_limits", [{"calls": 1, "renewal_period": "hour"}]),
    "tokens": ("ai_gateway", {"rate_limits": [{"tokens": 0, "renewal_period": "minute"}]}),
    "safety": ("ai_gateway", {"guardrails": {"input": {"safety": True}}}),
    "a table": ("ai_gateway", {"inference_table_config": {"enabled": True, "catalog_name": "c"}}),
    "a variable": ("config.served_entities.0.environment_vars", {"not a name": "x"}),
    "a secret written out": ("config.served_entities.0", PLAINTEXT),
    "another kind of model": ("config.served_entities.1", {**PLAINTEXT, "name": "b"}),
    "units": ("config.served_entities.0.provisioned_model_units", 50),
}


def said(found: list[Diagnostic]) -> list[tuple[str, str, str, str]]:
    """What findings say, but for where in a text that is: a request has no lines."""
    prefix = "resources.model_serving_endpoints.chat."
    return sorted(
        (one.code, one.what.replace(prefix, ""), one.fix, _key(one).removeprefix(prefix)) for one in found
    )


def _key(one: Diagnostic) -> str:
    return one.where.key if one.where is not None else ""


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_as_for_yaml(case: str) -> None:
    body = changed(*WRONG[case])
    bundle = {"resources": {"model_serving_endpoints": {"chat": body}}}
    with pytest.raises(InvalidInput) as caught:
        load([Document("b.yaml", json.dumps(bundle))])
    found = findings(body)
    assert said(found) == said(list(caught.value.diagnostics))
    assert "CANARY" not in "".join(map(str, found))


@settings(max_examples=60, deadline=None)
@given(bundles())
def test_a_block_means_the_same_either_way(bundle: Block) -> None:
    desired = load([Document("b.yaml", text_of(bundle))])
    for endpoint in desired.endpoints:
        body = bundle["resources"]["model_serving_endpoints"][endpoint.key]
        found = load_request(body, desired.site, "shop", endpoint.key)
        assert normal_form(found.endpoints[0].spec) == normal_form(endpoint.spec)


def test_model_units_are_for_the_calls_that_are_made_for_them() -> None:
    body = changed("config.served_entities.0.provisioned_model_units", 50)
    assert [one.code for one in findings(body)] == ["SS137"]
    entity = requested(body, units=True).endpoints[0].spec.entities[0]
    assert entity.provisioned_model_units == 50


def test_the_rules_of_units_hold_there_as_well() -> None:
    body = changed("config.served_entities.0.provisioned_model_units", 0)
    assert [one.code for one in findings(body, units=True)] == ["SS125"]


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "config", "served_entities", "routes", "tags", "key", "ai_gateway", "x"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_whatever_a_body_holds_it_is_taken_or_refused_with_findings(body: Block) -> None:
    assert all(one.where is not None and one.where.file == REQUEST for one in _refusals(body))


def _refusals(body: Block) -> tuple[Diagnostic, ...]:
    try:
        requested(body)
    except InvalidInput as error:
        return error.diagnostics
    return ()
