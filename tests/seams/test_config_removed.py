"""An endpoint that lost its config keeps its models (N12), and they are still repaired."""

from __future__ import annotations

import os
import signal

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.resolve import ResolvedEndpoint
from servestate.planner.state import EndpointRecord, Target
from servestate.planner.unconfigured import with_recorded_config
from tests.cli.harness import ONE, Site


def without_config(site: Site) -> None:
    text = (site.folder / "endpoints.yaml").read_text()
    head, _, rest = text.partition("      config:\n")
    assert rest
    site.write(head)


def test_the_models_stay_and_are_repaired(site: Site) -> None:
    site.configure(ONE)
    site.apply()
    (before,) = site.state().instances.values()
    without_config(site)
    plan = site.run("plan").ok()
    assert "SS146" in plan.err
    assert "No changes." in plan.out
    os.kill(site.engines()["solo/only"], signal.SIGKILL)
    site.until_drift("plan")
    site.run("apply", "--auto-approve").ok()
    (after,) = site.state().instances.values()
    assert after.handle != before.handle
    assert after.spec == before.spec
    assert "No changes." in site.run("plan").ok().out


def test_what_nothing_tells_about_is_asked_for() -> None:
    """A replacement that stops the old one first was interrupted in between."""
    record = EndpointRecord(
        "solo", "solo", "shop", '{"config":{"served_entities":[]}}', 2, (Target("only", 100, ()),)
    )
    with pytest.raises(InvalidInput, match="SS306"):
        with_recorded_config(ResolvedEndpoint("solo", "solo", "{}", ()), record, {})
