"""`serve --replace` and a site of several workers, with what runs beside the router."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cli.harness import Conversation, Site, bundle, local, until
from tests.ports import free_port

TOKEN = "5e" * 32


class Routed:
    """A site whose router has two workers, and where that answers."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.ports = free_port(), free_port()

    def configure(self, version: str = "1", **router: object) -> None:
        """Write the bundle; `router` are further fields of `servestate.router`."""
        document = yaml.safe_load(bundle({"solo": {"only": local(version)}}))
        document["servestate"]["router"] = {"listen": f"127.0.0.1:{self.ports[0]}", "workers": 2, **router}
        document["servestate"]["management"] = {"listen": f"127.0.0.1:{self.ports[1]}"}
        self.site.write(yaml.safe_dump(document, sort_keys=False))

    def serve(self, *arguments: str) -> Conversation:
        """A router of this site that accepts connections."""
        router = self.site.watch("serve", *arguments)
        router.wait_for("servestate: routing on ")
        return router

    def status(self) -> dict:
        return json.loads(self.site.run("status", "--json").ok().out)

    def ask(self) -> int:
        """The status of one request."""
        return self._call(self.ports[0], "POST", "/v1/chat/completions", {"model": "solo", "messages": []})

    def manage(self) -> int:
        """The status of a request to the management API; 0 where nobody listens."""
        try:
            return self._call(self.ports[1], "GET", "/api/2.0/serving-endpoints")
        except OSError:
            return 0

    @staticmethod
    def _call(port: int, method: str, path: str, body: dict | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, json.dumps(body) if body else None)
            return connection.getresponse().status
        finally:
            connection.close()

    @contextmanager
    def load(self, clients: int = 4) -> Iterator[Counter[str]]:
        """Clients that call for as long as the body runs, each time on a new connection."""
        found: Counter[str] = Counter()
        done = threading.Event()

        def call() -> None:
            while not done.is_set():
                try:
                    found[str(self.ask())] += 1
                except OSError as error:
                    found[repr(error)] += 1

        threads = [threading.Thread(target=call) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            done.set()
            for thread in threads:
                thread.join()


@pytest.fixture
def routed(site: Site) -> Routed:
    found = Routed(site)
    found.configure()
    site.apply()
    return found


@pytest.mark.slow
def test_the_new_one_takes_over_with_all_that_runs_beside_it(routed: Routed) -> None:
    old = routed.serve()
    until(lambda: routed.manage() == 200, "the API answers")
    until(lambda: routed.status()["controller"], "the controller runs")
    before = routed.status()
    with routed.load() as found:
        new = routed.serve("--replace")
        assert old.end() == 0
        until(
            lambda: (routed.status()["controller"] or before["controller"]) != before["controller"],
            "it is taken over",
        )
    assert found.keys() == {"200"}
    assert f"replaced by the router with pid {new.process.pid}" in old.seen
    assert "Traceback" not in old.seen
    assert routed.status()["router"]["pid"] == new.process.pid
    until(lambda: routed.manage() == 200, "the new API answers")
    # The new controller supervises: what dies is started again.
    (engine,) = routed.site.engines().values()
    os.kill(engine, signal.SIGKILL)
    until(lambda: set(routed.site.engines().values()) - {engine}, "the engine is started again")
    new.process.send_signal(signal.SIGTERM)
    assert new.end() == 0
    assert "Traceback" not in new.seen


@pytest.mark.slow
def test_one_that_cannot_start_changes_nothing(routed: Routed) -> None:
    old = routed.serve("--no-api")  # which would take up what the configuration says of tokens by itself
    keyring = routed.site.folder / ".servestate" / "access.json"
    before = keyring.read_bytes()
    routed.configure(tls={"cert": "none.pem", "key": "none.pem"})
    document = yaml.safe_load((routed.site.folder / "endpoints.yaml").read_text())
    document["servestate"]["access"] = {"tokens": [{"user_name": "u", "sha256": TOKEN}]}
    routed.site.write(yaml.safe_dump(document))
    with routed.load() as found:
        failed = routed.site.run("serve", "--replace", "--no-api")
    assert failed.code == 1
    assert "SS640" in failed.err
    assert "none.pem: No such file" in failed.err
    assert found.keys() == {"200"}, "nobody was asked for the tokens of one that does not serve"
    assert keyring.read_bytes() == before
    assert not list(keyring.parent.glob("access.[0-9]*"))
    assert routed.ask() == 200
    assert old.process.poll() is None
    routed.configure()
    second = routed.site.run("serve")
    assert second.code == 1
    assert "SS604 another router answers" in second.err
    assert "--replace" in second.err


@pytest.mark.slow
def test_without_one_that_runs_it_just_starts(routed: Routed) -> None:
    router = routed.serve("--replace")
    assert routed.ask() == 200
    until(lambda: routed.status()["controller"], "the controller runs")
    router.process.send_signal(signal.SIGTERM)
    assert router.end() == 0


@pytest.mark.slow
def test_applies_under_load_fail_nothing_while_workers_die(routed: Routed) -> None:
    router = routed.serve("--no-api")
    with routed.load() as found:
        for version in ("2", "1", "2"):
            victim = _worker(router)
            os.kill(victim, signal.SIGKILL)
            routed.configure(version)
            routed.site.apply()
            time.sleep(0.2)
    broken = sum(count for what, count in found.items() if what != "200")
    assert found["200"] > 100
    # Each death breaks what that worker had taken on, of four clients at once: no more.
    assert broken <= 3 * 4, found
    cut = ("ConnectionReset", "RemoteDisconnected", "BrokenPipe")
    assert set(found) <= {"200"} | {what for what in found if what.startswith(cut)}, found


def _worker(router: Conversation) -> int:
    """One of the workers; the controller is a child as well."""
    children = Path(f"/proc/{router.process.pid}/task/{router.process.pid}/children").read_text().split()
    for pid in map(int, children):
        if b"servestate.runtime.router.process.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("it has no worker")


@pytest.mark.slow
def test_the_site_says_how_many_workers_there_are(routed: Routed) -> None:
    router = routed.serve("--no-api", "--no-controller")
    assert routed.ask() == 200
    victim = _worker(router)
    os.kill(victim, signal.SIGKILL)

    def workers() -> list[dict]:
        told = routed.status()["router"]
        return told["workers"] if told is not None else []

    until(
        lambda: [(w["state"], w["pid"] != victim) for w in workers()] == [("ready", True)] * 2,
        "both workers route",
    )
    version = routed.status()["router"]["table_version"]
    lines = [line for line in routed.site.run("status").ok().out.splitlines() if "worker" in line]
    assert len(lines) == 2
    assert all(f", ready, table {version}" in line for line in lines)
    assert sum(line.endswith(", started again 1 time") for line in lines) == 1
    router.process.send_signal(signal.SIGTERM)
    assert router.end() == 0
