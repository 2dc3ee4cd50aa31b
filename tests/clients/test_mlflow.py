"""MLflow's deployments client, as it comes, against the serving REST API."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.deployments.databricks import DatabricksDeploymentClient

from tests.cli.harness import until
from tests.clients.engine import SEPARATED, Prompt
from tests.clients.harness import (
    CHAT,
    GATED,
    READER,
    STANDING,
    TOKEN,
    Server,
    Upstream,
    endpoint,
    external,
    hosted,
    serving,
)

# Its older call forms announce their end, and still are what people use.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Passing 'name':UserWarning",
    "ignore:The `update_endpoint` method is deprecated:UserWarning",
    "ignore:.*update_endpoint.* is deprecated:FutureWarning",
)


def client_of(url: str, patch: pytest.MonkeyPatch, token: str = TOKEN) -> DatabricksDeploymentClient:
    """A client that the environment leads to `url`."""
    patch.setenv("DATABRICKS_HOST", url)
    patch.setenv("DATABRICKS_TOKEN", token)
    return get_deploy_client("databricks")


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> DatabricksDeploymentClient:
    return client_of(server.url, monkeypatch)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def status_of(failed: pytest.ExceptionInfo[requests.HTTPError]) -> int:
    return failed.value.response.status_code


# Endpoints.


def test_list_and_get(client: DatabricksDeploymentClient) -> None:
    listed = {one["name"]: one for one in client.list_endpoints()}
    assert set(listed) == {one["name"] for one in STANDING}
    found = client.get_endpoint("chat")
    assert (found.name, found["id"]) == ("chat", listed["chat"]["id"])
    assert found.state == {"ready": "READY", "config_update": "NOT_UPDATING"}


def test_create_whole(client: DatabricksDeploymentClient, server: Server, far: Upstream) -> None:
    body = {**endpoint("whole", external("far", far.url)), "tags": [{"key": "team", "value": "a"}]}
    made = client.create_endpoint(config=body)
    assert made.state == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert made.tags == [{"key": "team", "value": "a"}]
    assert client.delete_endpoint("whole") == {}
    assert "whole" not in {one["name"] for one in client.list_endpoints()}


def test_create_in_parts(client: DatabricksDeploymentClient, server: Server, far: Upstream) -> None:
    made = client.create_endpoint(
        name="parts",
        config={
            "served_entities": [external("far", far.url)],
            "tags": [{"key": "team", "value": "a"}],
            "rate_limits": [{"calls": 100, "key": "user", "renewal_period": "minute"}],
        },
    )
    assert (made.name, made.route_optimized, made.tags) == ("parts", False, [{"key": "team", "value": "a"}])
    assert made.config["served_entities"][0]["name"] == "far"


@pytest.fixture
def mine(client: DatabricksDeploymentClient, far: Upstream) -> str:
    """An endpoint without processes."""
    client.create_endpoint(config=endpoint("mine", external("far", far.url)))
    return "mine"


LIMITS = {"rate_limits": [{"key": "user", "renewal_period": "minute", "calls": 10}]}


def test_update_in_the_old_way(client: DatabricksDeploymentClient, mine: str, far: Upstream) -> None:
    assert client.update_endpoint(mine, LIMITS) == LIMITS
    changed = client.update_endpoint(
        mine, {"served_entities": [external("other", far.url, model="far-model-2")]}
    )
    assert changed.name == mine
    until(lambda: client.get_endpoint(mine).config["config_version"] == 2, "the update ends")
    assert [one["name"] for one in client.get_endpoint(mine).config["served_entities"]] == ["other"]


def test_update_part_by_part(client: DatabricksDeploymentClient, mine: str, far: Upstream) -> None:
    assert client.update_endpoint_rate_limits(mine, LIMITS) == LIMITS
    assert client.update_endpoint_tags(mine, {"add_tags": [{"key": "a", "value": "1"}]}) == {
        "tags": [{"key": "a", "value": "1"}]
    }
    usage = {"usage_tracking_config": {"enabled": True}}
    assert client.update_endpoint_ai_gateway(mine, usage) == usage
    assert client.update_endpoint_ai_gateway(mine, {}) == {}
    two = [external("one", far.url), external("two", far.url)]
    client.update_endpoint_config(
        mine,
        {
            "served_entities": two,
            "traffic_config": {
                "routes": [
                    {"served_model_name": "one", "traffic_percentage": "0"},
                    {"served_model_name": "two", "traffic_percentage": "100"},
                ]
            },
        },
    )
    until(lambda: client.get_endpoint(mine).config["config_version"] == 2, "the update ends")
    assert client.predict(endpoint=mine, inputs=chat("hello")).choices
    assert client.get_endpoint(mine).tags == [{"key": "a", "value": "1"}]


@pytest.mark.slow
def test_create_that_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process behind the API is killed between promise and answer, and the caller tries again: there is
    one endpoint, and one engine."""
    with serving(tmp_path / "site") as server, ThreadPoolExecutor(1) as pool:
        body = endpoint("once", hosted("it", CHAT))
        client = client_of(server.url, monkeypatch)
        with another_holds_the_lock(server):
            creating = pool.submit(client.create_endpoint, config=body)
            until(lambda: "once" in server.names(), "it is promised")
            server.kill_api()
            with pytest.raises(requests.HTTPError) as failed:
                creating.result(60)
            assert status_of(failed) == 504  # it may have been heard, so no client repeats it by itself
        until(lambda: server.call("GET", "").status_code == 200, "the API is back")
        with pytest.raises(requests.HTTPError) as taken:
            client.create_endpoint(config=body)
        assert taken.value.response.json()["error_code"] == "RESOURCE_ALREADY_EXISTS"
        found = server.settled("once")
        assert found["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
        assert len([address for address in server.site.alive() if address.startswith("once/it@")]) == 1
        assert client.predict(endpoint="once", inputs=chat("hello")).choices


@contextmanager
def another_holds_the_lock(server: Server) -> Iterator[None]:
    """An apply on the command line waits for its model until the end of the block."""
    site = server.site
    server.declare(endpoint("loading", hosted("it", CHAT, GATED)))
    applying = site.start("apply", "--auto-approve")
    until(lambda: "loading/it" in site.engines(), "its model loads")
    yield
    server.open_gate()
    applying.communicate(timeout=60)
    assert applying.returncode == 0


# Queries.


def test_predict(client: DatabricksDeploymentClient) -> None:
    said = client.predict(endpoint="chat", inputs=chat("hello", max_tokens=5))
    assert said.choices[0]["message"]["content"] == "one: hello"
    text = client.predict(endpoint="text", inputs={"prompt": "once"})
    assert text.choices[0]["text"] == "one: once"
    vectors = client.predict(endpoint="embeddings", inputs={"input": ["four"]})
    assert vectors.data[0]["embedding"] == [4.0, 0.5, -1.0]
    rows = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}}
    assert client.predict(endpoint="table", inputs=rows) == {"predictions": [3, 7]}


def test_predict_past_the_split(client: DatabricksDeploymentClient) -> None:
    said = client.predict(endpoint="chat/served-models/idle", inputs=chat("hello"))
    assert said.choices[0]["message"]["content"] == "two: hello"


def text_of(client: DatabricksDeploymentClient, prompt: str) -> str:
    """What a stream said, to its end."""
    parts = client.predict_stream(endpoint="chat", inputs=chat(prompt))
    return "".join(part["choices"][0]["delta"].get("content", "") for part in parts)


def test_predict_stream(client: DatabricksDeploymentClient) -> None:
    assert text_of(client, "a b c") == "one: a b c"
    assert text_of(client, Prompt.DAWDLE) == f"one: {Prompt.DAWDLE}"
    assert text_of(client, Prompt.SEPARATE) == SEPARATED


def test_predict_stream_that_breaks_off(client: DatabricksDeploymentClient) -> None:
    parts = client.predict_stream(endpoint="chat", inputs=chat(Prompt.BREAK_OFF))
    assert next(parts)["choices"][0]["delta"]["content"] == "one:"
    assert next(parts)["error"]["message"]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):  # not to be taken for a whole answer
        next(parts)


# Errors.


def test_statuses(client: DatabricksDeploymentClient, server: Server) -> None:
    for status, call in (
        (400, lambda: client.create_endpoint(config=endpoint("bad name", hosted("a", CHAT)))),
        (400, lambda: client.create_endpoint(config=STANDING[0])),  # taken: 409 on the wire, 400 for MLflow
        (404, lambda: client.get_endpoint("nobody")),
        (404, lambda: client.predict(endpoint="nobody", inputs=chat("hello"))),
        (400, lambda: client.predict(endpoint="chat", inputs={"prompt": "of another task"})),
        (500, lambda: client.predict(endpoint="chat", inputs=chat(f"{Prompt.FAIL}500"))),
        (400, lambda: client.predict(endpoint="chat", inputs=chat(f"{Prompt.FAIL}422"))),
    ):
        with pytest.raises(requests.HTTPError) as failed:
            call()
        assert status_of(failed) == status
    client.create_endpoint(config=endpoint("busy", hosted("it", CHAT, GATED)))
    with pytest.raises(requests.HTTPError) as failed:
        client.update_endpoint_config("busy", {"served_entities": [hosted("it", CHAT)]})
    assert status_of(failed) == 409


def test_who_calls(guarded: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, status in (("nobody's-token", 401), (READER, 403)):
        client = client_of(guarded.url, monkeypatch, token)
        with pytest.raises(requests.HTTPError) as failed:
            client.update_endpoint_config("chat", {"served_entities": [hosted("it", CHAT)]})
        assert status_of(failed) == status
