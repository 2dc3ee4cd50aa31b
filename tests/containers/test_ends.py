"""T80 to T82 with containers: an engine that ends is told with its cause, comes back under a router, and no
faster than the policy says."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cli.harness import Endpoints, local, until
from tests.containers.harness import ContainerSite, check_converged, check_no_copies, failed, image_of
from tests.ports import free_port

pytestmark = pytest.mark.slow

SOLO: Endpoints = {"solo": {"only": local("1")}}


def configure(site: ContainerSite, image: str, *flags: str, **container: Any) -> None:
    """One container of the engine's double; its last words are known."""
    args = ["--log", "the last words", *flags]
    # `command` with an argv goes to the image's own entrypoint.
    version = image_of(image, argv=["--port", "{port}", *args], ready_timeout_s=60, container=container)
    site.contain(SOLO, {"1": version}, listen=f"127.0.0.1:{free_port()}")


@contextmanager
def served(site: ContainerSite) -> Iterator[None]:
    """With a router and its controller."""
    router = site.serve()
    try:
        until(lambda: supervision(site) is not None, "the controller has looked")
        yield
    finally:
        router.process.send_signal(signal.SIGTERM)
        router.end()


def supervision(site: ContainerSite) -> dict[str, Any] | None:
    """What the status says of the only entity's supervision."""
    found = json.loads(site.run("status", "--json").ok().out)
    told: dict[str, Any] | None = found["endpoints"][0]["entities"][0]["supervision"]
    return told


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        pytest.param(
            ("--exit-after", "0", "--exit-code", "7", "--ready-after", "60"), "exit code 7", id="exit 7"
        ),
        pytest.param(("--exit-after", "0", "--ready-after", "60"), "exit code 0", id="exit 0"),
        pytest.param(("--oom",), "memory", id="out of memory"),
        pytest.param(("--no-such-flag",), "unrecognized arguments: --no-such-flag", id="wrong flag"),
    ],
)
def test_an_engine_that_never_gets_ready(
    site: ContainerSite, engine_double: str, flags: tuple[str, ...], cause: str
) -> None:
    """Noticed at once and told with its log, not after the time to get ready; nothing is left of it."""
    configure(site, engine_double, *flags, memory="64MiB")
    began = time.monotonic()
    failed(site.run("apply", "--auto-approve"), "solo/only", cause, code=4)
    assert time.monotonic() - began < 30
    assert [one for one in site.containers() if one.status == "running"] == []
    configure(site, engine_double)
    site.apply()
    check_converged(site, SOLO)


def test_it_comes_back_under_a_router(site: ContainerSite, engine_double: str) -> None:
    configure(site, engine_double)
    site.apply()
    victim = site.container("solo/only")
    with served(site):
        victim.kill()
        until(lambda: (supervision(site) or {}).get("restarts") == 1, "it is brought back")
        until(lambda: site.run("plan", "--detailed-exitcode").code == 0, "and nothing is left to do")
        told = supervision(site)
        assert told is not None
        assert "137" in told["reason"], told
        check_no_copies(site)
        check_converged(site, SOLO)
        assert site.container("solo/only").id != victim.id


def test_a_crash_loop_is_slowed_down(site: ContainerSite, engine_double: str) -> None:
    """It gets ready and ends, over and over: the pauses between the starts grow."""
    configure(site, engine_double, "--exit-after", "1.2", "--exit-code", "3")
    site.apply()
    with served(site):
        until(lambda: (supervision(site) or {}).get("restarts", 0) >= 2, "it was brought back twice", 40)
        told = supervision(site)
        assert told is not None
        assert "exit code 3" in told["reason"]
        assert any("the last words" in line for line in told["log"]), told
        restarts, began = told["restarts"], time.monotonic()
        time.sleep(6)
        told = supervision(site)
        assert told is not None
        # After two starts the pauses are 4 s and more, give or take a quarter.
        assert told["restarts"] - restarts <= 1 + (time.monotonic() - began) / 3
    check_no_copies(site)
