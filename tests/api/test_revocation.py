"""A token that is taken away, or that expires, opens nothing any more: soon, everywhere, on open connections
too. And a configuration that is spoilt opens nothing either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.api.callers import ADMIN, SHARED, Who, declared
from tests.api.guarded import API, Guarded
from tests.api.wire import Connection, connected
from tests.cli.harness import until

WITHIN_S = 2.0
CHAT = b'{"messages": [{"role": "user", "content": "x"}]}'
_KEPT = "still count"
"""In each line that tells of a configuration that does not become the site's."""
LEAVER = Who("leaver", rights=frozenset({"query"}))

Way = Callable[[Who], int]
"""A way in, on one open connection: the status of a request by that caller."""


@pytest.fixture
def open_ways(guarded: Guarded) -> Iterator[list[Way]]:
    """One for every listener and plane."""

    def way(connection: Connection, verb: str, path: str, body: bytes) -> Way:
        return lambda who: connection.ask(verb, path, body, *who.lines).status

    query = ("POST", f"/serving-endpoints/{SHARED}/invocations", CHAT)
    url, router = guarded.server.url, guarded.server.router
    with connected(router) as first, connected(url) as second, connected(url) as third:
        yield [way(first, *query), way(second, *query), way(third, "GET", f"{API}/{SHARED}", b"")]


def test_a_revoked_token(guarded: Guarded, open_ways: list[Way]) -> None:
    guarded.declare(LEAVER)
    for way in open_ways:
        until(lambda way=way: way(LEAVER) == 200, "the token is known", 5)
    began = guarded.declare()
    lasts = []
    for way in open_ways:
        until(lambda way=way: way(LEAVER) != 200, "the token opens nothing", 10)
        lasts.append(time.monotonic() - began)
    print(f"refused {max(lasts):.2f} s after the token was gone from the file")
    assert max(lasts) < WITHIN_S
    assert {way(LEAVER) for way in open_ways} == {401}
    assert {way(ADMIN) for way in open_ways} == {200}


def test_a_token_that_expires(guarded: Guarded, open_ways: list[Way]) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=1.5)
    leaver = Who("expiring", rights=frozenset({"query"}), expires=moment.isoformat())
    guarded.declare(leaver)
    for way in open_ways:
        until(lambda way=way: way(leaver) == 200, "the token is known", 1.4)
    for way in open_ways:
        until(lambda way=way: way(leaver) != 200, "the token opens nothing", 10)
        assert datetime.now(UTC) - moment < timedelta(seconds=WITHIN_S)
    guarded.declare()


def test_a_right_that_is_taken_away(guarded: Guarded, open_ways: list[Way]) -> None:
    guarded.declare(LEAVER)
    for way in open_ways:
        until(lambda way=way: way(LEAVER) == 200, "the token is known", 5)
    lesser = LEAVER.declared() | {"rights": ["create"]}
    guarded.configure([*declared(), lesser])
    for way in open_ways:
        until(lambda way=way: way(LEAVER) == 404, "the token opens nothing", WITHIN_S)
    guarded.declare()


def test_no_tokens_at_all_open_nothing(guarded: Guarded, open_ways: list[Way]) -> None:
    guarded.configure([])
    until(lambda: "SS618" in guarded.log, "it is told", 5)
    nobody = Who("nobody", fields=())
    assert {way(nobody) for way in open_ways} == {401}
    assert {way(ADMIN) for way in open_ways} == {200}
    guarded.declare()


def test_a_spoilt_configuration_opens_nothing(guarded: Guarded, open_ways: list[Way]) -> None:
    path = guarded.server.site.folder / "endpoints.yaml"
    whole = path.read_text()
    guarded.declare(LEAVER)  # a complaint is told once, until something is in order again
    for way in open_ways:
        until(lambda way=way: way(LEAVER) == 200, "the token is known", 5)
    nobody = Who("nobody", fields=())
    for spoilt in (
        "",
        "servestate: {access: {tokens: [",
        whole.replace("sha256", "sha257"),
        whole[: len(whole) // 2],
    ):
        told = guarded.log.count(_KEPT)
        _put(path, spoilt)
        until(lambda told=told: guarded.log.count(_KEPT) > told, f"it is told: {spoilt!r}", 5)
        assert {way(nobody) for way in open_ways} == {401}, spoilt
        assert {way(ADMIN) for way in open_ways} == {200}, spoilt
    _put(path, whole)


def _put(path: Path, text: str) -> None:
    """At once: what is read while it is written would be one more spoilt configuration."""
    draft = path.with_name("draft")
    draft.write_text(text)
    draft.replace(path)
