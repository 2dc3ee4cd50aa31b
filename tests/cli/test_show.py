"""`servestate show PLAN`."""

from __future__ import annotations

from tests.cli.harness import ONE, Site
from tests.cli.snapshots import check


def test_text_and_document(site: Site) -> None:
    site.configure(ONE)
    planned = site.run("plan", "--out", "plan.json", CI="1").ok()
    shown = site.run("show", "plan.json").ok()
    assert shown.out == planned.out
    document = site.run("show", "plan.json", "--json").ok()
    assert document.out == (site.folder / "plan.json").read_text()
    assert "\x1b[32m" in site.run("show", "plan.json", "--color=always").ok().out


def test_what_is_no_plan(site: Site) -> None:
    site.configure(ONE)
    check(site.run("show", "nothing.json"), site.folder, "show/no_such_file")
    check(site.run("show", "endpoints.yaml"), site.folder, "show/not_a_plan")
    site.run("plan", "--out", "plan.json").ok()
    plan = site.folder / "plan.json"
    plan.write_text(plan.read_text().replace('"solo"', '"sole"'))
    check(site.run("show", "plan.json"), site.folder, "show/edited")
    plan.write_text(plan.read_text().replace('"format_version":2', '"format_version":99'))
    check(site.run("show", "plan.json"), site.folder, "show/newer_format")
