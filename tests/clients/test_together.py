"""What a client of one kind cannot show alone: splits, limits, updates under load, restarts, two sites."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import pytest
import requests

from tests.cli.harness import until
from tests.clients.harness import (
    ADMIN,
    CHAT,
    GATED,
    READER,
    STANDING,
    Server,
    Upstream,
    endpoint,
    external,
    hosted,
    ok,
    routes,
    serving,
    start,
    stop,
)

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def ask(server: Server, name: str, token: str = "any-token") -> requests.Response:
    return server.ask(f"/{name}/invocations", HELLO, token)


def content(answer: requests.Response) -> str:
    return str(ok(answer)["choices"][0]["message"]["content"])


# Splits.


def test_split_is_exact(server: Server, far: Upstream) -> None:
    entities = [external(name, far.url) for name in ("a", "b", "c")]
    ok(server.call("POST", "", endpoint("split", *entities, a=90, b=10, c=0)))
    counted = Counter(ask(server, "split").headers["served-model-name"] for _ in range(100))
    assert counted == {"a": 90, "b": 10}
    ok(server.call("PUT", "/split/config", {"traffic_config": routes(a=0, b=50, c=50)}))
    counted = Counter(ask(server, "split").headers["served-model-name"] for _ in range(20))
    assert counted == {"b": 10, "c": 10}


# Limits of calls.


def answers(server: Server, token: str, times: int) -> list[int]:
    """The statuses of that many requests to `limited`; every refusal says when to come back."""
    said = [ask(server, "limited", token) for _ in range(times)]
    for one in said:
        if one.status_code != 200:
            assert one.json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"
            assert 1 <= int(one.headers["retry-after"]) <= 120
    return [one.status_code for one in said]


def limited(far: Upstream, **more: Any) -> dict[str, Any]:
    return {**endpoint("limited", external("far", far.url)), **more}


def limit(calls: int, key: str, **more: str) -> dict[str, Any]:
    return {"calls": calls, "key": key, "renewal_period": "minute", **more}


@pytest.mark.parametrize("spelling", ["rate_limits", "ai_gateway"])
def test_limit_of_an_endpoint(server: Server, far: Upstream, spelling: str) -> None:
    limits = [limit(3, "endpoint")]
    more = {"rate_limits": limits} if spelling == "rate_limits" else {"ai_gateway": {"rate_limits": limits}}
    ok(server.call("POST", "", limited(far)))
    ok(server.call("PUT", f"/limited/{spelling.replace('_', '-')}", more.get("ai_gateway", more)))
    assert answers(server, "first", 2) == [200, 200]
    assert answers(server, "second", 3) == [200, 429, 429]  # for all callers together


def test_limit_of_each_user(server: Server, far: Upstream) -> None:
    ok(server.call("POST", "", limited(far, ai_gateway={"rate_limits": [limit(2, "user")]})))
    assert answers(server, "first", 4) == [200, 200, 429, 429]
    assert answers(server, "second", 3) == [200, 200, 429]
    reached = len(far.asked)
    assert answers(server, "second", 1) == [429]
    assert len(far.asked) == reached  # the upstream saw nothing of it


def test_limits_of_a_user_and_of_the_endpoint(server: Server, far: Upstream) -> None:
    both = [limit(2, "user"), limit(3, "endpoint")]
    ok(server.call("POST", "", limited(far, rate_limits=both)))
    assert answers(server, "first", 3) == [200, 200, 429]
    assert answers(server, "second", 2) == [200, 429]


def test_limit_outlives_changes_elsewhere(server: Server, far: Upstream) -> None:
    ok(server.call("POST", "", limited(far, rate_limits=[limit(1, "endpoint")])))
    assert answers(server, "any", 2) == [200, 429]
    ok(server.call("POST", "", endpoint("other", external("far", far.url))))
    ok(server.call("PATCH", "/limited/tags", {"add_tags": [{"key": "a"}]}))
    assert answers(server, "any", 1) == [429]


def test_limit_of_a_principal_overrides_that_of_everybody(guarded: Server) -> None:
    assert answers(guarded, ADMIN, 3) == [200, 200, 429]
    assert answers(guarded, READER, 4) == [200, 200, 200, 429]


# Several callers at once.


def at_once(calls: list[Callable[[], requests.Response]]) -> list[int]:
    """The statuses of calls that begin together."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result().status_code for one in [pool.submit(call) for call in calls]]


def test_one_name_is_given_once(server: Server, far: Upstream) -> None:
    body = endpoint("popular", external("far", far.url))
    said = at_once([lambda: server.call("POST", "", body)] * 6)
    assert sorted(said) == [200, 409, 409, 409, 409, 409]


def test_no_tag_is_lost(server: Server, far: Upstream) -> None:
    ok(server.call("POST", "", endpoint("tagged", external("far", far.url))))
    keys = [f"key-{n}" for n in range(6)]
    bodies = [{"add_tags": [{"key": key, "value": "v"}]} for key in keys]
    said = at_once([partial(server.call, "PATCH", "/tagged/tags", body) for body in bodies])
    assert said == [200] * 6
    assert sorted(tag["key"] for tag in server.get("tagged")["tags"]) == keys


def test_one_update_at_a_time(server: Server) -> None:
    server.create(endpoint("busy", hosted("it", CHAT)))
    body = {"served_entities": [hosted("it", CHAT, GATED)]}
    said = at_once([lambda: server.call("PUT", "/busy/config", body)] * 4)
    assert sorted(said) == [200, 409, 409, 409]


# Updates under load.


def test_no_request_fails_during_an_update(server: Server) -> None:
    server.create(endpoint("steady", hosted("it", CHAT)))
    over = Event()

    def caller() -> list[str]:
        said = []
        with requests.Session() as session:
            while not over.is_set():
                url = f"{server.url}/serving-endpoints/steady/invocations"
                said.append(content(session.post(url, json=HELLO, timeout=30)))
        return said

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(caller) for _ in range(4)]
        try:
            for version in ("2", "1", "2"):
                update = {"served_entities": [hosted("it", CHAT, version)]}
                ok(server.call("PUT", "/steady/config", update))
                server.settled("steady")
        finally:
            over.set()
        said = [one for each in callers for one in each.result()]
    assert set(said) == {"one: hello", "two: hello"}
    assert content(ask(server, "steady")) == "two: hello"


def test_what_did_not_change_is_not_restarted(server: Server) -> None:
    server.create(endpoint("pair", hosted("stays", CHAT), hosted("goes", CHAT), stays=50, goes=50))
    before = server.site.engines()
    changed = endpoint("pair", hosted("stays", CHAT), hosted("goes", CHAT, "2"), stays=50, goes=50)
    ok(server.call("PUT", "/pair/config", changed["config"]))
    server.settled("pair")
    after = server.site.engines()
    assert after["pair/stays"] == before["pair/stays"]
    assert content(ask(server, "pair/served-models/stays")) == "one: hello"
    assert content(ask(server, "pair/served-models/goes")) == "two: hello"


# Restarts.


@pytest.mark.slow
def test_engine_that_dies_comes_back(server: Server) -> None:
    server.create(endpoint("mortal", hosted("it", CHAT)))
    os.kill(server.site.engines()["mortal/it"], signal.SIGKILL)
    until(lambda: server.get("mortal")["state"]["ready"] == "NOT_READY", "its death shows")
    found = server.get("mortal")
    assert found["state"]["config_update"] == "NOT_UPDATING"
    assert found["config"]["served_entities"][0]["state"]["deployment"] == "DEPLOYMENT_RECOVERING"
    gone = ask(server, "mortal")
    if gone.status_code != 200:
        assert (gone.status_code, gone.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    until(lambda: server.get("mortal")["state"]["ready"] == "READY", "it is back", 60)
    assert content(ask(server, "mortal")) == "one: hello"
    assert server.get("mortal")["config"]["config_version"] == 1


@pytest.mark.slow
def test_changes_survive_a_restart(tmp_path_factory: pytest.TempPathFactory, far: Upstream) -> None:
    with serving(tmp_path_factory.mktemp("restarted"), STANDING[:1]) as server:
        limits = {"rate_limits": [limit(2, "endpoint")]}
        local = endpoint("local", hosted("a", CHAT), hosted("b", CHAT, "2"), a=50, b=50)
        server.create({**local, "tags": [{"key": "team", "value": "a"}]})
        ok(server.call("POST", "", {**endpoint("outside", external("far", far.url)), **limits}))
        ok(server.call("PUT", "/local/config", {"traffic_config": routes(a=0, b=100)}))
        before = {name: server.settled(name) for name in ("local", "outside", "chat")}
        engines = server.site.engines()

        stop(server)
        again = start(server.site, server.url, server.router)
        assert {name: again.get(name) for name in before} == before
        assert again.site.engines() == engines
        assert content(ask(again, "local")) == "two: hello"
        assert content(ask(again, "chat")) == "one: hello"
        assert [ask(again, "outside").status_code for _ in range(3)] == [200, 200, 429]
        plan = again.site.run("plan").ok()
        assert "No changes" in plan.out  # what the API made is not the bundle's


# Two sites.


@pytest.fixture
def chained(server: Server, guarded: Server) -> str:
    """An endpoint whose model is an endpoint of another site, which asks for a token."""
    config = {
        "databricks_workspace_url": guarded.url,
        "databricks_api_token_plaintext": ADMIN,
    }
    model = {
        "provider": "databricks-model-serving",
        "name": "chat",
        "task": "llm/v1/chat",
        "databricks_model_serving_config": config,
    }
    ok(server.call("POST", "", endpoint("chained", {"name": "there", "external_model": model})))
    return "chained"


def test_a_site_behind_another(server: Server, chained: str) -> None:
    answer = ask(server, chained)
    assert (content(answer), answer.headers["served-model-name"]) == ("one: hello", "there")
    streamed = server.ask(f"/{chained}/invocations", {**HELLO, "stream": True})
    assert streamed.text.rstrip().endswith("data: [DONE]")
