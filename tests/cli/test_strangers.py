"""T26 and T28: what is not ours is never touched, and what is ours leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from servestate.providers import labels, proc
from tests.cli.harness import ONE, SPLIT, Site, local, remote, until
from tests.cli.sweep import check_converged

CYCLES = 10
STRANGERS = 50


def sleeper(folder: Path, env: dict[str, str], port: str) -> subprocess.Popen[bytes]:
    """A process that looks like an engine: same program, same folder, some of the marks."""
    argv = ["python3", "-I", "-S", "engine.py", port, "1", "--deaf"]
    base = {"PATH": os.environ["PATH"], "SERVESTATE_ADDRESS": "stranger/x@00000000#0"}
    return subprocess.Popen(argv, cwd=folder, env={**base, **env}, stdout=subprocess.DEVNULL)


@pytest.fixture
def strangers(site: Site) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Engines of nobody, of another lineage, and with a part of our marks; after a first apply."""
    site.configure(SPLIT)
    site.apply()
    address = str(next(iter(site.state().instances)))
    marks = {labels.GENERATION: "1", labels.OP: "op", labels.PORT: "21000", labels.ADDRESS: address}
    ours = {labels.LINEAGE: site.state().lineage}
    kinds = (
        {},
        {**marks, labels.LINEAGE: str(uuid.uuid4()), labels.NONCE: "0" * 32},
        {**marks, **ours},  # no nonce: never launched by us
        {**ours, labels.NONCE: "1" * 32, labels.ADDRESS: "not an address"},
    )
    started = [sleeper(site.folder, kinds[i % len(kinds)], str(21000 + i)) for i in range(STRANGERS)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_never_touched(site: Site, strangers: list[subprocess.Popen[bytes]]) -> None:
    starts = [proc.stat(process.pid) for process in strangers]
    assert site.run("plan", "--detailed-exitcode").code == 0
    site.configure({"multi-model": {"current": local("2", 90), "challenger": local("1", 10)}})
    site.apply()
    site.run("destroy", "--auto-approve").ok()
    site.run("destroy", "--auto-approve").ok()
    assert all(process.poll() is None for process in strangers)
    now = [proc.stat(process.pid) for process in strangers]
    assert [s and (s.pid, s.start) for s in now] == [s and (s.pid, s.start) for s in starts]


@pytest.mark.slow
def test_a_reused_port_and_a_moved_folder_are_no_reason_to_kill(site: Site) -> None:
    # The engine is killed from outside and somebody else's program takes its port.
    site.configure(ONE)
    site.apply()
    port = next(iter(site.state().instances.values())).url.rpartition(":")[2]
    os.kill(site.engines()["solo/only"], 9)
    until(lambda: not site.alive(), "its shim has ended too")
    thief = subprocess.Popen(
        ["python3", "-I", "-S", str(site.folder / "engine.py"), port, "thief"],
        cwd="/",  # what works in the site's folder is counted as the site's
        env={"PATH": os.environ["PATH"], "SERVESTATE_ADDRESS": "stranger/x@00000000#0"},
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: proc.listeners(int(port)), "the thief listens")
        site.apply()
        assert thief.poll() is None
        assert next(iter(site.state().instances.values())).url.rpartition(":")[2] != port
        check_converged(site, ONE)
        site.run("destroy", "--auto-approve").ok()
        assert thief.poll() is None
    finally:
        thief.kill()
        thief.wait()


def cycle(site: Site) -> tuple[list[str], list[str], list[int]]:
    """Create and destroy: the files left, the temporary files left, how many files the engines had open."""
    site.apply()
    opened = sorted(len(os.listdir(f"/proc/{pid}/fd")) for pid in site.engines().values())
    site.run("destroy", "--auto-approve").ok()
    assert site.alive() == []
    # A reservation is an empty file for each port that was ever used, so there is a bound to them.
    temporary = (p for p in (site.folder.parent / "tmp").rglob("*") if p.parent.name != "ports")
    return sorted(site.listing()), sorted(map(str, temporary)), opened


@pytest.mark.slow
def test_nothing_piles_up(site: Site, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    site.env["TMPDIR"] = str(tmp_path / "tmp")
    site.configure({**SPLIT, "elsewhere": {"theirs": remote()}})
    cycle(site)
    first = cycle(site)
    for _ in range(CYCLES - 2):
        assert cycle(site) == first
