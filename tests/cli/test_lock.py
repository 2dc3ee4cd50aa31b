"""The lock: who holds it, waiting for it, breaking it, and that there is only one."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest

from servestate.planner.state import State
from tests.cli.harness import CLI, DRIVER, ONE, Result, Site, echo, local, until
from tests.cli.snapshots import check

GATED = {"1": echo("1", "--gate", "gate"), "2": echo("2")}


def holder(site: Site, program: tuple[str, ...] = CLI, **env: str) -> subprocess.Popen[str]:
    """An apply that holds the lock until `open_gate`."""
    site.configure(ONE, versions=GATED)
    running = len(site.engines())
    process = site.start("apply", "--auto-approve", program=program, **env)
    until(lambda: len(site.trees()) > running, "the engine is launched")
    return process


def open_gate(site: Site) -> None:
    (site.folder / "gate").touch()


def lock_id(site: Site) -> str:
    found = re.search(r"lock ([0-9a-f]{12})", site.run("lock", "list").ok().out)
    assert found is not None
    return found[1]


def test_nobody_holds_it(site: Site) -> None:
    site.configure(ONE)
    check(site.run("lock", "list"), site.folder, "lock/list_free")
    check(site.run("lock", "break", "0123456789ab"), site.folder, "lock/break_free")


def test_second_apply_is_told_who_has_it(site: Site) -> None:
    first = holder(site, SERVESTATE_CI_URL="https://ci.example/7")
    check(site.run("lock", "list"), site.folder, "lock/list_held")
    second = site.run("apply", "--auto-approve")
    assert second.code == 6
    check(second, site.folder, "lock/refused")
    site.run("plan").ok()  # takes no lock
    open_gate(site)
    assert first.wait(20) == 0
    assert len(site.alive()) == 1


def test_waits_for_it(site: Site) -> None:
    first = holder(site)
    second = site.watch("apply", "--auto-approve", "--lock-timeout", "30")
    second.wait_for("waiting up to 30 s for the lock of ")
    open_gate(site)
    assert first.wait(20) == 0
    # It planned after the wait, and the other one has done the very thing.
    assert second.end() == 0
    assert "Resources: 0 added, 0 changed, 0 destroyed." in second.seen
    assert len(site.alive()) == 1


def test_a_dead_holder_is_broken_with_a_line(site: Site) -> None:
    first = holder(site)
    first.send_signal(signal.SIGKILL)
    first.wait()
    check(site.run("lock", "list"), site.folder, "lock/list_dead")
    open_gate(site)
    result = site.apply()
    assert re.search(r"^servestate: broke the abandoned lock \w{12} of \S+@\S+ \(apply\)$", result.out, re.M)
    assert site.run("lock", "list").ok().out == "no lock is held\n"


def test_break_takes_the_exact_id(site: Site) -> None:
    first = holder(site)
    id = lock_id(site)
    check(site.run("lock", "break", "0123456789ab", "--force"), site.folder, "lock/break_wrong_id")
    check(site.run("lock", "break", id), site.folder, "lock/break_alive")
    assert lock_id(site) == id
    assert site.run("lock", "break", id, "--force").ok().out == f"broke lock {id}\n"
    open_gate(site)
    first.communicate(timeout=20)
    assert first.returncode == 4


@pytest.mark.slow
def test_break_of_a_dead_holder_needs_no_force(site: Site) -> None:
    first = holder(site)
    first.kill()
    first.wait()
    site.run("lock", "break", lock_id(site)).ok()


class TestFrozenHolder:
    """T8: a holder that is frozen, loses its lock, and wakes up."""

    def test_writes_and_does_nothing(self, site: Site) -> None:
        first, before = overtaken(site)
        assert first.code == 4
        assert "lost lock" in first.err
        assert "Traceback" not in first.err
        assert world(site) == before
        assert site.run("plan", "--detailed-exitcode").code == 0

    @pytest.mark.slow
    def test_does_not_stop_what_became_wanted_again(self, site: Site) -> None:
        # Frozen while the new revision gets ready; the other one goes back to the old revision.
        site.configure({"solo": {"only": local("2")}}, versions=GATED)
        site.apply()
        first = frozen(site)
        take_over(site)
        before = world(site)
        assert wake(site, first).code == 4
        assert world(site) == before
        assert site.doubles() == ""

    @pytest.mark.slow
    def test_the_same_apply_again_adopts_what_was_launched(self, site: Site) -> None:
        first = frozen(site)
        engines = site.engines()
        site.run("lock", "break", lock_id(site), "--force").ok()
        open_gate(site)
        site.apply()
        before = world(site)
        assert site.engines() == engines
        assert wake(site, first).code == 4
        assert world(site) == before


class TestFrozenHolderWithoutTheFence:
    """Negative control of T8: without the condition on commits the woken process does write."""

    @pytest.mark.slow
    def test_rows_are_written(self, site: Site) -> None:
        first, before = overtaken(site, program=(*DRIVER, "no_fence_and_no_journal_key"))
        assert world(site) != before, first.err

    @pytest.mark.slow
    def test_the_journal_is_a_second_fence(self, site: Site) -> None:
        # Honestly: even without the condition, a serial that is taken in the journal refuses the write.
        first, before = overtaken(site, program=(*DRIVER, "no_fence"))
        assert "UNIQUE constraint failed: journal.serial" in first.err
        assert world(site) == before


World = tuple[State, list[tuple[int, str, str]], dict[str, int]]


def world(site: Site) -> World:
    return site.state(), site.journal(), site.engines()


def frozen(site: Site, program: tuple[str, ...] = CLI) -> subprocess.Popen[str]:
    """An apply that holds the lock, has launched the engine and is stopped while it waits for it."""
    known = len(site.journal())
    process = holder(site, program=program)
    until(lambda: len(site.journal()) >= known + 2, "the launch is recorded")
    process.send_signal(signal.SIGSTOP)
    return process


def take_over(site: Site) -> None:
    """Break the lock and apply something else."""
    site.run("lock", "break", lock_id(site), "--force").ok()
    site.configure({"solo": {"only": local("2")}}, versions=GATED)
    site.apply()


def wake(site: Site, process: subprocess.Popen[str]) -> Result:
    """Let the frozen apply go on to its end, with its engine ready at last."""
    open_gate(site)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=20)
    return Result(("apply",), process.returncode, out, err)


def overtaken(site: Site, program: tuple[str, ...] = CLI) -> tuple[Result, World]:
    """Freeze an apply, take over, wake it: how it ended, and the world before it woke."""
    first = frozen(site, program)
    take_over(site)
    before = world(site)
    return wake(site, first), before
