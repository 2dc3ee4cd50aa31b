"""A site on which nothing has been made yet, as every client finds it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from databricks.sdk import WorkspaceClient
from mlflow.deployments import get_deploy_client

from tests.clients.harness import TOKEN, Server, endpoint, external, ok, serving


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("empty")) as server:
        yield server


def test_there_is_nothing(empty: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", empty.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    assert list(WorkspaceClient().serving_endpoints.list()) == []
    assert get_deploy_client("databricks").list_endpoints() == []
    for form in ("", "/"):
        assert ok(empty.call("GET", form)) == {"endpoints": []}
    with openai.OpenAI(api_key=TOKEN, base_url=f"{empty.url}/serving-endpoints") as client:
        assert list(client.models.list()) == []


def test_there_is_nothing_again(empty: Server) -> None:
    ok(empty.call("POST", "", endpoint("only", external("far", "http://127.0.0.1:1"))))
    assert empty.names() == {"only"}
    assert ok(empty.call("DELETE", "/only")) == {}
    assert ok(empty.call("GET", "")) == {"endpoints": []}
