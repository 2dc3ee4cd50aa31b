"""T27: what somebody does by hand is named by the plan and repaired by an apply; the YAML is never edited."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable

import pytest

from servestate.providers.census import Tree
from tests.cli.harness import SPLIT, Site, until
from tests.cli.sweep import check_converged

VICTIM = "multi-model/challenger"


def tree(site: Site) -> Tree:
    return next(tree for tree in site.trees() if str(tree.worn.marks.address.of) == VICTIM)


def kill_engine(site: Site) -> None:
    os.kill(tree(site).others[0].pid, signal.SIGKILL)
    until(lambda: len(site.alive()) == 1, "its shim has ended too")


def kill_shim(site: Site) -> None:
    shim = tree(site).shim
    assert shim is not None
    os.kill(shim.pid, signal.SIGKILL)
    until(lambda: len(site.alive()) == 1, "the kernel has killed the engine with its shim")


def end_politely(site: Site) -> None:
    os.kill(tree(site).others[0].pid, signal.SIGTERM)
    until(lambda: len(site.alive()) == 1, "its shim has ended too")


def pause_engine(site: Site) -> None:
    os.kill(tree(site).others[0].pid, signal.SIGSTOP)


def pause_shim(site: Site) -> None:
    shim = tree(site).shim
    assert shim is not None
    os.kill(shim.pid, signal.SIGSTOP)


def kill_and_remove_its_record(site: Site) -> None:
    kill_engine(site)
    for folder in (site.database.parent / "run").glob("*challenger*"):
        shutil.rmtree(folder)


def remove_table(site: Site) -> None:
    site.table.unlink()


def garble_table(site: Site) -> None:
    site.table.write_text("{")


def edit_table(site: Site) -> None:
    site.table.write_text(site.table.read_text().replace("90", "10"))


GONE = rf"# {VICTIM}@\w+#0 has changed\n +ready as \S+ -> "
TABLE = r"# routing table has changed\n +version \d+ -> missing or unreadable"


@pytest.mark.parametrize(
    ("disturb", "named"),
    [
        pytest.param(kill_engine, GONE + r"exited: signal 9", id="engine killed"),
        pytest.param(kill_shim, GONE + r"exited: killed from outside", id="shim killed"),
        pytest.param(end_politely, GONE + r"exited: signal 15", id="engine ended"),
        pytest.param(pause_engine, GONE + r"paused", id="engine paused"),
        pytest.param(pause_shim, GONE + r"paused", id="shim paused"),
        pytest.param(kill_and_remove_its_record, GONE + r"gone", id="killed, record removed"),
        pytest.param(remove_table, TABLE, id="table removed"),
        pytest.param(garble_table, TABLE, id="table garbled"),
        pytest.param(edit_table, TABLE, id="table edited"),
    ],
)
@pytest.mark.slow
def test_named_and_repaired(site: Site, disturb: Callable[[Site], None], named: str) -> None:
    site.configure(SPLIT)
    site.apply()
    configuration, other = (site.folder / "endpoints.yaml").read_text(), site.engines()["multi-model/current"]
    disturb(site)
    plan = site.run("plan", "--detailed-exitcode")
    assert plan.code == 2
    assert re.search(named, plan.out), plan.out
    site.apply()
    (site.folder / "doubles.log").unlink(missing_ok=True)  # what is paused is replaced before it ends
    check_converged(site, SPLIT)
    assert site.engines()["multi-model/current"] == other
    assert (site.folder / "endpoints.yaml").read_text() == configuration
