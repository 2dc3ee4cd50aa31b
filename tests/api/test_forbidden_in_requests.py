"""What YAML may say and a request may not, in every spelling: files of this machine, code for engines,
secrets that are not the caller's to name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.callers import MAKER, OWN
from tests.api.guarded import Guarded
from tests.clients.harness import CHAT

PLACES = ["file:///etc", "FILE:///etc", "hf://someone/model", "http://127.0.0.1:1/x", "s3://x/y"]
VARIABLES = ["LD_PRELOAD", "ld_library_path", "LD_AUDIT", "GCONV_PATH", "PYTHONPATH", "PythonStartup", "PATH"]
VARIABLES += ["SERVESTATE_ROLE", "SERVESTATE_LINEAGE", "BASH_ENV", "HF_ENDPOINT", "NODE_OPTIONS"]


def entity(**more: Any) -> dict[str, Any]:
    """A served entity of the catalogue, with something else besides or instead."""
    return {"name": "e", "entity_name": CHAT, "entity_version": "1", "workload_size": "Small", **more}


def model(**more: Any) -> dict[str, Any]:
    """The same in the old spelling."""
    old = {"name": "e", "model_name": CHAT, "model_version": "1", "scale_to_zero_enabled": False}
    return {**old, "workload_size": "Small", **more}


def configs(new: dict[str, Any], old: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every way to write a config of one entity in; those that are wrong in other ways are refused anyway."""
    yield {"served_entities": [entity(**new)]}
    yield {"served_entities": [entity(), entity(**{"name": "f", **new})]}
    yield {"served_models": [model(**old)]}
    yield {"served_entities": None, "served_models": [model(**old)]}
    yield {"served_entities": [], "served_models": [model(**old)]}
    yield {"served_models": None, "served_entities": [entity(**new)]}
    yield {"served_models": [model(**old, entity_name=CHAT)]}
    yield {"served_entities": [entity(**new, model_name=CHAT)]}
    yield {"served_entities": [entity(**{"entity_name": None, **new})], "served_models": []}


def check_refused(site: Guarded, config: dict[str, Any], said: str) -> None:
    """That neither a new endpoint nor an existing one gets that config, and that it is told why."""
    for verb, path, body in (
        ("POST", "", {"name": "x", "config": config}),
        ("PUT", f"/{OWN}/config", config),
    ):
        got = site.say(verb, path, body, MAKER)
        if got.status == 200:
            site.say("DELETE", "/x", None)
        assert (got.status, got.code) == (400, "INVALID_PARAMETER_VALUE"), (config, got.body)
        if config.keys() == {"served_entities"}:
            assert said in got.json["message"]
    assert site.say("GET", "/x", None).status == 404


def test_places_are_no_models(guarded: Guarded) -> None:
    before = guarded.effects()
    for place in PLACES:
        for config in configs({"entity_name": place}, {"model_name": place}):
            check_refused(guarded, config, "not a place")
    assert guarded.effects() == before


def test_variables_that_decide_which_code_runs(guarded: Guarded) -> None:
    before = guarded.effects()
    for variable in VARIABLES:
        given = {"environment_vars": {"FINE": "1", variable: "/tmp/evil"}}
        for config in configs(given, given):
            check_refused(guarded, config, variable)
    assert guarded.effects() == before


REFERENCES = ["{{secrets/servestate-engine/access-tokens}}", "{{secrets/servestate-api/0}}"]
REFERENCES += [
    "{{ secrets/servestate-api/0 }}",
    "x{{secrets/Servestate-Api/0}}y",
    "{{\tsecrets/servestate-engine/a}}",
]


@pytest.mark.parametrize("reference", REFERENCES)
def test_secrets_of_servestates_own(guarded: Guarded, reference: str) -> None:
    variables = {"environment_vars": {"K": reference}}
    for config in configs(variables, variables):
        check_refused(guarded, config, "")
    for key in ("token", "token_plaintext"):
        far = guarded.far_entity()
        custom = {"custom_provider_url": f"{guarded.far}/v1", "bearer_token_auth": {key: reference}}
        far["external_model"] = {"provider": "custom", "name": "m", "task": "llm/v1/chat"}
        far["external_model"]["custom_provider_config"] = custom
        check_refused(guarded, {"served_entities": [far]}, "")


def test_an_update_keeps_to_the_rules_of_a_create(guarded: Guarded) -> None:
    for body in (
        {"config": {"served_entities": [entity(entity_name="file:///etc")]}},
        {"served_entities": "x"},
    ):
        got = guarded.say("PUT", f"/{OWN}/config", body, MAKER)
        assert got.status == 400
    units = {"entity_name": "file:///etc", "provisioned_model_units": 50}
    for verb, path in (("POST", "/pt"), ("PUT", f"/pt/{OWN}/config")):
        got = guarded.say(verb, path, {"name": "x", "config": {"served_entities": [units]}}, MAKER)
        assert (got.status, "not a place" in got.json["message"]) == (400, True)


INTERNAL = ["http://127.0.0.2:1/v1", "http://localhost:1/v1", "http://[::1]:1/v1", "http://10.0.0.1/v1"]
INTERNAL += [
    "http://[::ffff:127.0.0.2]/v1",
    "http://0.0.0.0:1/v1",
    "http://100.64.0.1/v1",
    "HTTP://192.168.0.1",
]


@pytest.mark.parametrize("url", INTERNAL)
def test_hosts_that_only_the_router_reaches(guarded: Guarded, url: str) -> None:
    far = guarded.far_entity()
    far["external_model"]["openai_config"]["openai_api_base"] = url
    check_refused(guarded, {"served_entities": [far]}, "")


def test_where_clouds_keep_credentials_is_for_nobody(guarded: Guarded) -> None:
    for url in ("http://169.254.169.254/latest", "http://[fd00:ec2::254]/", "http://[fe80::1]/"):
        far = guarded.far_entity()
        far["external_model"]["openai_config"]["openai_api_base"] = url
        got = guarded.say("POST", "", {"name": "x", "config": {"served_entities": [far]}})
        assert (got.status, "SS129" in got.json["message"]) == (400, True)


def test_who_may_apply_may_name_them(guarded: Guarded) -> None:
    far = guarded.far_entity()
    far["external_model"]["openai_config"]["openai_api_base"] = "http://127.0.0.2:1/v1"
    assert guarded.say("POST", "", {"name": "x", "config": {"served_entities": [far]}}).status == 200
    assert guarded.say("DELETE", "/x", None).status == 200
