"""`servestate destroy`: nothing of ours is left, and nothing of others is touched."""

from __future__ import annotations

import pytest

from tests.cli.harness import SPLIT, Site, remote
from tests.cli.snapshots import check

ALL = {**SPLIT, "elsewhere": {"theirs": remote()}}


def test_takes_everything_away(site: Site) -> None:
    site.configure(ALL)
    site.apply()
    check(site.run("destroy", "--auto-approve"), site.folder, "destroy/all")
    assert site.alive() == []
    state = site.state()
    assert (state.endpoints, state.instances) == ({}, {})
    before = site.listing()
    check(site.run("destroy", "--auto-approve"), site.folder, "destroy/nothing_left")
    assert site.listing() == before


def test_asked_on_a_terminal(site: Site) -> None:
    site.configure(SPLIT)
    site.apply()
    before = site.listing()
    terminal = site.terminal("destroy")
    terminal.answer("Enter a value: ", "no")
    assert terminal.end() == 3
    assert "Destroy cancelled." in terminal.seen
    assert site.listing() == before
    terminal = site.terminal("destroy")
    terminal.answer("Do you really want to destroy all resources?", "yes")
    assert terminal.end() == 0
    assert "Destroy complete! Resources: 3 destroyed." in terminal.seen
    assert site.alive() == []


@pytest.mark.slow
def test_a_saved_destroy_plan(site: Site) -> None:
    site.configure(SPLIT)
    site.apply()
    site.run("plan", "--destroy", "--out", "plan.json").ok()
    check(site.run("apply", "plan.json"), site.folder, "destroy/saved")
    assert site.alive() == []


@pytest.mark.slow
def test_other_bundles_keep_theirs(site: Site) -> None:
    site.configure(SPLIT)
    mine = (site.folder / "endpoints.yaml").read_text()
    site.apply()
    site.configure({"solo": {"only": remote()}})
    theirs = (site.folder / "endpoints.yaml").read_text()
    site.write(f"{theirs}\nbundle: {{name: other}}\n")
    site.apply()
    assert sorted(site.state().endpoints) == ["multi-model", "solo"]
    site.run("destroy", "--auto-approve").ok()
    assert sorted(site.state().endpoints) == ["multi-model"]
    assert len(site.alive()) == 2
    site.write(mine)
    assert site.run("plan", "--detailed-exitcode").code == 0
