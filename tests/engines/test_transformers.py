"""Real servers of transformers behind the router, asked by the OpenAI client that people have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.engines.site import READY_TIMEOUT_S, Environment, Site, endpoint, entity

pytestmark = pytest.mark.engines

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def served(site: Site, engines: Environment, models: Path) -> Site:
    """One model behind two entities, applied and routed."""
    engines.make("make_models.py", "tiny", str(models / "tiny"))
    version = {
        "engine": "transformers",
        "source": f"file://{models / 'tiny'}",
        "python": str(engines.python),
        "transformers": {"dtype": "float32", "device": "cpu"},
        "ready_timeout_s": READY_TIMEOUT_S,
    }
    catalogue = {"demo.chat": {"task": "llm/v1/chat", "versions": {"1": version}}}
    entities = [entity("current", "demo.chat"), entity("challenger", "demo.chat")]
    site.write(catalogue, {"chat": endpoint("chat", entities, {"current": 90, "challenger": 10})})
    site.run("apply", "--auto-approve")
    assert "No changes" in site.run("plan")
    site.serve()
    return site


@pytest.fixture
def client(served: Site) -> Iterator[openai.OpenAI]:
    with served.client() as found:
        yield found


def test_chat_answers_with_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=5)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content


def test_a_stream_ends_whole(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=8, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks)


def test_the_split_is_exact(client: openai.OpenAI) -> None:
    counted: Counter[str] = Counter()
    for _ in range(10):
        raw = client.chat.completions.with_raw_response.create(model="chat", messages=MESSAGES, max_tokens=1)
        counted[raw.headers["served-model-name"]] += 1
    assert counted == {"current": 9, "challenger": 1}


def test_ready_means_that_a_token_was_answered(served: Site) -> None:
    assert '"POST /v1/chat/completions HTTP/1.1" 200' in served.log("current")


def test_another_task_is_the_clients_own_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="task"):
        client.embeddings.create(model="chat", input="one")
