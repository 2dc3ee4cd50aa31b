"""A plan says when the running router does not route by what was applied."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.cli.harness import Site, bundle, remote, until
from tests.ports import free_port


@pytest.fixture
def listen() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def router(site: Site, listen: str) -> Iterator[int]:
    """The pid of a router on the site."""
    site.write(bundle({"solo": {"only": remote()}}, listen=listen))
    site.apply()
    started = site.start("serve")
    until((site.folder / ".servestate" / "router.sock").exists, "the router is up")
    yield started.pid
    os.kill(started.pid, signal.SIGCONT)


def drift_of(site: Site) -> list[dict[str, str]]:
    return json.loads(site.run("status", "--json").ok().out)["drift"]


@pytest.mark.slow
def test_a_refused_table_stands_in_the_plan(site: Site, listen: str, router: int) -> None:
    assert "outside of servestate" not in site.run("plan").ok().out
    site.write(bundle({"solo": {"only": remote(secret="s/missing")}}, listen=listen))
    assert site.run("apply", "--auto-approve", SERVESTATE_SECRET_S__MISSING="x").code == 4
    plan = site.run("plan").ok().out
    assert "# router has changed" in plan
    assert "refuses the routing table: " in plan
    assert str(site.folder) not in plan
    (drift,) = drift_of(site)
    assert (drift["address"], drift["kind"]) == ("router", "router")
    lines = [json.loads(line) for line in site.run("plan", "--json").ok().out.splitlines()]
    assert [line["change"]["kind"] for line in lines if line["type"] == "resource_drift"] == ["router"]


@pytest.mark.slow
def test_a_router_that_hangs_is_told_of_and_not_waited_for(site: Site, router: int) -> None:
    os.kill(router, signal.SIGSTOP)
    began = time.monotonic()
    assert "-> does not answer" in site.run("plan").ok().out
    assert time.monotonic() - began < 4
    began = time.monotonic()
    status = site.run("status").ok().out
    assert time.monotonic() - began < 4
    assert "drift" not in status
