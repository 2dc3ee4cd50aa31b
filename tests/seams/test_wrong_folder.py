"""A saved plan that is applied where it was not made."""

from __future__ import annotations

from pathlib import Path

from tests.cli.harness import ONE, Site


def test_a_refused_plan_leaves_no_state_behind(site: Site, tmp_path: Path) -> None:
    """It would have the lineage of the plan's own state, and so claim the instances of that one."""
    site.configure(ONE)
    site.apply()
    site.run("plan", "--destroy", "--out", str(tmp_path / "plan.json")).ok()
    other = Site(tmp_path / "other")
    other.folder.mkdir()
    assert other.run("apply", str(tmp_path / "plan.json")).code == 3
    assert not list(other.folder.iterdir())
    other.configure(ONE)
    assert "is stopped" not in other.run("plan").ok().out


def test_the_first_plan_is_not_applied_in_two_folders(site: Site, tmp_path: Path) -> None:
    site.configure(ONE)
    site.run("plan", "--out", str(tmp_path / "plan.json")).ok()
    site.run("apply", str(tmp_path / "plan.json")).ok()
    other = Site(tmp_path / "other")
    other.folder.mkdir()
    refused = other.run("apply", str(tmp_path / "plan.json"))
    assert refused.code == 3, refused.err
    assert not list(other.folder.iterdir())
