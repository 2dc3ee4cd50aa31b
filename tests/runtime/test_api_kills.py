"""T2 for the API: its process is killed at every named step of what it carries out; what was promised still
comes about, runs once, and leaves nothing over.

The whole of `servestate serve` dies with it and is started anew, as after a power cut.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from servestate.planner.launch import LaunchSpec
from servestate.planner.state import Phase
from servestate.runtime.failpoints import VARIABLE
from servestate.runtime.store.sqlite import SqliteStore
from servestate.runtime.workspace import is_gone
from tests.cli.harness import Site, bundle, remote, until
from tests.ports import free_port

pytestmark = pytest.mark.slow

NAME = "chat"
BESIDE = {"idle": {"theirs": remote("idle")}}
"""A bundle's endpoint, which nothing here may touch."""

SURGE = (
    "launch.before_intent",
    "launch.after_intent",
    "launch.after_effect",
    "launch.after_result",
    "ready.after_effect",
    "ready.after_result",
    "publish.before_intent",
    "publish.after_intent",
    "publish.after_effect",
    "drain.before_intent",
    "drain.after_intent",
    "drain.after_effect",
    "stop.before_intent",
    "stop.after_intent",
    "stop.after_effect",
    "stop.after_result",
)
"""What an update passes, in this order."""

CREATION = (
    "publish.before_intent",  # of the endpoint without its config
    "publish.after_intent",
    "publish.after_effect",
    "launch.after_intent",
    "launch.after_effect",
    "ready.after_effect",
    "publish.before_intent#2",  # of its config
    "publish.after_intent#2",
    "publish.after_effect#2",
)
DELETION = (
    "withdraw.before_intent",
    "withdraw.after_effect",
    "forget.before_intent",
    "forget.after_result",
    "drain.after_intent",
    "stop.after_intent",
    "stop.after_effect",
)


@dataclass
class Place:
    """A site that is served, killed and served again."""

    site: Site
    management: int
    router: int

    @property
    def log(self) -> Path:
        return self.site.folder / "serve.log"

    def serve(self, failpoint: str = "") -> None:
        """Start, and wait until the API answers."""
        env = {VARIABLE: failpoint} if failpoint else {}
        prefix = ("sh", "-c", f'exec "$@" >>{self.log} 2>&1', "sh")
        self.process = self.site.start("serve", "--no-controller", prefix=prefix, **env)

        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(requests.ConnectionError):
                return self.call("GET", "").status_code == 200
            return False

        until(answers, "the API answers", within_s=60)

    def call(self, verb: str, path: str, body: Any = None) -> requests.Response:
        url = f"http://127.0.0.1:{self.management}/api/2.0/serving-endpoints{path}"
        return requests.request(verb, url, json=body, timeout=30)

    def die_at(self, failpoint: str, verb: str, path: str, body: Any = None) -> None:
        """Serve, ask for something, and die on the way to it. Whoever asked may hear of it or not."""
        self.serve(failpoint)
        self.log.write_text("")

        def ask() -> None:
            with contextlib.suppress(requests.RequestException):
                self.call(verb, path, body)

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: "was ended by signal 9" in self.log.read_text(), f"the API dies at {failpoint}", 30)
        self.process.kill()
        self.process.wait(30)
        asking.join(30)

    def shown(self) -> dict[str, Any]:
        """The endpoint as the API shows it."""
        found: dict[str, Any] = self.call("GET", f"/{NAME}").json()
        return found

    def settled(self) -> dict[str, Any]:
        """The endpoint once nothing is being updated."""
        until(lambda: self.shown()["state"]["config_update"] != "IN_PROGRESS", "the update ends", 60)
        return self.shown()

    def become(self, version: str) -> None:
        """Update without any trouble."""
        assert self.call("PUT", f"/{NAME}/config", config(version)).status_code == 200
        self.check(version)

    def said(self) -> str:
        """What answers when the endpoint is queried."""
        url = f"http://127.0.0.1:{self.router}/serving-endpoints/{NAME}/invocations"
        answer = requests.post(url, json={"messages": [{"role": "user", "content": "hi"}]}, timeout=30)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def check(self, version: str) -> None:
        """That version serves, once, and nothing is left of any other."""
        found = self.settled()
        assert found["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}, found
        (entity,) = found["config"]["served_entities"]
        assert entity["entity_version"] == version
        self.check_nothing_over([NAME])
        assert self.said() == f"{version} says hello"

    def check_nothing_over(self, names: list[str]) -> None:
        """What runs is what the state has and what traffic goes to; no revision ran twice at once."""

        def clean() -> bool:
            state = self.site.state()
            routed = {a for r in state.endpoints.values() for t in r.targets for a in t.instances}
            local = {str(a) for a, i in state.instances.items() if isinstance(i.spec, LaunchSpec)}
            return (set(state.instances), sorted(local)) == (routed, self.site.alive()) and self.unlocked()

        until(clean, f"nothing is left over: {self.site.alive()}, {self.site.state().instances}")
        state = self.site.state()
        assert sorted(state.endpoints) == sorted([*BESIDE, *names])
        assert all(one.phase is Phase.READY for one in state.instances.values())
        assert self.site.doubles() == ""
        assert self.site.integrity() == "ok"

    def unlocked(self) -> bool:
        """Whether nobody holds the lock; one of a process that has died is anybody's."""
        held = SqliteStore(self.site.database, is_gone).held()
        return held is None or is_gone(held.owner)


def entity(version: str) -> dict[str, Any]:
    return {"name": "only", "entity_name": "demo.echo", "entity_version": version, "workload_size": "Small"}


def config(version: str) -> dict[str, Any]:
    return {"served_entities": [entity(version)]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One site for all tests here: starting one takes longer than most of them."""
    site = Site(tmp_path_factory.mktemp("killed") / "site")
    management, router = free_port(), free_port()
    text = bundle(BESIDE, listen=f"127.0.0.1:{router}")
    site.write(text.replace("127.0.0.1:0", f"127.0.0.1:{management}"))
    site.apply()
    try:
        yield Place(site, management, router)
    finally:
        site.clean_up()


@pytest.fixture
def gone(place: Place) -> Iterator[Place]:
    """The site without the endpoint."""
    place.serve()
    if NAME in place.site.state().endpoints:
        assert place.call("DELETE", f"/{NAME}").status_code == 200
    place.check_nothing_over([])
    stop(place)
    yield place
    stop(place)


@pytest.fixture
def there(place: Place) -> Iterator[Place]:
    """The site with the endpoint, which serves version 1."""
    place.serve()
    if NAME in place.site.state().endpoints:
        place.become("1")
    else:
        assert place.call("POST", "", {"name": NAME, "config": config("1")}).status_code == 200
        place.check("1")
    stop(place)
    yield place
    stop(place)


def stop(place: Place) -> None:
    """End serve as an operator does."""
    if place.process.poll() is None:
        place.process.terminate()
    place.process.wait(60)


@pytest.mark.parametrize("point", SURGE)
def test_an_update(there: Place, point: str) -> None:
    there.die_at(point, "PUT", f"/{NAME}/config", config("2"))
    there.serve()
    there.check("2")
    there.become("3")


@pytest.mark.parametrize("point", CREATION)
def test_a_creation(gone: Place, point: str) -> None:
    gone.die_at(point, "POST", "", {"name": NAME, "config": config("1")})
    gone.serve()
    gone.check("1")


@pytest.mark.parametrize("point", DELETION)
def test_a_deletion(there: Place, point: str) -> None:
    """Who asked was not answered, or had it that the name is free: asking again ends the same either way."""
    there.die_at(point, "DELETE", f"/{NAME}")
    there.serve()
    assert there.call("DELETE", f"/{NAME}").status_code in (200, 404)
    there.check_nothing_over([])


@pytest.mark.parametrize("point", ["launch.after_intent", "publish.after_intent", "stop.after_intent"])
def test_an_update_whose_second_life_is_short_too(there: Place, point: str) -> None:
    there.die_at(point, "PUT", f"/{NAME}/config", config("2"))
    with contextlib.suppress(AssertionError, requests.RequestException):
        there.serve(f"{point}#1")  # it may die before it answers at all
    there.process.kill()
    there.process.wait(30)
    there.serve()
    there.check("2")
