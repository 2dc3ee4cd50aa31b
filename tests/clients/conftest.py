"""Sites that are served for the whole run, and the environment that clients read.

Starting a site takes longer than most tests, so tests share one: endpoints that a test makes have names of
their own and are deleted after it, the standing ones are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.clients.harness", "tests.cli.harness")

from tests.clients.harness import (  # noqa: E402  # after the line above, or asserts there would say nothing
    ADMIN,
    CHAT,
    READER,
    STANDING,
    STRANGER,
    Server,
    Upstream,
    endpoint,
    hosted,
    ok,
    serving,
    upstream,
)


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Nothing of this machine's own set-up reaches a client, none reports home, and none repeats for long."""
    empty = tmp_path_factory.mktemp("home") / "databrickscfg"
    empty.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith(("DATABRICKS_", "ARM_", "OPENAI_", "MLFLOW_")):
                patch.delenv(name)
        patch.setenv("DATABRICKS_CONFIG_FILE", str(empty))
        patch.setenv("DO_NOT_TRACK", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT", "2")
        patch.setenv("MLFLOW_DEPLOYMENT_PREDICT_TOTAL_TIMEOUT", "5")
        patch.setenv("MLFLOW_DEPLOYMENT_PREDICT_TIMEOUT", "5")  # mlflow warns where it is above the total
        yield patch


@pytest.fixture(scope="session")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The site with the standing endpoints, which asks for no token."""
    with serving(tmp_path_factory.mktemp("shared"), STANDING) as server:
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A site that asks for tokens, with endpoints that the reader may query: `chat`, and `limited`, with 2
    calls a minute for everybody but the reader, who has 3. Tests change nothing there."""
    tokens = [
        {"user_name": "admin@example.com", "sha256": _sha256(ADMIN), "rights": ["admin"]},
        {"user_name": "reader@example.com", "sha256": _sha256(READER)},
        {"user_name": "stranger@example.com", "sha256": _sha256(STRANGER)},
    ]
    grants = [{"level": "CAN_QUERY", "user_name": "reader@example.com"}]
    limits = [{"calls": 2, "key": "user", "renewal_period": "minute"}]
    limits.append({**limits[0], "calls": 3, "principal": "reader@example.com"})
    standing = (
        {**endpoint("chat", hosted("current", CHAT)), "permissions": grants},
        {
            **endpoint("limited", hosted("current", CHAT)),
            "permissions": grants,
            "ai_gateway": {"rate_limits": limits},
        },
    )
    with serving(tmp_path_factory.mktemp("guarded"), standing, access={"tokens": tokens}) as server:
        yield server


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def server(shared_site: Server) -> Iterator[Server]:
    """The shared site; what a test made there is deleted after it."""
    yield shared_site
    shared_site.open_gate()
    for name in shared_site.names() - {one["name"] for one in STANDING}:
        ok(shared_site.call("DELETE", f"/{name}"))
    shared_site.close_gate()


@pytest.fixture
def far() -> Iterator[Upstream]:
    """Somebody else's model server."""
    with upstream() as running:
        yield running
