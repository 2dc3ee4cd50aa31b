"""A configuration that is not there is not an empty one."""

from __future__ import annotations

import pytest

from tests.cli.harness import Site, remote

EXTERNAL = {"solo": {"only": remote()}}


@pytest.fixture
def planned(site: Site) -> Site:
    """A site whose apply starts no process."""
    site.configure(EXTERNAL)
    return site


@pytest.mark.parametrize(
    "verb", [["status"], ["serve"], ["state", "list"], ["lock", "list"], ["logs", "solo"]]
)
def test_a_mistyped_configuration_is_not_another_site(planned: Site, verb: list[str]) -> None:
    planned.run("apply", "--auto-approve").ok()
    refused = planned.run(*verb, "-f", "endpoint.yaml")
    assert refused.code == 1, refused.out
    assert "SS100 no such file or folder: endpoint.yaml" in refused.err


def test_a_saved_plan_is_checked_against_the_configuration_that_was_named(planned: Site) -> None:
    planned.run("plan", "--out", "plan.json").ok()
    assert "SS100" in planned.run("apply", "plan.json", "-f", "endpoint.yaml").err
