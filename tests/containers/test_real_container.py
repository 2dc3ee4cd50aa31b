"""A real language model in containers, from YAML to answers, by the commands that a person types."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.harness import local, until
from tests.containers.harness import (
    ContainerSite,
    check_converged,
    processes_of,
    unclaimed,
)
from tests.docker import images
from tests.ports import free_port

pytestmark = pytest.mark.slow

CANARY = "canary-e5b1f0c2d7a94b36"
CHAT = {"chat": {"current": local("1", 90), "challenger": local("1", 10)}}
ASKED = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}


@dataclass
class Gemma:
    """The site, its router's port, and the values of its next configuration."""

    site: ContainerSite
    image: str
    port: int = field(default_factory=free_port)

    def configure(self, **settings: Any) -> None:
        """Both entities as the same version; the challenger holds a secret."""
        weights = images.weights()
        version = {
            "engine": "llamacpp",
            "image": self.image,
            "source": f"file://{weights}",
            "env": {"CANARY": "{{secrets/tests/canary}}"},
            "llamacpp": {"ctx_size": 512, "threads": 1, **settings},
            "container": {"memory": "2GiB", "cpus": 2.0},
        }
        self.site.contain(
            CHAT,
            {"1": version},
            task="llm/v1/chat",
            docker={"allowed_paths": [str(weights.parent)]},
            listen=f"127.0.0.1:{self.port}",
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/serving-endpoints/chat/invocations"

    def engine_url(self, entity: str) -> str:
        """Where an entity's engine listens."""
        return next(
            i.url for address, i in self.site.state().instances.items() if str(address.of) == f"chat/{entity}"
        )


@pytest.fixture
def gemma(site: ContainerSite, llamacpp: str) -> Gemma:
    site.env["SERVESTATE_SECRET_TESTS__CANARY"] = CANARY
    return Gemma(site, llamacpp)


@dataclass
class Caller:
    """Asks without a pause, in a thread, until the block ends; what it was answered with."""

    url: str
    statuses: list[int] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Caller:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._enough.is_set():
                try:
                    self.statuses.append(client.post(self.url, json=ASKED).status_code)
                except httpx.HTTPError:
                    self.statuses.append(0)


def test_a_day_in_the_life_of_two_containers(gemma: Gemma) -> None:
    site = gemma.site
    before = _count(site)
    gemma.configure()
    site.run("validate").ok()
    shown = site.run("plan", "--out", "plan.json").ok().out
    assert "Plan: 3 to add, 0 to change, 0 to destroy." in shown
    said = [shown, site.run("apply", "plan.json").ok().out]
    check_converged(site, CHAT)

    router = site.serve()
    assert _split(gemma.url, 100) == {"current": 90, "challenger": 10}
    assert site.run("query", "chat", "Say hello.", "--max-tokens", "8").ok().out.strip()
    status = site.run("status").ok().out
    assert re.search(r"current +desired +90 % +observed +90\.?\d* %", status), status
    logs = site.run("logs", "chat/challenger").ok().out
    assert "print_timing" in logs, logs
    _check_key(gemma)
    _check_canary(site, [*said, status, logs])
    _check_applied_twice(site)
    _check_surge(gemma)

    site.run("destroy", "--auto-approve").ok()
    assert site.containers() == []
    until(lambda: _count(site) == before, "as many containers as before")
    router.process.terminate()
    router.end()


def _count(site: ContainerSite) -> int:
    """The lines of `docker ps -a`, without those that wear somebody else's marks."""
    return len(unclaimed(site.client)) + len(site.containers())


def _split(url: str, count: int) -> Counter[str]:
    with httpx.Client(timeout=60) as client:
        answers = [client.post(url, json=ASKED) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return Counter(answer.headers["served-model-name"] for answer in answers)


def _check_key(gemma: Gemma) -> None:
    """Whoever reaches the engine's own port gets nowhere without its key."""
    for entity in ("current", "challenger"):
        port = f"{gemma.engine_url(entity)}/v1/chat/completions"
        assert httpx.post(port, json=ASKED).status_code == 401
        wrong = {"authorization": "Bearer of-somebody-else"}
        assert httpx.post(port, json=ASKED, headers=wrong).status_code == 401


def _check_canary(site: ContainerSite, said: list[str]) -> None:
    """The secret is in the engine's environment, and nowhere else."""
    for one in site.containers():
        processes = list(processes_of(one))
        assert any(CANARY.encode() in (p / "environ").read_bytes() for p in processes)
        assert all(CANARY.encode() not in (p / "cmdline").read_bytes() for p in processes)
        assert CANARY not in json.dumps(one.attrs)
        assert CANARY.encode() not in one.logs()
    assert CANARY not in "".join(said)
    assert [name for name, content in site.listing().items() if CANARY.encode() in content] == []
    commands = (path.read_bytes() for path in _command_lines())
    assert not any(CANARY.encode() in command for command in commands)


def _command_lines() -> Iterator[Path]:
    """Of every process that stays long enough to be read."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.exists():
            yield path


def _check_applied_twice(site: ContainerSite) -> None:
    serial, ids = site.state().serial, site.recorded()
    assert "0 added, 0 changed, 0 destroyed" in site.apply().out
    assert (site.state().serial, site.recorded()) == (serial, ids)


def _check_surge(gemma: Gemma) -> None:
    """Nothing is lost while both containers are replaced, and the old ones stay until the new ones serve."""
    site, old, serial = gemma.site, gemma.site.recorded(), gemma.site.state().serial
    gemma.configure(ctx_size=768)
    with Caller(gemma.url) as caller:
        site.apply()
    assert len(caller.statuses) > 5
    assert set(caller.statuses) == {200}
    check_converged(site, CHAT)
    assert not old & site.recorded()
    happened = [event for number, event, _ in site.journal() if number > serial]
    last_ready = len(happened) - 1 - happened[::-1].index("BecameReady")
    assert last_ready < happened.index("Published") < happened.index("DrainBegan"), happened
