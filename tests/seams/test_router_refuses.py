"""An apply is not complete while the router refuses what was published."""

from __future__ import annotations

import pytest

from tests.cli.harness import Site, bundle, remote, until
from tests.ports import free_port


@pytest.mark.slow
def test_applying_again_does_not_make_a_refused_table_a_good_one(site: Site) -> None:
    listen = f"127.0.0.1:{free_port()}"
    site.write(bundle({"solo": {"only": remote()}}, listen=listen))
    site.apply()
    router = site.start("serve")
    until((site.folder / ".servestate" / "router.sock").exists, "the router is up")
    site.write(bundle({"solo": {"only": remote(secret="s/missing")}}, listen=listen))
    assert site.run("apply", "--auto-approve", SERVESTATE_SECRET_S__MISSING="x").code == 4
    second = site.run("apply", "--auto-approve")  # only forgets what the entity was before
    assert (second.code, "Apply complete" in second.out, "SS609" in second.err) == (4, False, True), second
    third = site.run("apply", "--auto-approve")
    assert (third.code, "Apply complete" in third.out, "SS609" in third.err) == (1, False, True), third
    router.terminate()
    router.wait(10)
    site.apply()
