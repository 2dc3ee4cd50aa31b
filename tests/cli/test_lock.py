"""The lock: who holds it, waiting for it, breaking it, and that there is only one."""

from __future__ import annotations

import re
import signal
import subprocess

from tests.cli.harness import ONE, Site, echo, local, until
from tests.cli.snapshots import check

GATED = {"1": echo("1", "--gate", "gate"), "2": echo("2")}


def holder(site: Site, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """An apply that holds the lock until `open_gate`."""
    site.configure(ONE, versions=GATED)
    process = site.start("apply", "--auto-approve", *arguments, **env)
    until(lambda: site.engines(), "the engine is launched")
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
    second.wait_for("Plan: 2 to add")
    open_gate(site)
    assert first.wait(20) == 0
    # While it waited the other one did the very thing: what it had planned is out of date.
    assert second.end() == 3
    assert "Nothing was changed" in second.seen
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


def test_break_of_a_dead_holder_needs_no_force(site: Site) -> None:
    first = holder(site)
    first.kill()
    first.wait()
    site.run("lock", "break", lock_id(site)).ok()


class TestFrozenHolder:
    """T8: a holder that is frozen, loses its lock, and wakes up."""

    def test_writes_and_does_nothing(self, site: Site) -> None:
        first = frozen(site)
        site.run("lock", "break", lock_id(site), "--force").ok()
        site.configure({"solo": {"only": local("2")}}, versions=GATED)
        site.apply()
        before, journal, engines = site.state(), site.journal(), site.engines()
        open_gate(site)
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=20)
        assert first.returncode == 4, (out, err)
        assert "lost lock" in err
        assert "Traceback" not in err
        assert (site.state(), site.journal(), site.engines()) == (before, journal, engines)
        assert site.run("plan", "--detailed-exitcode").code == 0


def frozen(site: Site) -> subprocess.Popen[str]:
    """An apply that holds the lock, has launched the engine and is stopped while it waits for it."""
    process = holder(site)
    until(lambda: len(site.journal()) >= 2, "the launch is recorded")
    process.send_signal(signal.SIGSTOP)
    return process
