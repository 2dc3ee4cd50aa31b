"""`servestate cancel`: an update of the API is given up, here or on a server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.harness import Site, echo, until
from tests.cli.managed import AUTHORIZATION, managed, only_endpoints, tokens, with_site
from tests.cli.snapshots import check

ANY = "127.0.0.1:0"
BASE = "/api/2.0/serving-endpoints"


def ask(url: str, body: Any = None) -> Any:
    """What the API answers; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, AUTHORIZATION), timeout=20) as answer:
        return json.load(answer)


def test_an_update_that_is_under_way(site: Site, tmp_path: Path) -> None:
    site.configure({}, versions={"1": echo("1", "--gate", "gate")}, listen=ANY)
    entity = {"name": "e", "entity_name": "demo.echo", "entity_version": "1"}
    with managed(site) as server:
        client = server.client(tmp_path / "client", only_endpoints("{}"))
        for name, cancelling, at in (("one", site, ()), ("two", client, ("--server", server.url))):
            ask(server.url + BASE, {"name": name, "config": {"served_entities": [entity]}})
            found = ask(f"{server.url}{BASE}/{name}")
            assert found["state"]["config_update"] == "IN_PROGRESS"
            said = cancelling.run("cancel", name, *at).ok()
            assert said.out == f'The update of "{name}" is cancelled; what served before goes on serving.\n'
            found = ask(f"{server.url}{BASE}/{name}")
            assert found["state"]["config_update"] == "UPDATE_CANCELED"
        check(site.run("cancel", "one"), site.folder, "cancel/nothing_under_way")
        check(site.run("cancel", "nobody"), site.folder, "cancel/unknown")
        until(lambda: not site.alive(), "what was launched for it has ended")


def test_nobody_to_ask(site: Site) -> None:
    site.configure({}, listen=ANY)
    check(site.run("cancel", "solo"), site.folder, "cancel/no_api")
    socket = site.folder / ".servestate" / "api.sock"
    socket.parent.mkdir()
    socket.touch()  # as a process that was killed leaves it
    dead = site.run("cancel", "solo")
    assert dead.code == 1
    assert dead.err.startswith("SS627 the API of this site does not answer")


@pytest.mark.slow
def test_a_token_is_asked_for_here_as_well(site: Site) -> None:
    site.configure({}, listen=ANY)
    text = (site.folder / "endpoints.yaml").read_text()
    site.write(with_site(text, access=tokens({"ana": ["admin"]})))
    with managed(site):
        refused = site.run("cancel", "solo")
        assert refused.code == 1
        assert refused.err.startswith("SS614 the API of this site asks for a token")
        assert site.run("cancel", "solo", SERVESTATE_TOKEN="token-of-ana").err.startswith("SS620 ")
