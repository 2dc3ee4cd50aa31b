"""T1 and T4: kill -9, or an error, at the Nth system call of an apply, with strace; then apply again."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.harness import Endpoints, Result, Site, local, remote
from tests.cli.sweep import KILLED, check_converged, check_state, check_survives, on_sites

WANTED: Endpoints = {
    "e": {"a": local("1", 90), "b": local("1", 10)},
    "x": {"a": remote("a")},
    "y": {"b": remote("b")},
}
"""Two processes with a split, two external routes."""
DEADLY = (
    "pwrite64",
    "write",
    "fdatasync",
    "fsync",
    "ftruncate",
    "rename",
    "unlink",
    "connect",
    "sendto",
    "clone3",
)
FALLIBLE = ("pwrite64", "write", "fdatasync", "fsync", "ftruncate", "rename")
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
KILLS, FEW_KILLS = 200, 3
FAULTS = 100

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def strace(*options: str) -> tuple[str, ...]:
    """A prefix that looks at the command itself only: without -f, what it starts is left alone."""
    return ("strace", "-o", "calls", "--quiet=all", *options)


def calls_of_an_apply(folder: Path, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Each of these system calls that one apply makes: its name and that it is the nth of that name."""
    site = Site(folder / "counted")
    try:
        site.configure(WANTED)
        site.run("apply", "--auto-approve", prefix=strace("-e", f"trace={','.join(names)}")).ok()
        made = re.findall(r"^(\w+)\(", (site.folder / "calls").read_text(), re.M)
    finally:
        site.clean_up()
    return [(name, n) for name, count in sorted(Counter(made).items()) for n in range(1, count + 1)]


def inject(site: Site, fault: str, name: str, nth: int) -> Result:
    """An apply in which that happens at the nth call of that name."""
    site.configure(WANTED)
    options = ("-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={nth}")
    return site.run("apply", "--auto-approve", prefix=strace(*options))


def survive_kill(site: Site, call: tuple[str, int]) -> None:
    killed = inject(site, "signal=KILL", *call)
    # How often it polls differs a little from run to run: a call that was not made is no fault.
    assert killed.code in (KILLED, 0), (killed.out, killed.err)
    check_survives(site, killed, WANTED)


def survive_error(site: Site, fault: tuple[str, int, str]) -> None:
    name, nth, error = fault
    result = inject(site, f"error={error}", name, nth)
    said = result.out + result.err
    assert "Traceback" not in said, said
    assert result.code in (0, 1, 4), said
    if result.code:
        assert re.search(r"SS\d{3} \S", result.err), said
    check_state(site, result.out)
    site.apply()
    check_converged(site, WANTED)


def kills(folder: Path, seeded: random.Random, count: int) -> None:
    calls = calls_of_an_apply(folder, DEADLY)
    chosen = seeded.sample(calls, min(count, len(calls)))
    print(f"{len(chosen)} of {len(calls)} calls")
    on_sites(folder, chosen, survive_kill)


def faults(folder: Path, seeded: random.Random, count: int) -> None:
    calls = calls_of_an_apply(folder, FALLIBLE)
    possible = [(name, nth, error) for name, nth in calls for error in ERRORS]
    on_sites(folder, seeded.sample(possible, count), survive_error)


def test_a_few_kills(tmp_path: Path, seeded: random.Random) -> None:
    kills(tmp_path, seeded, FEW_KILLS)


@pytest.mark.slow
def test_many_kills(tmp_path: Path, seeded: random.Random) -> None:
    kills(tmp_path, seeded, KILLS)


@pytest.mark.slow
def test_many_errors(tmp_path: Path, seeded: random.Random) -> None:
    faults(tmp_path, seeded, FAULTS)
