"""`servestate status`, without a router; `test_serve.py` has the part with one."""

from __future__ import annotations

import json
import os

from tests.cli.harness import SPLIT, Site, remote, until
from tests.cli.snapshots import check


def test_before_anything_was_applied(site: Site) -> None:
    site.configure(SPLIT)
    check(site.run("status"), site.folder, "status/empty")


def test_what_runs_and_what_does_not(site: Site) -> None:
    site.configure({**SPLIT, "elsewhere": {"theirs": remote()}})
    site.apply()
    before = site.listing()
    check(site.run("status"), site.folder, "status/applied")
    found = json.loads(site.run("status", "--json").ok().out)
    assert [e["name"] for e in found["endpoints"]] == ["elsewhere", "multi-model"]
    assert found["router"] is None
    assert found["drift"] == []
    assert site.listing() == before
    os.kill(site.engines()["multi-model/challenger"], 9)
    until(lambda: len(site.alive()) == 1, "its shim has ended too")
    check(site.run("status"), site.folder, "status/engine_killed")
