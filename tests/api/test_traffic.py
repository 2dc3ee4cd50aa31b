"""Policies of the site and of the AI gateway, for endpoints that are made through the API: what reaches the
routing table, what a reply shows, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from servestate.planner.table import EndpointRoutes, Guard, Limit, Mirror, Payloads, Sticky
from servestate.planner.table_file import decode
from tests.clients.harness import Server, endpoint, external, ok, serving, upstream

TRAFFIC = {
    "made": {
        "split": "sticky",
        "sticky": {"from": "caller"},
        "mirror": {"entity": "two", "percent": 5, "allow_external": True},
        "fallback": {"after_send": True},
    }
}
GATEWAY: dict[str, Any] = {
    "fallback_config": {"enabled": True},
    "usage_tracking_config": {"enabled": True},
    "rate_limits": [{"key": "user", "renewal_period": "minute", "tokens": 500}],
    "inference_table_config": {"enabled": True, "catalog_name": "ops", "schema_name": "logs"},
    "guardrails": {"input": {"pii": {"behavior": "MASK"}, "invalid_keywords": ["codename"]}},
}


@dataclass
class Made:
    """The site, and the URL of the model that its entities stand for."""

    server: Server
    far: str

    def entities(self, *names: str) -> list[dict[str, Any]]:
        """External entities."""
        return [external(name, self.far) for name in names]

    def routes(self, name: str) -> EndpointRoutes:
        """The endpoint in the table file."""
        text = (self.server.site.folder / ".servestate" / "table.json").read_text()
        return next(one for one in decode(text).endpoints if one.name == name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with upstream() as far, serving(tmp_path_factory.mktemp("traffic"), traffic=TRAFFIC) as server:
        made = Made(server, far.url)
        body = endpoint("made", *made.entities("two", "one"))
        body["config"]["traffic_config"] = {"routes": [route("one", 100), route("two", 0)]}
        ok(server.call("POST", "", {**body, "ai_gateway": GATEWAY}))
        yield made


def route(name: str, share: int) -> dict[str, Any]:
    return {"served_entity_name": name, "traffic_percentage": share}


def test_an_endpoint_made_through_the_api_has_the_policy_of_its_name(site: Made) -> None:
    traffic = site.routes("made").traffic
    assert (traffic.split, traffic.sticky) == ("sticky", Sticky("caller"))
    assert (traffic.mirror, traffic.fallback, traffic.after_send) == (Mirror("two", 5), True, True)


def test_its_gateway_is_in_the_table_and_in_the_reply(site: Made) -> None:
    found = site.routes("made")
    assert found.limits == (Limit("user", "", 0, 500),)
    assert (found.guard_input, found.guard_output) == (Guard(("codename",), "MASK"), None)
    assert (found.usage, found.payloads) == (True, Payloads("ops.logs.made_payload"))
    assert [entity.name for entity in found.entities] == ["two", "one"], (
        "the order of fallback is the caller's"
    )
    reply = ok(site.server.call("GET", "/made"))
    assert {k: v for k, v in reply["ai_gateway"].items() if k != "rate_limits"} == {
        k: v for k, v in GATEWAY.items() if k != "rate_limits"
    }
    assert "traffic" not in reply


def test_a_config_without_the_entity_that_is_mirrored_to_is_refused(site: Made) -> None:
    got = site.server.call("PUT", "/made/config", {"served_entities": site.entities("one")})
    assert (got.status_code, "SS211" in got.json()["message"]) == (400, True)
    assert site.routes("made").traffic.mirror == Mirror("two", 5)


def test_what_a_guardrail_cannot_do_is_refused(site: Made) -> None:
    for guard in ({"safety": True}, {"valid_topics": ["law"]}, {"invalid_keywords": [""]}):
        got = site.server.call("PUT", "/made/ai-gateway", {"guardrails": {"output": guard}})
        assert got.status_code == 400, json.dumps(guard)


def test_settings_change_without_their_policy(site: Made) -> None:
    before = site.routes("made")
    ok(site.server.call("PATCH", "/made/tags", {"add_tags": [{"key": "team", "value": "a"}]}))
    assert site.routes("made") == before
