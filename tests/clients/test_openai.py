"""The OpenAI client, as it comes, against what is served; `model` is the name of an endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from databricks.sdk import WorkspaceClient

from tests.clients.engine import SEPARATED, Prompt
from tests.clients.harness import (
    READER,
    TOKEN,
    Server,
    Upstream,
    endpoint,
    external,
    ok,
)

Messages = list[dict[str, str]]


def client_of(server: Server, token: str = TOKEN, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(api_key=token, base_url=f"{server.url}/serving-endpoints", max_retries=retries)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def asking(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=asking("hello"), max_tokens=5)
    assert answer.choices[0].message.content == "one: hello"
    assert answer.usage.total_tokens == 3


def test_one_entity_by_header(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=asking("hello"))
    assert raw.headers["served-model-name"] == "current"
    assert raw.parse().choices[0].message.content == "one: hello"


@pytest.mark.parametrize("usage", [True, False], ids=["usage", "plain"])
def test_stream(client: openai.OpenAI, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    stream = client.chat.completions.create(model="chat", messages=asking("a b"), stream=True, **options)
    parts = list(stream)
    said = [part for part in parts if part.choices]
    assert "".join(part.choices[0].delta.content or "" for part in said) == "one: a b"
    rest = [part for part in parts if not part.choices]
    assert [part.usage.total_tokens for part in rest] == ([5] if usage else [])


def test_stream_of_odd_text(client: openai.OpenAI) -> None:
    for prompt, text in ((Prompt.SEPARATE, SEPARATED), (Prompt.DAWDLE, f"one: {Prompt.DAWDLE}")):
        stream = client.chat.completions.create(model="chat", messages=asking(prompt), stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in stream) == text


def test_stream_that_breaks_off(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="chat", messages=asking(Prompt.BREAK_OFF), stream=True)
    assert next(stream).choices[0].delta.content == "one:"
    with pytest.raises(openai.APIError):
        list(stream)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="text", prompt="once")
    assert answer.choices[0].text == "one: once"
    parts = client.completions.create(model="text", prompt="a b", stream=True)
    assert "".join(part.choices[0].text for part in parts) == "one: a b"


def test_embeddings(client: openai.OpenAI) -> None:
    by_default = client.embeddings.create(model="embeddings", input=["four", "sixsix"])
    assert [one.embedding for one in by_default.data] == [[4.0, 0.5, -1.0], [6.0, 0.5, -1.0]]
    floats = client.embeddings.create(model="embeddings", input="four", encoding_format="float")
    assert floats.data[0].embedding == [4.0, 0.5, -1.0]


def test_models(client: openai.OpenAI) -> None:
    names = [one.id for one in client.models.list()]
    assert {"chat", "text", "embeddings", "table"} <= set(names)


def test_responses_are_not_offered(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="chat", input="hello")


def test_client_that_the_databricks_sdk_makes(server: Server) -> None:
    pytest.importorskip("httpx")
    w = WorkspaceClient(host=server.url, token=TOKEN)
    with pytest.warns(DeprecationWarning, match="get_open_ai_client"):
        made = w.serving_endpoints.get_open_ai_client()
    with made:
        answer = made.chat.completions.create(model="chat", messages=asking("hello"))
    assert answer.choices[0].message.content == "one: hello"


def test_errors(client: openai.OpenAI, guarded: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=asking("hello"))
    assert "nobody" in missing.value.message
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="chat", prompt="of another task")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="chat", messages=asking(f"{Prompt.FAIL}500"))
    with client_of(guarded, "nobody's-token") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="chat", messages=asking("hello"))
    with client_of(guarded, READER) as reader:
        assert reader.chat.completions.create(model="chat", messages=asking("hello")).choices


@pytest.fixture
def outside(server: Server, far: Upstream) -> str:
    """An endpoint that an upstream answers."""
    ok(server.call("POST", "", endpoint("outside", external("far", far.url))))
    return "outside"


def test_limits_of_others(server: Server, outside: str, far: Upstream) -> None:
    far.statuses.append(429)
    with client_of(server) as hasty, pytest.raises(openai.RateLimitError) as limited:
        hasty.chat.completions.create(model=outside, messages=asking("hello"))
    assert limited.value.response.headers["retry-after"] == "1"
    far.statuses.append(429)
    with client_of(server, retries=2) as patient:
        answer = patient.chat.completions.create(model=outside, messages=asking("hello"))
    assert answer.choices[0].message.content == "far: hello"


def test_limits_of_our_own(server: Server, outside: str) -> None:
    limits = {"rate_limits": [{"calls": 1, "key": "endpoint", "renewal_period": "minute"}]}
    ok(server.call("PUT", f"/{outside}/ai-gateway", limits))
    with client_of(server) as hasty:
        assert hasty.chat.completions.create(model=outside, messages=asking("hello")).choices
        with pytest.raises(openai.RateLimitError) as limited:
            hasty.chat.completions.create(model=outside, messages=asking("hello"))
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
