"""Limits of calls over HTTP: who is refused, how that is said, and that it costs nobody else anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from servestate.planner.table import Limit, RoutingTable
from servestate.runtime.router.quota.rates import Admission, Rates
from tests.router import rig
from tests.router.rig import CHAT, Rig, ask, bearer, request, serving
from tests.router.upstreams import Upstream, entity, table

INVOKE = "/serving-endpoints/chat-ep/invocations"
EVERYBODY = Limit("endpoint", "", 5)
EACH = Limit("user", "", 2)


def limited(url: str, *limits: Limit, **more: object) -> RoutingTable:
    return table(entity("a", 50, url), entity("b", 50, url), limits=limits, **more)  # type: ignore[arg-type]


async def burst(r: Rig, count: int, fields: str = "", target: str = INVOKE) -> Counter[int]:
    """The statuses of so many calls at once."""
    sent = [ask(r, request(CHAT, target, fields)) for _ in range(count)]
    return Counter(got.status for got in await asyncio.gather(*sent))


def test_a_burst_gets_what_is_allowed_and_no_more() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(limited(up.url, EVERYBODY)) as r:
            assert await burst(r, 40) == {200: 5, 429: 35}
            assert len(up.received) == 5
            assert r.router.report()["endpoints"]["chat-ep"]["limited"] == 35
            assert sum(r.counters("chat-ep", name)["assigned"] for name in "ab") == 5, "no turn was taken"

    rig.run(body())


def test_the_refusal_is_in_the_clients_shape_and_says_when() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(limited(up.url, replace(EVERYBODY, calls=1))) as r:
            assert (await ask(r, request())).status == 200
            for target in (INVOKE, "/serving-endpoints/chat-ep/served-models/a/invocations"):
                got = await ask(r, request(target=target))
                assert (got.status, got.json()["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
                assert 1 <= int(got.fields["retry-after"]) <= 60
                assert not got.closed
            for target in ("/v1/chat/completions", "/serving-endpoints/chat/completions"):
                got = await ask(r, request(target=target))
                assert got.status == 429
                assert got.fields["x-servestate-endpoint"] == "chat-ep"
                if target.startswith("/v1"):
                    assert got.json()["error"]["type"] == "rate_limit_error"

    rig.run(body())


def test_each_user_has_its_own() -> None:
    async def body() -> None:
        keys = rig.keyring(
            a1={"user_name": "ann", "rights": ["query"]},
            a2={"user_name": "ann", "rights": ["query"]},
            bob={"user_name": "bob", "rights": ["query"]},
        )
        async with Upstream() as up, serving(limited(up.url, EACH), keyring=keys) as r:
            assert await burst(r, 3, bearer("a1")) == {200: 2, 429: 1}
            assert await burst(r, 1, bearer("a2")) == {429: 1}, "two tokens, one user"
            assert await burst(r, 3, bearer("bob")) == {200: 2, 429: 1}
        async with Upstream() as up, serving(limited(up.url, EACH)) as r:
            for fields in (bearer("a1"), bearer("a2"), ""):
                assert await burst(r, 3, fields) == {200: 2, 429: 1}

    rig.run(body())


def test_what_is_refused_for_other_reasons_is_not_counted() -> None:
    async def body() -> None:
        keys = rig.keyring(ann={"user_name": "ann", "rights": ["query"]}, eve={"user_name": "eve"})
        one = replace(EVERYBODY, calls=1)
        async with Upstream() as up, serving(limited(up.url, one), keyring=keys) as r:
            for content, fields, status in (
                (CHAT, bearer("unknown"), 401),
                (CHAT, bearer("eve"), 404),
                (b"{", bearer("ann"), 400),
                (b'{"messages":[],"n":6}', bearer("ann"), 400),
                (CHAT, bearer("ann"), 200),
                (CHAT, bearer("ann"), 429),
            ):
                assert (await ask(r, request(content, INVOKE, fields))).status == status

    rig.run(body())


def test_counts_outlive_a_table_and_a_changed_limit_looks_back() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(limited(up.url, EVERYBODY)) as r:
            assert await burst(r, 4) == {200: 4}
            for version, limits, expected in (
                (2, [EVERYBODY, EACH], {200: 1, 429: 3}),
                (3, [replace(EVERYBODY, calls=7)], {200: 2, 429: 2}),
                (4, [], {200: 4}),
            ):
                r.install(limited(up.url, *limits, version=version))
                await rig.until(lambda v=version: r.router.report()["table_version"] == v)
                assert await burst(r, 4) == expected, version

    rig.run(body())


def test_the_check_notices_a_router_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rates, "admit", lambda rates, *_: Admission(b"", rates, 0, (), None))

    async def body() -> None:
        async with Upstream() as up, serving(limited(up.url, EVERYBODY)) as r:
            assert await burst(r, 40) == {200: 40}

    rig.run(body())
