"""`servestate logs`."""

from __future__ import annotations

import os

import pytest

from tests.cli.harness import ONE, SPLIT, Site, echo, until
from tests.cli.snapshots import check


def test_of_one_and_of_all(site: Site) -> None:
    site.configure(SPLIT)
    site.apply()
    check(site.run("logs", "multi-model/current"), site.folder, "logs/entity")
    check(site.run("logs", "multi-model", "--tail", "1"), site.folder, "logs/endpoint")
    check(site.run("logs", "multi-model/nobody"), site.folder, "logs/unknown")


def test_after_it_died(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    os.kill(site.engines()["solo/only"], 9)
    until(lambda: not site.alive(), "its shim has ended too")
    assert site.run("logs", "solo/only").ok().out == "engine 1 starts\n"


@pytest.mark.slow
def test_of_one_that_never_started(site: Site) -> None:
    site.configure(ONE, versions={"1": echo("1", "--die")})
    assert site.run("apply", "--auto-approve").code == 4
    assert site.run("logs", "solo").ok().out == "engine 1 starts\nthe weights are broken\n"
