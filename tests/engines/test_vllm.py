"""Two versions of a model on real vLLM servers (the build for CPUs), from `plan` to `destroy`.

The tests share one site and run in this order: each needs what those before it have left. Run by
`make test-vllm`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from servestate.providers import identity
from servestate.runtime import exit_codes
from tests.engines.site import READY_TIMEOUT_S, Environment, Site, endpoint, entity, listens, until

pytestmark = pytest.mark.vllm

MESSAGES = [{"role": "user", "content": "Hello"}]
SHARED_MEMORY = Path("/dev/shm")
LONG_STREAM_TOKENS = 8000
"""Some eight seconds: more than the router's drain, less than vLLM waits after it was told to stop."""
STARTED = {
    "current": "chat/completions",
    "challenger": "chat/completions",
    "completer": "completions",
    "embedder": "embeddings",
}
"""The served entities, and the path on which each is first asked."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What the first apply said, and what was in shared memory before it."""

    said: str
    shared_before: frozenset[str]


@pytest.fixture(scope="module")
def tiny(vllm: Environment, models: Path) -> Path:
    vllm.make("make_models.py", "tiny", str(models / "tiny"))
    return models / "tiny"


@pytest.fixture(scope="module")
def python(vllm: Environment, models: Path) -> Path:
    """vLLM's interpreter at a low priority: its processes poll, and on two cores nothing else would get on
    while one of them answers."""
    script = models / "python"
    script.write_text(f'#!/bin/sh\nexec nice -n 15 "{vllm.python}" "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def catalogue(python: Path, tiny: Path) -> dict[str, Any]:
    """The models of the site. Of the chat model's versions two cannot start."""
    damaged = tiny.with_name("damaged")
    damaged.mkdir()
    for file in tiny.iterdir():
        content = file.read_bytes()
        half = len(content) // 2
        (damaged / file.name).write_bytes(content[:half] if file.suffix == ".safetensors" else content)

    def version(folder: Path, **options: Any) -> dict[str, Any]:
        given = {"max_num_seqs": 4, "enforce_eager": True, "kv_cache_memory_bytes": "32MiB", **options}
        return {
            "engine": "vllm",
            "source": f"file://{folder}",
            "python": str(python),
            "vllm": given,
            "ready_timeout_s": READY_TIMEOUT_S,
            "drain_timeout_s": 1,
            "stop_grace_s": 30,
        }

    chat = {
        "1": version(tiny, max_model_len=8192),
        "2": version(tiny, max_model_len=8192, max_num_seqs=5),
        "too-long": version(tiny, max_model_len=8192, kv_cache_memory_bytes="1MiB"),
        "damaged": version(damaged, max_model_len=1024),
    }
    short = {"1": version(tiny, max_model_len=512)}
    return {
        "demo.chat": {"task": "llm/v1/chat", "versions": chat},
        "demo.complete": {"task": "llm/v1/completions", "versions": short},
        "demo.embed": {"task": "llm/v1/embeddings", "versions": short},
    }


def endpoints(current: str = "1", *more: dict[str, Any]) -> dict[str, Any]:
    """A chat endpoint split 90 to 10, one of completions and one of embeddings."""
    chat = [entity("current", "demo.chat", current), entity("challenger", "demo.chat"), *more]
    unused = {one["name"]: 0 for one in more}
    return {
        "chat": endpoint("chat", chat, {"current": 90, "challenger": 10, **unused}),
        "complete": endpoint("complete", [entity("completer", "demo.complete")], {"completer": 100}),
        "embed": endpoint("embed", [entity("embedder", "demo.embed")], {"embedder": 100}),
    }


@pytest.fixture(scope="module")
def applied(site: Site, catalogue: dict[str, Any]) -> Applied:
    """The site with four servers behind the router."""
    before = frozenset(path.name for path in SHARED_MEMORY.iterdir())
    site.write(catalogue, endpoints())
    site.run("validate")
    assert "7 to add" in site.run("plan")
    said = "\n".join(line.text for line in site.watch("apply", "--auto-approve"))
    site.serve()
    return Applied(said, before)


@pytest.fixture
def client(applied: Applied, site: Site) -> Iterator[openai.OpenAI]:
    with site.client() as found:
        yield found


def test_apply_tells_the_phases_of_vllms_start(applied: Applied) -> None:
    assert re.search(r"Still waiting.*\n\s+(starting the (engine|workers)|loading)", applied.said)


def test_ready_means_that_a_token_was_answered(applied: Applied, site: Site) -> None:
    for name, path in STARTED.items():
        first = re.search(r'"POST (\S+) HTTP/1.1" (\d+)', site.log(name))
        assert first is not None
        assert first.groups() == (f"/v1/{path}", "200")


def test_a_second_plan_finds_nothing_to_do(applied: Applied, site: Site) -> None:
    assert "No changes" in site.run("plan")


def test_chat_answers_with_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=5)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_streamed_text_equals_whole_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "complete", "prompt": "One, two,", "max_tokens": 16, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    chunks = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole


def test_split_is_exact(client: openai.OpenAI) -> None:
    counted: Counter[str] = Counter()
    for _ in range(20):
        raw = client.chat.completions.with_raw_response.create(model="chat", messages=MESSAGES, max_tokens=1)
        counted[raw.headers["served-model-name"]] += 1
    assert counted == {"current": 18, "challenger": 2}


def test_one_entity_can_be_asked_by_name(applied: Applied, site: Site) -> None:
    found = httpx.post(
        f"{site.url}/serving-endpoints/chat/served-models/challenger/invocations",
        json={"messages": MESSAGES, "max_tokens": 1},
        headers={"Authorization": "Bearer any"},
        timeout=60,
    )
    assert found.status_code == 200
    assert found.headers["served-model-name"] == "challenger"


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=["one", "another"])
    first, second = (one.embedding for one in answer.data)
    assert len(first) == len(second) == 64
    assert first != second


def test_the_engines_own_port_asks_for_the_key(applied: Applied, site: Site) -> None:
    url = site.engine_url("current")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer any"}).status_code == 401


def test_the_key_is_in_no_command_line_environment_or_log(applied: Applied, site: Site) -> None:
    (tree,) = site.trees("current")
    (file,) = (site.folder / ".servestate" / "run").glob("*_current_*/key.yaml")
    assert file.stat().st_mode & 0o077 == 0
    key = file.read_text().split('"')[1]
    assert len(key) >= 32
    for member in tree.members:
        assert key.encode() not in Path(f"/proc/{member.pid}/cmdline").read_bytes()
        assert key.encode() not in Path(f"/proc/{member.pid}/environ").read_bytes()
    assert key not in site.log("current")


def test_paths_of_operators_are_not_routed(applied: Applied, site: Site) -> None:
    for path in ("metrics", "tokenize", "sleep", "pause", "collective_rpc", "v1/load_lora_adapter", "load"):
        for prefix in ("", "serving-endpoints/chat/", "serving-endpoints/chat/served-models/current/"):
            for method in ("GET", "POST"):
                found = httpx.request(
                    method, f"{site.url}/{prefix}{path}", headers={"Authorization": "Bearer a"}
                )
                assert found.status_code == 404, f"{method} {prefix}{path}"


def test_a_bad_request_is_the_clients_own_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="8192"):
        client.chat.completions.create(model="chat/current", messages=MESSAGES, max_tokens=9000)


def test_a_start_that_fails_says_why_and_disturbs_nobody(
    applied: Applied, site: Site, catalogue: dict[str, Any], client: openai.OpenAI
) -> None:
    """Both in one apply: an import of PyTorch takes its time."""
    broken = [entity(name, "demo.chat", name) for name in ("too-long", "damaged")]
    site.write(catalogue, endpoints("1", *broken))
    failed = site.attempt("apply", "--auto-approve")
    assert failed.returncode == exit_codes.PARTIAL
    said = failed.stdout + failed.stderr
    assert re.search(r"SS513 exit code 1: one request of 8192 tokens needs \d.*: set max_model_len", said)
    assert "SS513 exit code 1: the model could not be loaded" in said
    assert "| RuntimeError: Engine core initialization failed" in said
    for name in ("current", "challenger"):
        assert client.chat.completions.create(model=f"chat/{name}", messages=MESSAGES, max_tokens=1).choices

    site.write(catalogue, endpoints())
    site.run("apply", "--auto-approve")
    assert {tree.worn.marks.address.entity for tree in site.trees()} == set(STARTED)


@dataclass(frozen=True, slots=True)
class Stream:
    """One long answer: which replica gave it, how it ended and when, in seconds of `time.monotonic`."""

    replica: str
    finish: str | None
    ended: float


def long_stream(client: openai.OpenAI) -> Stream:
    """Ask for more tokens than the router's drain leaves time for, and read them all."""
    finish = None
    with client.chat.completions.with_streaming_response.create(
        model="chat/current",
        messages=MESSAGES,
        max_tokens=LONG_STREAM_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as answer:
        replica = answer.headers["x-servestate-replica"]
        for chunk in answer.parse():
            finish = chunk.choices[0].finish_reason or finish
    return Stream(replica, finish, time.monotonic())


def test_a_request_in_flight_survives_a_replacement(
    applied: Applied, site: Site, catalogue: dict[str, Any], client: openai.OpenAI
) -> None:
    """It outlasts the router's drain of one second, so it is vLLM's own `--shutdown-timeout` that lets it
    end. How long apply takes from the engine's last word to the stop depends on the machine: a stream that
    ended before is tried again, begun later."""
    for attempt, version in enumerate(("2", "1", "2")):
        old, new, told_to_stop = replaced(site, catalogue, client, version, attempt)
        assert (old.finish, new.finish) == ("length", "length")
        assert old.replica != new.replica
        if old.ended > told_to_stop:
            return
    pytest.fail("nothing was in flight at any stop")


def replaced(
    site: Site, catalogue: dict[str, Any], client: openai.OpenAI, version: str, attempt: int
) -> tuple[Stream, Stream, float]:
    """Replace the entity while a stream runs: that stream, one afterwards, and when the old replica was told
    to stop. The stream begins `attempt` seconds after the new replica has loaded."""
    logs = site.folder / ".servestate" / "run"

    def loaded() -> int:
        return sum(
            "Application startup complete" in log.read_text() for log in logs.glob("chat_current_*/log")
        )

    before = loaded()
    site.write(catalogue, endpoints(version))
    with ThreadPoolExecutor() as threads:
        applying = threads.submit(site.watch, "apply", "--auto-approve")
        until(lambda: loaded() > before, "the new replica is about to answer", READY_TIMEOUT_S)
        time.sleep(attempt)
        old = long_stream(client)
        lines = applying.result()
    (told_to_stop,) = (line.at for line in lines if re.match(r"chat/current: Destroying\.\.\.", line.text))
    return old, long_stream(client), told_to_stop


def test_destroy_leaves_nothing(applied: Applied, site: Site) -> None:
    trees = site.trees()
    assert {tree.worn.marks.address.entity for tree in trees} == set(STARTED)
    site.run("destroy", "--auto-approve")
    assert site.trees() == []
    for tree in trees:
        assert not listens(tree.worn.port)
        assert not any(identity.alive(member) for member in tree.members)


@pytest.mark.xfail(
    reason="what is left of an engine is killed before its tracker of shared memory has cleaned up"
)
def test_destroy_leaves_no_shared_memory(applied: Applied) -> None:
    assert {path.name for path in SHARED_MEMORY.iterdir()} <= applied.shared_before
