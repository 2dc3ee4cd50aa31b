"""Secrets that come with requests are kept as long as something needs them, whatever else goes on meanwhile,
and no longer."""

from __future__ import annotations

import json
from typing import Any

from tests.api.guarded import Guarded
from tests.cli.harness import until
from tests.clients.harness import endpoint

ROUNDS = 8


def keyed(site: Guarded, value: str) -> dict[str, Any]:
    """A served entity with a key that is written out."""
    config = {"custom_provider_url": f"{site.far}/v1", "bearer_token_auth": {"token_plaintext": value}}
    model = {"provider": "custom", "name": "m", "task": "llm/v1/chat", "custom_provider_config": config}
    return {"name": "far", "external_model": model}


def kept(site: Guarded) -> set[str]:
    """The values that are kept now."""
    path = site.folder / "api-secrets.json"
    return set(json.loads(path.read_text()).values()) if path.exists() else set()


def update_of(site: Guarded, name: str) -> str:
    """Where its update stands."""
    return str(site.say("GET", f"/{name}", None).json["state"]["config_update"])


def test_one_update_does_not_drop_the_secret_of_another(guarded: Guarded) -> None:
    site = guarded
    assert site.say("POST", "", endpoint("first", keyed(site, "first-0"))).status == 200
    for number in range(1, ROUNDS):
        made = site.say("POST", "", endpoint(f"other-{number}", keyed(site, f"other-{number}")))
        assert made.status == 200, made.body
        body = {"served_entities": [keyed(site, f"first-{number}")]}
        until(lambda: update_of(site, "first") != "IN_PROGRESS", "the update before is done", 10)
        assert site.say("PUT", "/first/config", body).status == 200
        assert site.say("DELETE", f"/other-{number}", None).status == 200
        until(lambda: update_of(site, "first") != "IN_PROGRESS", "the update is done", 10)
        assert update_of(site, "first") == "NOT_UPDATING", site.say("GET", "/first", None).body
        assert f"first-{number}" in kept(site)
    until(lambda: kept(site) == {f"first-{ROUNDS - 1}"}, "the others are dropped", 10)
    assert site.say("DELETE", "/first", None).status == 200
    until(lambda: kept(site) == set(), "all are dropped", 10)
    assert site.say("GET", "/first", None).status == 404


def test_what_is_refused_is_not_kept(guarded: Guarded) -> None:
    for body in (
        endpoint("no name", keyed(guarded, "invalid")),
        endpoint("own", keyed(guarded, "repeated")),
        endpoint("x", keyed(guarded, "twice"), keyed(guarded, "twice")),
    ):
        assert guarded.say("POST", "", body).status in (400, 409)
    assert not kept(guarded) & {"invalid", "repeated", "twice"}
