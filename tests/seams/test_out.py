"""Where a plan may be saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.harness import Site, remote

EXTERNAL = {"solo": {"only": remote()}}


@pytest.fixture
def planned(site: Site) -> Site:
    """A site whose apply starts no process."""
    site.configure(EXTERNAL)
    return site


@pytest.mark.parametrize("out", [".", "", "a-folder", "/dev/null"])
def test_a_plan_cannot_be_saved_over_what_is_no_file(planned: Site, out: str) -> None:
    (planned.folder / "a-folder").mkdir()
    refused = planned.run("plan", "--out", out)
    assert refused.code == 1
    assert "SS302" in refused.err, refused.err
    assert Path("/dev/null").is_char_device()


def test_a_saved_plan_goes_where_a_link_leads(planned: Site) -> None:
    (planned.folder / "link.json").symlink_to("plan.json")
    planned.run("plan", "--out", "link.json").ok()
    assert (planned.folder / "link.json").is_symlink()
    assert json.loads((planned.folder / "plan.json").read_text())["plan"]
