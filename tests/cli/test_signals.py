"""Ctrl-C and SIGTERM in the middle of an apply."""

from __future__ import annotations

import signal

import pytest

from servestate.planner.state import Phase
from tests.cli.harness import ONE, SPLIT, Conversation, Site, echo
from tests.cli.sweep import check_converged

pytestmark = pytest.mark.slow  # each waits for an engine, a lock or a clock

GATED = {"1": echo("1", "--gate", "gate")}


def waiting(site: Site) -> Conversation:
    """An apply whose engine is launched and does not get ready."""
    site.configure(ONE, versions=GATED)
    apply = site.watch("apply", "--auto-approve")
    apply.wait_for("solo/only: Waiting until ready...")
    return apply


def finish(site: Site) -> None:
    """Open the gate; the next apply goes on where the interrupted one ended."""
    engines = site.engines()
    (site.folder / "gate").touch()
    site.apply()
    check_converged(site, ONE)
    if engines:
        assert site.engines() == engines


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_once(site: Site, number: signal.Signals, code: int) -> None:
    apply = waiting(site)
    apply.process.send_signal(number)
    assert apply.end() == code
    assert "Interrupted: 1 of 3 steps done, the state holds what was done." in apply.seen
    assert "To go on, run again: servestate apply" in apply.seen
    assert "Traceback" not in apply.seen
    assert [i.phase for i in site.state().instances.values()] == [Phase.STARTING]
    assert site.run("lock", "list").out == "no lock is held\n"
    assert "(continues an interrupted apply)" in site.run("plan").out
    finish(site)


def test_twice_while_a_step_does_not_end(site: Site) -> None:
    # A graceful stop that takes its time is in flight: the first Ctrl-C waits for it, the second does not.
    site.configure(ONE, versions={"1": echo("1", "--deaf-to-term")})
    site.apply()
    destroy = site.watch("destroy", "--auto-approve")
    destroy.wait_for("solo/only: Destroying...")
    destroy.process.send_signal(signal.SIGINT)
    destroy.wait_for("a second signal ends it at once")
    destroy.process.send_signal(signal.SIGINT)
    assert destroy.end() == 130
    assert "Traceback" not in destroy.seen
    assert len(site.alive()) == 1
    (instance,) = site.state().instances.values()
    assert instance.phase is Phase.STOPPING
    site.configure(ONE, versions={"1": echo("1")}, overrides={"solo": {"stop_grace_s": 0.1}})
    site.apply()
    check_converged(site, ONE)


def test_while_waiting_for_the_lock(site: Site) -> None:
    first = waiting(site)
    second = site.watch("apply", "--auto-approve", "--lock-timeout", "30")
    second.wait_for("waiting up to 30 s for the lock of ")
    second.process.send_signal(signal.SIGINT)
    assert second.end() == 130
    assert "Traceback" not in second.seen
    (site.folder / "gate").touch()
    assert first.end() == 0


def test_reader_gone(site: Site) -> None:
    # `servestate apply | head -1`: the apply goes on, although nobody reads what it says.
    site.configure(SPLIT)
    apply = site.watch("apply", "--auto-approve")
    apply.wait_for("Plan: ")
    apply.close()
    assert apply.process.wait(20) == 1
    check_converged(site, SPLIT)
