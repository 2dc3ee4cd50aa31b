"""What a plan says of an apply that ended between readiness and publication."""

from __future__ import annotations

from tests.cli.harness import ONE, Site


def test_what_was_never_published_is_still_to_be_added(site: Site) -> None:
    site.configure(ONE)
    site.run("apply", "--auto-approve", SERVESTATE_FAILPOINT="ready.after_result")
    plan = site.run("plan").ok().out
    assert "# solo/only will be created\n  # (continues an interrupted apply)" in plan
    assert "Plan: 2 to add, 0 to change, 0 to destroy." in plan
    assert "Apply complete! Resources: 2 added, 0 changed" in site.run("apply", "--auto-approve").ok().out
