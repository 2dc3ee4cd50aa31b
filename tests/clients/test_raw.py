"""The wire itself: paths, shapes, headers and statuses that clients depend on without showing it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.harness import until
from tests.clients.engine import SEPARATED, Prompt
from tests.clients.harness import (
    CHAT,
    SECRETS,
    STANDING,
    TOKEN,
    Server,
    Upstream,
    endpoint,
    external,
    hosted,
    ok,
    routes,
)

MESSAGES = [{"role": "user", "content": "hello"}]
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def error_of(response: requests.Response, status: int) -> str:
    """The code of an error; its body has the two members of the API and no other."""
    assert response.status_code == status, f"{response.status_code} {response.text}"
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"error_code", "message"}
    assert body["message"]
    return str(body["error_code"])


# Paths.


def test_discovery_needs_no_token(server: Server, guarded: Server) -> None:
    for site in (server, guarded):
        found = requests.get(f"{site.url}/.well-known/databricks-config", timeout=10)
        assert (found.status_code, found.json()) == (200, {})


def test_both_slash_forms(server: Server, far: Upstream) -> None:
    names = {one["name"] for one in STANDING}
    for form in ("", "/"):
        listed = server.call("GET", form, allow_redirects=False)
        assert {one["name"] for one in ok(listed)["endpoints"]} == names
        made = server.call("POST", form, endpoint("slash", external("far", far.url)), allow_redirects=False)
        assert ok(made)["name"] == "slash"
        assert ok(server.call("DELETE", "/slash")) == {}


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/chat"),
        ("GET", "/chat/config"),
        ("POST", "/chat/config"),
        ("DELETE", "/chat/tags"),
        ("GET", "/chat/nothing"),
        ("PUT", "/chat/served-models/current/logs"),
        ("GET", "/pt/chat/config"),
    ],
)
def test_wrong_verb_or_path(server: Server, verb: str, path: str) -> None:
    assert error_of(server.call(verb, path, {}), 404) == "ENDPOINT_NOT_FOUND"


def test_wrong_path_beside_the_control_plane(server: Server) -> None:
    for path in ("/api/2.0/nothing", "/api/2.1/serving-endpoints", "/serving-endpoints/chat/nothing"):
        answer = requests.post(f"{server.url}{path}", json={}, headers=BEARER, timeout=10)
        assert error_of(answer, 404) == "ENDPOINT_NOT_FOUND"
    answer = requests.get(f"{server.url}/serving-endpoints/chat/invocations", headers=BEARER, timeout=10)
    assert error_of(answer, 404) == "ENDPOINT_NOT_FOUND"


def test_the_router_has_the_data_plane_only(server: Server) -> None:
    body = {"messages": MESSAGES}
    both = [f"{where}/serving-endpoints/chat/invocations" for where in (server.url, server.router)]
    said = [requests.post(url, json=body, headers=BEARER, timeout=10) for url in both]
    assert [ok(one)["choices"][0]["message"]["content"] for one in said] == ["one: hello"] * 2
    for path in ("/api/2.0/serving-endpoints", "/.well-known/databricks-config"):
        refused = requests.get(f"{server.router}{path}", headers=BEARER, timeout=10)
        assert refused.status_code == 404


# Bodies that come in.


def test_tolerated_spellings(server: Server, far: Upstream) -> None:
    body = {
        "name": "loose",
        "an_unknown_field": {"of": "a newer client"},
        "config": {
            "name": "stray",
            "served_entities": [
                {**hosted("a", CHAT), "entity_version": 1, "workload_size": None},
                {**hosted("b", CHAT), "entity_version": 2, "unknown": True},
            ],
            "traffic_config": {
                "routes": [
                    {"served_entity_name": "a", "traffic_percentage": "90"},
                    {"served_model_name": "b", "traffic_percentage": "10"},
                ]
            },
        },
    }
    ok(server.call("POST", "", body))
    made = server.settled("loose")
    assert [entity["entity_version"] for entity in made["config"]["served_entities"]] == ["1", "2"]
    assert made["config"]["traffic_config"]["routes"] == [
        {"served_model_name": n, "served_entity_name": n, "traffic_percentage": s}
        for n, s in (("a", 90), ("b", 10))
    ]
    update = {"name": "stray", **routes_only(a="50", b=50)}
    ok(server.call("PUT", "/loose/config", update))
    assert _shares(server.settled("loose")) == {"a": 50, "b": 50}


def routes_only(**shares: Any) -> dict[str, Any]:
    return {"traffic_config": routes(**shares)}


def _shares(found: dict[str, Any]) -> dict[str, int]:
    listed = found["config"]["traffic_config"]["routes"]
    return {one["served_entity_name"]: one["traffic_percentage"] for one in listed}


def test_old_spelling_of_entities(server: Server) -> None:
    model = {"name": "it", "model_name": CHAT, "model_version": 2, "scale_to_zero_enabled": False}
    ok(server.call("POST", "", {"name": "old", "config": {"served_models": [model]}}))
    (entity,) = server.settled("old")["config"]["served_entities"]
    assert (entity["name"], entity["entity_name"], entity["entity_version"]) == ("it", CHAT, "2")


def test_the_old_spelling_does_not_change_the_kind_either(server: Server, far: Upstream) -> None:
    ok(server.call("POST", "", endpoint("kind", external("far", far.url))))
    before = server.settled("kind")
    model = {"model_name": CHAT, "model_version": "1", "scale_to_zero_enabled": False}
    answer = server.call("PUT", "/kind/config", {"served_models": [model]})
    assert error_of(answer, 400) == "INVALID_PARAMETER_VALUE"
    assert "external models" in answer.json()["message"]
    assert server.settled("kind") == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_content_type_does_not_matter(server: Server, far: Upstream, kind: str) -> None:
    content = json.dumps(endpoint("typed", external("far", far.url))).encode()
    headers = {**BEARER, **({"Content-Type": kind} if kind else {})}
    assert ok(requests.post(server.api, data=content, headers=headers, timeout=10))["name"] == "typed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"name": 5}',
        b'{"name": null}',
        b'{"name": "odd", "config": []}',
        b'{"name": "odd", "config": {"served_entities": {}}}',
        b'{"name": "odd", "config": {"served_entities": [5]}}',
        b'{"name": "odd", "tags": "a"}',
        b'{"name": "odd", "tags": [{"value": "no key"}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"name": "odd", "description": "' + b"a" * (2 << 20) + b'"}',
    ],
    ids=lambda content: content[:40].decode("latin-1") or "nothing",
)
def test_odd_bodies_are_bad_requests(server: Server, content: bytes) -> None:
    headers = {**BEARER, "Content-Type": "application/json"}
    answer = requests.post(server.api, data=content, headers=headers, timeout=10)
    assert error_of(answer, 400) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    assert "odd" not in server.names()


# Bodies that go out.


def test_every_endpoint_says_how_it_is(server: Server) -> None:
    found = server.get("chat")
    for field in ("id", "creator", "creation_timestamp", "last_updated_timestamp", "permission_level"):
        assert found[field], field
    assert (found["tags"], found["description"], found["route_optimized"]) == ([], "", False)
    assert found["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert found["task"] == "llm/v1/chat"
    assert not {"endpoint_url", "data_plane_info", "pending_config", "rate_limits"} & set(found)
    entity = found["config"]["served_entities"][0]
    assert entity["state"]["deployment"] == "DEPLOYMENT_READY"
    assert entity["creation_timestamp"] > 0
    assert _shares(found) == {"current": 100, "idle": 0}


def test_lists_are_short(server: Server) -> None:
    listed = {one["name"]: one for one in ok(server.call("GET", ""))["endpoints"]}["chat"]
    assert listed["id"] == server.get("chat")["id"]
    assert listed["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    kept = {"name", "entity_name", "entity_version", "external_model", "foundation_model"}
    assert all(set(entity) <= kept for entity in listed["config"]["served_entities"])
    assert "traffic_config" not in listed["config"]


def test_ids_are_of_creations(server: Server, far: Upstream) -> None:
    body = endpoint("again", external("far", far.url))
    first = ok(server.call("POST", "", body))["id"]
    assert ok(server.call("DELETE", "/again")) == {}
    second = ok(server.call("POST", "", body))["id"]
    assert first != second
    assert re.fullmatch("[0-9a-f]{32}", second)


def test_echo_of_what_has_no_other_effect(server: Server, far: Upstream) -> None:
    given = {
        "description": "what it is for",
        "route_optimized": True,
        "budget_policy_id": "policy-1",
        "tags": [{"key": "team", "value": "a"}, {"key": "bare"}],
        "email_notifications": {"on_update_success": ["a@example.com"]},
    }
    ok(server.call("POST", "", {**endpoint("echo", external("far", far.url)), **given}))
    found = server.get("echo")
    assert {key: found[key] for key in ("description", "route_optimized", "budget_policy_id")} == {
        key: given[key] for key in ("description", "route_optimized", "budget_policy_id")
    }
    assert {tag["key"]: tag.get("value", "") for tag in found["tags"]} == {"team": "a", "bare": ""}
    assert found["email_notifications"]["on_update_success"] == ["a@example.com"]


def test_metrics_are_prometheus_text(server: Server) -> None:
    def requests_counted() -> float:
        answer = server.call("GET", "/chat/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        families = list(text_string_to_metric_families(answer.text))
        names = {sample.name for family in families for sample in family.samples}
        assert {"request_4xx_count_total", "request_5xx_count_total"} <= names
        samples = [s for family in families for s in family.samples if s.name == "request_count_total"]
        return sum(sample.value for sample in samples)

    before = requests_counted()
    for _ in range(3):
        ok(server.ask("/chat/invocations", {"messages": MESSAGES}))
    until(lambda: requests_counted() == before + 3, "three more requests are counted", 5)


# Secrets.


def test_no_secret_is_anywhere(server: Server, far: Upstream) -> None:
    written_out = "k3y-that-was-written-out"
    plain = external("far", far.url)
    config = plain["external_model"]["openai_config"]
    plain["external_model"]["openai_config"] = {
        "openai_api_base": config["openai_api_base"],
        "openai_api_key_plaintext": written_out,
    }
    local = {**hosted("it", CHAT), "environment_vars": {"UPSTREAM_KEY": "{{secrets/demo/key}}"}}
    replies = [
        server.call("POST", "", endpoint("plain", plain)),
        server.call("POST", "", endpoint("plain", plain)),  # refused: it is there
        server.call("POST", "", endpoint("plain too", plain)),  # refused: no name
        server.call("POST", "", endpoint("env", local)),
    ]
    assert [one.status_code for one in replies] == [200, 409, 400, 200]
    server.settled("env")
    body = {"messages": MESSAGES}
    ok(server.ask("/plain/invocations", body))
    assert far.asked[-1].headers["authorization"] == f"Bearer {written_out}"
    replies += [
        server.ask("/plain/invocations", body),
        *(server.call("GET", path) for path in ("", "/plain", "/env", "/env/served-models/it/logs")),
        *(
            server.call("GET", f"/{name}/{what}")
            for name in ("plain", "env")
            for what in ("metrics", "openapi")
        ),
    ]
    secrets = [written_out, *SECRETS.values()]
    for reply in replies:
        assert not any(secret in reply.text for secret in secrets), reply.url
    (entity,) = server.get("env")["config"]["served_entities"]
    assert entity["environment_vars"] == {"UPSTREAM_KEY": "{{secrets/demo/key}}"}
    (entity,) = server.get("plain")["config"]["served_entities"]
    assert not [key for key in entity["external_model"]["openai_config"] if "key" in key]
    kept = server.site.folder / ".servestate" / "api-secrets.json"
    assert kept.stat().st_mode & 0o077 == 0  # the one place for what came written out
    for name, content in server.site.listing().items():
        if server.site.folder / name != kept:
            assert not any(secret.encode() in content for secret in secrets), name
    ok(server.call("DELETE", "/plain"))
    until(lambda: written_out not in kept.read_text(), "the secret goes with its endpoint", 5)


# The data plane.


def test_who_answered_is_always_said(server: Server) -> None:
    openai = {"model": "chat", "messages": MESSAGES}
    failing = {"messages": [{"role": "user", "content": f"{Prompt.FAIL}500"}]}
    for path, body in (
        ("/chat/invocations", {"messages": MESSAGES}),
        ("/chat/invocations", {"messages": MESSAGES, "stream": True}),
        ("/chat/invocations", failing),
        ("/chat/completions", openai),
        ("/chat/completions", {**openai, "stream": True}),
        ("/completions", {"model": "text", "prompt": "once"}),
        ("/embeddings", {"model": "embeddings", "input": "four"}),
        ("/table/invocations", {"instances": [[1, 2]]}),
    ):
        assert server.ask(path, body).headers["served-model-name"] == "current", path


def test_what_reaches_the_engine(server: Server) -> None:
    body = {
        "messages": MESSAGES,
        "client_request_id": "mine",
        "usage_context": {"team": "a"},
        "response_format": {"type": "text"},
    }
    received = ok(server.ask("/chat/invocations", body))["received"]
    assert received["messages"] == MESSAGES
    assert received["response_format"] == {"type": "text"}
    assert not {"client_request_id", "usage_context"} & set(received)


def test_extra_params_are_merged(server: Server) -> None:
    extra = {"top_k": "5", "seed": "7", "echo": "true", "user": "ada", "max_tokens": "99"}
    body = {"messages": MESSAGES, "max_tokens": 3, "extra_params": extra}
    received = ok(server.ask("/chat/invocations", body))["received"]
    assert "extra_params" not in received
    merged = {key: received.get(key) for key in (*extra,)}
    assert merged == {"top_k": 5, "seed": 7, "echo": True, "user": "ada", "max_tokens": 3}


def test_events_are_data_lines_only(server: Server) -> None:
    for prompt, text in ((Prompt.DAWDLE, f"one: {Prompt.DAWDLE}"), (Prompt.SEPARATE, SEPARATED)):
        body = {"messages": [{"role": "user", "content": prompt}], "stream": True}
        answer = server.ask("/chat/invocations", body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.content.decode().split("\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert not set("\u0085\u2028\u2029") & set(answer.content.decode())
        *events, last = (line.removeprefix("data: ") for line in lines)
        assert last == "[DONE]"
        parts = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
        assert "".join(parts) == text


@pytest.mark.parametrize("tokens", [False, True], ids=["plain", "usage"])
def test_usage_comes_only_where_it_was_asked_for(server: Server, tokens: bool) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "stream": True}
    if tokens:
        body["stream_options"] = {"include_usage": True}
    lines = server.ask("/chat/invocations", body).text.split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [event["usage"]["total_tokens"] for event in events if not event["choices"]] == [3] * tokens


@pytest.mark.parametrize(
    ("engine", "status", "code"),
    [
        (400, 400, "INVALID_PARAMETER_VALUE"),
        (405, 404, "ENDPOINT_NOT_FOUND"),
        (413, 400, "INVALID_PARAMETER_VALUE"),
        (415, 400, "INVALID_PARAMETER_VALUE"),
        (422, 400, "INVALID_PARAMETER_VALUE"),
        (429, 429, "REQUEST_LIMIT_EXCEEDED"),
        (500, 500, "INTERNAL_ERROR"),
        (502, 500, "INTERNAL_ERROR"),
        (503, 503, "TEMPORARILY_UNAVAILABLE"),
        (504, 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_statuses_of_engines(server: Server, engine: int, status: int, code: str) -> None:
    body = {"messages": [{"role": "user", "content": f"{Prompt.FAIL}{engine}"}]}
    answer = server.ask("/chat/invocations", body)
    assert error_of(answer, status) == code
    if status in (429, 503):
        assert re.fullmatch("[1-9][0-9]*", answer.headers["retry-after"])


def test_nobody_listens_at_an_external_model(server: Server) -> None:
    ok(server.call("POST", "", endpoint("gone", external("far", "http://127.0.0.1:1"))))
    answer = server.ask("/gone/invocations", {"messages": MESSAGES})
    assert error_of(answer, 503) == "TEMPORARILY_UNAVAILABLE"
    assert re.fullmatch("[1-9][0-9]*", answer.headers["retry-after"])


def test_bodies_have_a_bound(server: Server, far: Upstream) -> None:
    ok(server.call("POST", "", endpoint("outside", external("far", far.url))))
    large = {"messages": [{"role": "user", "content": "a" * (5 << 20)}]}
    assert error_of(server.ask("/outside/invocations", large), 400) == "INVALID_PARAMETER_VALUE"
    assert server.ask("/chat/invocations", large).status_code == 200
    larger = {"messages": [{"role": "user", "content": "a" * (17 << 20)}]}
    assert error_of(server.ask("/chat/invocations", larger), 400) == "INVALID_PARAMETER_VALUE"
