"""What the gateway adds, as clients see it: fallback, limits, guardrails and streams that break off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.clock import RealClock
from databricks.sdk.config import Config
from databricks.sdk.errors import InvalidParameterValue, RequestLimitExceeded
from databricks.sdk.service.serving import ChatMessage, ChatMessageRole

from tests.clients.engine import Prompt
from tests.clients.harness import CHAT, TOKEN, Server, Upstream, endpoint, external, hosted, upstream

MAIL = "ann.smith@example.com"
MASKS = {"pii": {"behavior": "MASK"}, "invalid_keywords": ["secret plan"]}
Asked = list[dict[str, str]]


def asking(text: str) -> Asked:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    url = f"{server.url}/serving-endpoints"
    with openai.OpenAI(api_key=TOKEN, base_url=url, max_retries=0) as made:
        yield made


@pytest.fixture
def w(server: Server) -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=server.url, token=TOKEN, retry_timeout_seconds=5))


@pytest.fixture
def next_one() -> Iterator[Upstream]:
    """Another model server, to fall back on."""
    with upstream("next") as running:
        yield running


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What clients wait before they repeat a call, in seconds; they do not really wait."""
    waits: list[float] = []
    monkeypatch.setattr(openai._base_client, "time", SimpleNamespace(**{**vars(time), "sleep": waits.append}))
    monkeypatch.setattr(RealClock, "sleep", lambda clock, seconds: waits.append(seconds))
    return waits


def made(server: Server, name: str, *entities: dict[str, Any], gateway: dict[str, Any], **shares: int) -> str:
    """An endpoint with an AI gateway."""
    server.create({**endpoint(name, *entities, **shares), "ai_gateway": gateway})
    return name


def query(w: WorkspaceClient, name: str, text: str = "hello") -> tuple[str, str]:
    """What was said, and by which entity."""
    answer = w.serving_endpoints.query(name, messages=[ChatMessage(text, ChatMessageRole.USER)])
    return answer.choices[0].message.content, answer.served_model_name


@pytest.fixture
def two(server: Server, far: Upstream, next_one: Upstream) -> str:
    """An endpoint that falls back from the one to the other."""
    entities = external("first", far.url), external("second", next_one.url)
    gateway = {"fallback_config": {"enabled": True}}
    return made(server, "two", *entities, gateway=gateway, first=100, second=0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_fallback_answers_in_the_first_ones_place(
    client: openai.OpenAI, w: WorkspaceClient, two: str, far: Upstream, next_one: Upstream, status: int
) -> None:
    far.statuses.append(status)
    raw = client.chat.completions.with_raw_response.create(model=two, messages=asking("hello"))
    assert raw.headers["served-model-name"] == "second"
    assert raw.headers["x-servestate-attempts"] == "2"
    assert raw.parse().choices[0].message.content == "next: hello"
    far.statuses.append(status)
    assert query(w, two) == ("next: hello", "second")
    assert query(w, two) == ("far: hello", "first")
    assert (len(far.asked), len(next_one.asked)) == (3, 2)
    assert next_one.asked[0].headers["authorization"] == "Bearer s3cret-of-the-upstream"


def test_a_stream_falls_back_before_it_begins(client: openai.OpenAI, two: str, far: Upstream) -> None:
    far.statuses.append(503)
    stream = client.chat.completions.create(model=two, messages=asking("a b"), stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in stream) == "next: a b"


def test_where_all_fail_the_last_one_is_heard(
    client: openai.OpenAI, two: str, far: Upstream, next_one: Upstream
) -> None:
    far.statuses.append(500)
    next_one.statuses.append(500)
    with pytest.raises(openai.InternalServerError, match="the engine answers 500"):
        client.chat.completions.create(model=two, messages=asking("hello"))
    far.statuses.append(400)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=two, messages=asking("hello"))
    assert len(next_one.asked) == 1, "a 400 is nobody else's business"


def limits(**limit: Any) -> dict[str, Any]:
    return {"rate_limits": [{"key": "endpoint", "renewal_period": "minute", **limit}]}


def test_limits_are_told_with_every_answer(client: openai.OpenAI, server: Server, slept: list[float]) -> None:
    name = made(server, "limited", hosted("only", CHAT), gateway=limits(calls=2, tokens=1000))
    raw = client.chat.completions.with_raw_response.create(
        model=name, messages=asking("hello"), max_tokens=100
    )
    told = {key: raw.headers[f"x-ratelimit-{key}"] for key in ("limit-requests", "remaining-requests")}
    assert told == {"limit-requests": "2", "remaining-requests": "1"}
    assert raw.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) == 1000 - 100 - 1
    assert raw.headers["x-ratelimit-reset-requests"] == "1m0s"
    raw = client.chat.completions.with_raw_response.create(
        model=name, messages=asking("hello"), max_tokens=100
    )
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) == 1000 - 3 - 100 - 1, "the first one used three"
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model=name, messages=asking("hello"), max_tokens=100)
    headers = limited.value.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(headers["retry-after"]) <= 60
    assert slept == []


def test_clients_wait_as_long_as_they_are_told(
    client: openai.OpenAI, w: WorkspaceClient, server: Server, slept: list[float]
) -> None:
    name = made(server, "limited", hosted("only", CHAT), gateway=limits(calls=1))
    assert query(w, name) == ("one: hello", "only")
    with pytest.raises(openai.RateLimitError) as limited:
        client.with_options(max_retries=2).chat.completions.create(model=name, messages=asking("hello"))
    told = int(limited.value.response.headers["retry-after"])
    assert [round(wait) for wait in slept] == [told, told]
    slept.clear()
    impatient = WorkspaceClient(config=Config(host=server.url, token=TOKEN, retry_timeout_seconds=1))
    with pytest.raises(TimeoutError) as ended:
        query(impatient, name)
    assert isinstance(ended.value.__cause__, RequestLimitExceeded)
    assert abs(slept[0] - told) <= 2


def test_a_request_that_asks_for_too_many_tokens(client: openai.OpenAI, server: Server) -> None:
    name = made(server, "limited", hosted("only", CHAT), gateway=limits(tokens=50))
    with pytest.raises(openai.RateLimitError, match="more tokens than the limit gives"):
        client.chat.completions.create(model=name, messages=asking("hello"), max_tokens=60)
    assert client.chat.completions.create(model=name, messages=asking("hello"), max_tokens=40).choices


@pytest.fixture
def guarded(server: Server) -> str:
    """An endpoint that masks and refuses in what it is asked."""
    return made(server, "guarded", hosted("only", CHAT), gateway={"guardrails": {"input": MASKS}})


@pytest.fixture
def shielded(server: Server, far: Upstream) -> str:
    """An endpoint that masks and refuses in what it answers."""
    gateway = {"guardrails": {"output": MASKS}, "usage_tracking_config": {"enabled": True}}
    return made(server, "shielded", external("far", far.url), gateway=gateway)


def test_a_guardrail_refuses_a_request(client: openai.OpenAI, w: WorkspaceClient, guarded: str) -> None:
    with pytest.raises(openai.BadRequestError, match="guardrail"):
        client.chat.completions.create(model=guarded, messages=asking("the SECRET plan"))
    with pytest.raises(openai.BadRequestError, match="guardrail"):
        client.chat.completions.create(model=guarded, messages=asking("the SECRET plan"), stream=True)
    with pytest.raises(InvalidParameterValue, match="guardrail"):
        query(w, guarded, "the SECRET plan")
    assert query(w, guarded, f"to {MAIL}") == ("one: to <EMAIL_ADDRESS>", "only")


@pytest.mark.parametrize("usage", [True, False], ids=["usage", "plain"])
def test_a_masked_stream(client: openai.OpenAI, shielded: str, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    text = f"write to {MAIL} or call"
    stream = client.chat.completions.create(model=shielded, messages=asking(text), stream=True, **options)
    parts = list(stream)
    said = [part.choices[0] for part in parts if part.choices]
    assert "".join(one.delta.content or "" for one in said) == "far: write to <EMAIL_ADDRESS> or call"
    assert said[-1].finish_reason == "stop"
    assert [part.usage.total_tokens for part in parts if part.usage] == ([11] if usage else [])


def test_a_refused_answer(client: openai.OpenAI, w: WorkspaceClient, shielded: str) -> None:
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError, match="guardrail refused the answer"):
            client.chat.completions.create(model=shielded, messages=asking("a secret plan"), stream=stream)
    with pytest.raises(InvalidParameterValue, match="guardrail refused the answer"):
        query(w, shielded, "a secret plan")
    assert query(w, shielded, f"to {MAIL}") == ("far: to <EMAIL_ADDRESS>", "far")


def test_a_stream_that_breaks_off_is_never_whole(
    client: openai.OpenAI, two: str, shielded: str, far: Upstream, slept: list[float]
) -> None:
    stream = client.chat.completions.create(model=two, messages=asking(Prompt.BREAK_OFF), stream=True)
    assert next(stream).choices[0].delta.content == "far:"
    with pytest.raises(openai.APIError):
        list(stream)
    patient = client.with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError) as lost:
        patient.chat.completions.create(model=shielded, messages=asking(Prompt.BREAK_OFF), stream=True)
    assert lost.value.response.headers["servestate-retry"] == "unsafe"
    assert slept == [], "what may have run is not repeated"
    assert len(far.asked) == 2
