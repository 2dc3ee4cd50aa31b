"""An apply on a server that is called off, left alone or cut off from its client."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from servestate.planner.state import Phase
from tests.cli.harness import ONE, Conversation, Site, echo, until
from tests.cli.managed import Managed, managed
from tests.cli.sweep import check_converged

GATED = {"1": echo("1", "--gate", "gate")}
READY = "solo/only: Waiting until ready..."


@pytest.fixture
def server(site: Site) -> Iterator[Managed]:
    """A served site whose engine is not ready before the gate is open."""
    site.configure(ONE, versions=GATED, listen="127.0.0.1:0")
    with managed(site) as found:
        yield found


@pytest.fixture
def client(server: Managed, tmp_path: Path) -> Iterator[Site]:
    """Somebody elsewhere."""
    made = server.client(tmp_path / "client")
    yield made
    made.clean_up()


def waiting(client: Site, server: Managed) -> Conversation:
    """An apply whose engine is launched and does not get ready."""
    apply = client.watch("apply", "--auto-approve", "--server", server.url)
    apply.wait_for(READY)
    return apply


def finish(client: Site, server: Managed) -> None:
    """Open the gate; the next apply goes on where the interrupted one ended."""
    (server.site.folder / "gate").touch()
    client.run("apply", "--auto-approve", "--server", server.url, "--lock-timeout=20").ok()
    server.stop()  # nothing but engines may be left
    check_converged(server.site, ONE)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_once(server: Managed, client: Site, number: signal.Signals, code: int) -> None:
    apply = waiting(client, server)
    apply.process.send_signal(number)
    assert apply.end() == code
    assert "Interrupted: 1 of 3 steps done, the state holds what was done." in apply.seen
    assert f"To go on, run again: servestate apply --server {server.url}" in apply.seen
    assert "Traceback" not in apply.seen
    assert [i.phase for i in server.site.state().instances.values()] == [Phase.STARTING]
    assert server.site.run("lock", "list").out == "no lock is held\n"
    finish(client, server)


@pytest.mark.slow
def test_twice_leaves_it_to_the_server(server: Managed, client: Site) -> None:
    server.site.configure(ONE, versions={"1": echo("1", "--deaf-to-term")}, listen="127.0.0.1:0")
    client.folder.joinpath("endpoints.yaml").write_text((server.site.folder / "endpoints.yaml").read_text())
    client.run("apply", "--auto-approve", "--server", server.url).ok()
    destroy = client.watch("destroy", "--auto-approve", "--server", server.url)
    destroy.wait_for("solo/only: Destroying...")
    destroy.process.send_signal(signal.SIGINT)
    destroy.wait_for("a second signal leaves it alone")
    destroy.process.send_signal(signal.SIGINT)
    assert destroy.end() == 130
    assert "the server stops once what is in flight is done" in destroy.seen
    client.run("destroy", "--auto-approve", "--server", server.url, "--lock-timeout=60").ok()
    assert server.site.alive() == []


@pytest.mark.slow
def test_a_client_that_is_killed_changes_nothing(server: Managed, client: Site) -> None:
    apply = waiting(client, server)
    apply.process.kill()
    apply.end()
    (server.site.folder / "gate").touch()
    until(lambda: "solo" in server.site.state().endpoints, "the server has finished")
    assert client.run("plan", "--detailed-exitcode", "--server", server.url).code == 0
    server.stop()
    check_converged(server.site, ONE)


@pytest.mark.slow
def test_called_off_while_it_waits_for_the_lock(server: Managed, client: Site) -> None:
    first = waiting(client, server)
    second = client.watch("apply", "--auto-approve", "--lock-timeout=60", "--server", server.url)
    second.wait_for("waiting up to 60 s for the lock of tester@")
    second.process.send_signal(signal.SIGINT)
    assert second.end() == 130
    (server.site.folder / "gate").touch()
    assert first.end() == 0


@pytest.mark.slow
def test_a_server_that_is_stopped(server: Managed, client: Site) -> None:
    apply = waiting(client, server)
    server.stop()
    assert "Traceback" not in server.process.seen
    assert server.site.run("lock", "list").out == "no lock is held\n"
    apply.wait_for(f"{server.url} is out of reach; asking again for 30 s")
    apply.process.send_signal(signal.SIGINT)
    apply.wait_for("a second signal leaves it alone")
    apply.process.send_signal(signal.SIGINT)
    assert apply.end() == 130
    with managed(server.site) as again:
        finish(client, again)


@pytest.mark.slow
def test_the_server_is_killed_and_comes_back(server: Managed, client: Site) -> None:
    apply = waiting(client, server)
    server.process.process.kill()
    server.process.end()
    with managed(server.site) as again:
        assert apply.process.poll() is None  # it asks for a while
        apply.process.kill()
        apply.end()
        finish(client, again)
