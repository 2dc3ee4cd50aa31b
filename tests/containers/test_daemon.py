"""T86: what becomes of containers, routes and plans when their Docker is killed, stopped, frozen or slow.

The router asks Docker nothing, so it goes on as long as the published ports do. Those on loopback are carried
by docker-proxy, which ends with dockerd even where the containers live on; until dockerd is back, requests
fail at once. Frozen or slow, dockerd is not in their way.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.cli.harness import Endpoints, local, until
from tests.containers.harness import (
    CHAT_ARGV,
    ContainerSite,
    check_converged,
    check_no_copies,
    failed,
    image_of,
    running,
)
from tests.docker import images
from tests.docker.engine import OwnEngine
from tests.docker.socket_proxy import Delay, SocketProxy
from tests.ports import free_port

pytestmark = pytest.mark.slow

CHAT: Endpoints = {"chat": {"a": local("1", 50), "b": local("1", 50)}}
SLOW_S = 10
BOUNDED_S = 40
"""A verb on a Docker that hangs may take this long, on a busy machine."""
AT_ONCE_S = 3
"""How long a request may take that nobody can answer."""


@dataclass
class Place:
    """A site on an engine of its own, behind a proxy that can be slow."""

    own: OwnEngine
    proxy: SocketProxy
    site: ContainerSite
    port: int

    def down(self, fault: str) -> None:
        """Bring Docker into trouble."""
        if fault == "slow":
            self.proxy.fault("GET", "/containers/json", Delay(SLOW_S))
        else:
            {"killed": self.own.kill, "stopped": self.own.stop, "frozen": self.own.pause}[fault]()

    def up(self, fault: str) -> None:
        """And out of it again."""
        self.proxy.rules.clear()
        if fault == "frozen":
            self.own.resume()
            until(self.own.answers, "it answers again")
        else:
            self.own.start()


@pytest.fixture(scope="module", params=[True, False], ids=["live-restore", "no-live-restore"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One engine and site for all faults: each of them ends where it began, with nothing to do."""
    with (
        tempfile.TemporaryDirectory(prefix="ss-", dir="/var/tmp") as folder,
        OwnEngine(Path(folder) / "engine", live_restore=request.param) as own,
        SocketProxy(Path(folder) / "proxy.sock", own.socket).running() as proxy,
        closing(own.client()) as client,
    ):
        site = ContainerSite(tmp_path_factory.mktemp("daemon"), client=client, url=proxy.host)
        made = Place(own, proxy, site, free_port())
        try:
            _configure(made, images.tiny(client))
            site.apply()
            yield made
        finally:
            site.clean_up()
    assert own.leftovers() == []


def _configure(place: Place, tiny: str) -> None:
    place.site.contain(
        CHAT,
        {"1": image_of(tiny, argv=CHAT_ARGV)},
        task="llm/v1/chat",
        listen=f"127.0.0.1:{place.port}",
        overrides={"chat": {"stop_grace_s": 1}},
    )


@dataclass
class Answers:
    """Asks the router over and over, in a thread, until the block ends: when, what came, after how long."""

    url: str
    seen: list[tuple[float, int, float]] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Answers:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _ask(self) -> None:
        asked = {"messages": [{"role": "user", "content": "hello"}]}
        with httpx.Client(timeout=30) as client:
            while not self._enough.wait(0.02):
                began = time.monotonic()
                status = client.post(self.url, json=asked).status_code
                self.seen.append((began, status, time.monotonic() - began))

    def statuses(self, since: float = 0, until_: float = float("inf")) -> set[int]:
        return {status for began, status, _ in self.seen if since <= began < until_}


FAULTS = ("killed", "stopped", "frozen", "slow", "restarted")


def survive(place: Place, fault: str) -> bool:
    """Whether containers live through that fault, and its end."""
    return place.own.live_restore or fault in ("frozen", "slow")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_plan_tells_the_truth(place: Place, fault: str) -> None:
    """Without a router: trouble is named while it lasts, and what it left is in the next plan."""
    site, before = place.site, {one.id for one in place.site.containers()}
    serial = site.state().serial
    if fault == "restarted":
        place.down("stopped")
        place.up("stopped")
    else:
        place.down(fault)
        _check_while(place, fault)
        place.up(fault)
    assert site.state().serial == serial
    alive = _settled(site)
    plan = site.run("plan", "--detailed-exitcode")
    if survive(place, fault):
        assert alive == before
        assert plan.code == 0, plan.out
    else:
        assert alive == set()
        assert plan.code == 2, plan.out
        assert plan.out.count("exited: exit code") >= 2, plan.out
        site.apply()
    check_no_copies(site)
    check_converged(site, CHAT)


def _check_while(place: Place, fault: str) -> None:
    began = time.monotonic()
    plan = place.site.run("plan", "--detailed-exitcode")
    took = time.monotonic() - began
    if fault == "slow":
        assert plan.code == 0, plan.err
        assert took > SLOW_S
    else:
        failed(plan, 'host "local"', "start it")
    assert took < BOUNDED_S


def _settled(site: ContainerSite) -> set[str]:
    """The ids of what lives, once Docker has made up its mind."""
    return {str(one.id) for one in site.containers() if running([one])}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_router_serves_what_runs(place: Place, fault: str) -> None:
    """With a router and its controller, which brings back what has died, once."""
    site, before = place.site, {one.id for one in place.site.containers()}
    url = f"http://127.0.0.1:{place.port}/serving-endpoints/chat/invocations"
    router = site.serve()
    try:
        with Answers(url) as answers:
            until(lambda: len(answers.seen) > 5, "requests are answered")
            began = time.monotonic()
            if fault == "restarted":
                place.down("stopped")
            else:
                place.down(fault)
                time.sleep(1.5)
            back = time.monotonic()
            place.up("stopped" if fault == "restarted" else fault)
            until(lambda: _well(answers), "it is served again", 60)
        assert answers.statuses(until_=began) == {200}
        if fault in ("frozen", "slow"):
            assert answers.statuses() == {200}
        else:
            assert answers.statuses(since=began) <= {200, 502, 503, 504}
        assert max(took for at, _, took in answers.seen if at < back) < AT_ONCE_S
        check_no_copies(site)
        until(lambda: site.run("plan", "--detailed-exitcode").code == 0, "nothing is left to do", 60)
        check_converged(site, CHAT)
        after = {one.id for one in site.containers()}
        assert after == before if survive(place, fault) else not after & before
    finally:
        router.process.terminate()
        router.end()


def _well(answers: Answers) -> bool:
    """Whether the last requests, to both containers, were answered."""
    return len(answers.seen) > 20 and {status for _, status, _ in answers.seen[-10:]} == {200}
