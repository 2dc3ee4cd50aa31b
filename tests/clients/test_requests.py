"""The requests that users of the serving API send today, byte for byte, in the order in which they send
them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.deployments import get_deploy_client

from tests.clients.harness import HERE, TOKEN, Server, ok

KEPT = HERE / "requests"
GIVEN = HERE.parent.parent.parent / "shared" / "requests"
"""Where whoever gave them keeps them; not everybody has that folder."""


def content(number: str) -> bytes:
    """The body of a request as it stands."""
    (path,) = KEPT.glob(f"{number}-*.json")
    return path.read_bytes()


def body(number: str) -> Any:
    return json.loads(content(number))


def send(server: Server, verb: str, path: str, number: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return requests.request(verb, f"{server.api}{path}", data=content(number), headers=headers, timeout=60)


def shares(found: dict[str, Any]) -> dict[str, int]:
    listed = found["config"]["traffic_config"]["routes"]
    return {one["served_model_name"]: one["traffic_percentage"] for one in listed}


def answered_by(server: Server, path: str, times: int) -> Counter[str]:
    """Who answered that many requests."""
    rows = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}
    said = [server.ask(f"{path}/invocations", rows) for _ in range(times)]
    assert all(ok(one) == {"predictions": [3]} for one in said)
    return Counter(one.headers["served-model-name"] for one in said)


@pytest.mark.skipif(not GIVEN.is_dir(), reason="needs the folder that the requests were given in")
def test_the_copies_are_faithful() -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("*.json")}

    assert contents(KEPT) == contents(GIVEN)


def test_two_custom_models_and_their_split(server: Server) -> None:
    first = ok(send(server, "POST", "", "01"))
    assert first["state"] == {"ready": "NOT_READY", "config_update": "IN_PROGRESS"}
    assert shares(server.settled("multi-model")) == {"current": 90, "challenger": 10}
    assert answered_by(server, "/multi-model", 20) == {"current": 18, "challenger": 2}
    before = server.site.engines()

    ok(send(server, "PUT", "/multi-model/config", "02"))
    moved = server.settled("multi-model")
    assert (shares(moved), moved["config"]["config_version"]) == ({"current": 50, "challenger": 50}, 2)
    assert server.site.engines() == before  # nothing was restarted
    assert answered_by(server, "/multi-model", 20) == {"current": 10, "challenger": 10}
    past = answered_by(server, "/multi-model/served-models/challenger", 10)
    assert past == {"challenger": 10}


def test_provisioned_throughput(server: Server) -> None:
    ok(send(server, "POST", "", "03"))
    found = server.settled("multi-pt-model")
    assert found["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert shares(found) == {"mistral_7b_instruct_v0_1-2": 60, "mixtral_8x7b_instruct_v0_1-3": 40}
    for sent, kept in zip(
        body("03")["config"]["served_entities"], found["config"]["served_entities"], strict=True
    ):
        assert sent.items() <= kept.items()


def test_provisioned_throughput_without_a_name(server: Server) -> None:
    ok(send(server, "POST", "", "04"))
    found = server.settled("prov-throughput-endpoint")
    (entity,) = found["config"]["served_entities"]
    assert (entity["name"], entity["entity_version"]) == ("foundation-model-3", "3")
    assert (entity["min_provisioned_throughput"], entity["max_provisioned_throughput"]) == (3160, 4740)
    assert shares(found) == {"foundation-model-3": 100}


def test_a_provider_that_is_not_spoken_yet(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = send(server, "POST", "", "05")
    assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert '"anthropic" is not supported yet' in refused.json()["message"]
    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    with pytest.raises(requests.HTTPError, match="not supported yet"):
        get_deploy_client("databricks").create_endpoint(config=body("05"))
    assert "mix-chat-endpoint" not in server.names()


@pytest.mark.filterwarnings("ignore:The `update_endpoint` method is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:.*update_endpoint.* is deprecated:FutureWarning")
def test_external_embeddings_and_what_becomes_of_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ok(send(server, "POST", "", "06"))
    assert made["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert (made["tags"], made["task"]) == ([{"key": "team", "value": "gen-ai"}], "llm/v1/embeddings")
    assert shares(made) == {"openai_embeddings": 100}
    assert "rate_limits" not in made

    ok(send(server, "PUT", "/openai_endpoint/config", "07"))
    moved = server.settled("openai_endpoint")
    assert (moved["task"], moved["config"]["config_version"]) == ("llm/v1/chat", 2)
    assert (shares(moved), moved["tags"]) == ({"openai_chat": 100}, made["tags"])

    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    client = get_deploy_client("databricks")
    limits = client.update_endpoint(endpoint="openai_endpoint", config=body("08"))
    assert limits == body("08")
    assert server.get("openai_endpoint")["config"]["config_version"] == 2


def test_steps_of_throughput(server: Server) -> None:
    path = "/get-model-optimization-info/ml.llm-catalog.foundation-model/3"
    assert ok(server.call("GET", path)) == body("09")
