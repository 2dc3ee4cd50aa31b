"""How long an apply waits for the lock."""

from __future__ import annotations

import pytest

from tests.cli.harness import Site, remote


@pytest.mark.parametrize("given", ["nan", "inf", "-1", "soon"])
def test_a_wait_that_never_ends_is_a_usage_error(site: Site, given: str) -> None:
    site.configure({"solo": {"only": remote()}})
    refused = site.run("apply", "--auto-approve", f"--lock-timeout={given}")
    assert refused.code == 64
    assert f"invalid seconds value: '{given}'" in refused.err
