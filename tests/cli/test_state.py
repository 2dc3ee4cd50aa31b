"""`servestate state list|show`."""

from __future__ import annotations

import json

from tests.cli.harness import SPLIT, Site, remote
from tests.cli.snapshots import check


def test_list_and_show(site: Site) -> None:
    site.configure({**SPLIT, "elsewhere": {"theirs": remote()}})
    check(site.run("state", "list"), site.folder, "state/list_empty")
    site.apply()
    check(site.run("state", "list"), site.folder, "state/list")
    check(site.run("state", "show", "elsewhere"), site.folder, "state/show_endpoint")
    check(site.run("state", "show", "elsewhere/theirs"), site.folder, "state/show_entity")
    shown = json.loads(site.run("state", "show", "multi-model/current").ok().out)
    assert [i["address"] for i in shown] == [a for a in site.alive() if "current" in a]
    check(site.run("state", "show", "nothing"), site.folder, "state/show_unknown")
