"""Sticky splits and entities by name, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from servestate.planner.table import RoutingTable, Sticky, Traffic
from servestate.runtime.router.balance.pick import Sticky as StickySplit
from tests.router import rig
from tests.router.leftovers import nothing_is_left
from tests.router.rig import CHAT, Rig, bearer, read_answer, request, serving, until
from tests.router.upstreams import Upstream, entity, table

INVOKE = "/serving-endpoints/chat-ep/invocations"
KEYS = [f"user-{number}" for number in range(300)]


def sticky(
    url: str, source: str, name: str = "", salt: str = "", shares: tuple[int, int] = (50, 50)
) -> RoutingTable:
    traffic = Traffic("sticky", Sticky(source, name, salt))
    return table(entity("a", shares[0], url), entity("b", shares[1], url), traffic=traffic)


async def entities(r: Rig, *requests: bytes) -> list[str]:
    """Who answers each of them, one after the other on one connection."""
    reader, writer = await r.connect()
    found = []
    for data in requests:
        writer.write(data)
        got = await read_answer(reader)
        assert got.status == 200, got.body
        found.append(got.fields["x-servestate-entity"])
    writer.close()
    return found


def by_header(key: str) -> bytes:
    return request(fields=f"X-Session: {key}\r\n")


def by_member(key: Any) -> bytes:
    return request(json.dumps({**json.loads(CHAT), "user": key}).encode())


@pytest.mark.parametrize("source", ["header", "body"])
def test_a_key_always_goes_to_the_same_entity(source: str) -> None:
    async def body() -> None:
        ask = by_header if source == "header" else by_member
        name = "X-Session" if source == "header" else "user"
        async with Upstream() as up, serving(sticky(up.url, source, name)) as r:
            first = await entities(r, *map(ask, KEYS))
            assert await entities(r, *map(ask, reversed(KEYS))) == first[::-1]
            assert 100 < Counter(first)["a"] < 200
            assert r.counters("chat-ep", "a")["assigned"] == 2 * Counter(first)["a"]
            await nothing_is_left(r, up)

    rig.run(body())


def test_header_and_member_with_the_same_key_agree_and_so_does_another_router() -> None:
    async def body() -> None:
        async with Upstream() as up:
            async with serving(sticky(up.url, "header", "x-session")) as r:
                one = await entities(r, *map(by_header, KEYS))
                assert await entities(r, request(fields="x-SESSION: user-0\r\n")) == one[:1]
            async with serving(sticky(up.url, "body", "user")) as r:
                assert await entities(r, *map(by_member, KEYS)) == one

    rig.run(body())


def test_a_caller_by_whichever_of_its_tokens() -> None:
    async def body() -> None:
        names = [f"user-{number}" for number in range(40)]
        tokens = {f"{which}{n}": {"user_name": n, "rights": ["query"]} for n in names for which in "xy"}
        keys = rig.keyring(**tokens)
        async with Upstream() as up, serving(sticky(up.url, "caller"), keyring=keys) as r:
            one = await entities(r, *(request(fields=bearer(f"x{name}")) for name in names))
            other = await entities(r, *(request(fields=bearer(f"y{name}")) for name in names))
            assert one == other
            assert set(one) == {"a", "b"}

    rig.run(body())


def test_without_declared_tokens_the_same_token_is_the_same_caller() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, "caller")) as r:
            seen = [set(await entities(r, *[request(fields=bearer(f"token-{n}"))] * 4)) for n in range(20)]
            assert all(len(one) == 1 for one in seen)
            assert {"a", "b"} == set().union(*seen)

    rig.run(body())


@pytest.mark.parametrize(
    ("source", "name", "data"),
    [
        ("header", "X-Session", request()),
        ("header", "X-Session", request(fields="X-Session: \r\n")),
        ("header", "X-Session", request(fields="X-Session: a\r\nX-Session: b\r\n")),
        ("body", "user", request()),
        ("body", "user", by_member(None)),
        ("body", "user", by_member("")),
        ("caller", "", request()),
    ],
    ids=["no header", "empty header", "two headers", "no member", "null", "empty", "nobody is known"],
)
def test_without_a_key_the_split_is_exact(source: str, name: str, data: bytes) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, source, name, shares=(75, 25))) as r:
            assert Counter(await entities(r, *[data] * 40)) == {"a": 30, "b": 10}

    rig.run(body())


def test_a_key_of_another_type_is_a_key() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, "body", "user")) as r:
            for key in (7, 0, False, {"a": [1]}, 1.5, "\u00e9\U0001f600"):
                assert len(set(await entities(r, *[by_member(key)] * 8))) == 1, key

    rig.run(body())


def test_new_weights_move_what_must_move_and_a_new_salt_deals_anew() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, "header", "X-Session", shares=(90, 10))) as r:
            before = await entities(r, *map(by_header, KEYS))

            async def after(routes: RoutingTable, version: int) -> list[str]:
                r.install(RoutingTable(version, routes.lineage, routes.endpoints))
                await until(lambda: r.router.report()["table_version"] == version)
                return await entities(r, *map(by_header, KEYS))

            moved = await after(sticky(up.url, "header", "X-Session", shares=(80, 20)), 2)
            changes = Counter(zip(before, moved, strict=True))
            assert changes["b", "a"] == 0, "nobody goes the other way"
            assert 10 < changes["a", "b"] < 60, "about a tenth of them"
            salted = await after(sticky(up.url, "header", "X-Session", "salt", (80, 20)), 3)
            assert sum(one != other for one, other in zip(moved, salted, strict=True)) > 50

    rig.run(body())


def test_a_key_does_not_reach_the_model() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, "header", "X-Session")) as r:
            await entities(r, by_header("mine"))
            assert "x-session" not in dict(up.received[0].fields)

    rig.run(body())


def test_the_header_that_names_an_entity_works_only_where_the_table_allows_it() -> None:
    async def body() -> None:
        async with Upstream() as up:
            served = entity("a", 100, up.url), entity("b", 0, up.url)
            named = request(fields="x-servestate-entity: b\r\n")
            by_path = "/serving-endpoints/chat-ep/served-models/a/invocations"
            async with serving(table(*served)) as r:
                assert await entities(r, named) == ["a"]
                assert r.counters("chat-ep", "a")["direct"] == 0
            async with serving(table(*served, traffic=Traffic(named_by_header=True))) as r:
                assert await entities(r, named) == ["b"]
                assert (r.counters("chat-ep", "b")["direct"], r.counters("chat-ep", "b")["assigned"]) == (
                    1,
                    0,
                )
                assert await entities(r, request()) == ["a"]
                assert await entities(r, request(target=INVOKE, fields="X-ServeState-Entity: b\r\n")) == ["b"]
                slashed = CHAT.replace(b'"chat-ep"', b'"chat-ep/a"')
                for data in (slashed, CHAT):
                    target = by_path if data is CHAT else "/v1/chat/completions"
                    assert await entities(r, request(data, target, "x-servestate-entity: b\r\n")) == ["a"]
                got = await rig.ask(r, request(fields="x-servestate-entity: nobody\r\n"))
                assert (got.status, got.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
                assert "x-servestate-entity" not in dict(up.received[-1].fields)

    rig.run(body())


def test_an_entity_by_name_is_not_fallen_back_from() -> None:
    async def body() -> None:
        async with Upstream() as up:
            served = entity("a", 100, up.url), entity("b", 0, "http://127.0.0.1:1")
            traffic = Traffic(fallback=True, named_by_header=True)
            async with serving(table(*served, traffic=traffic)) as r:
                got = await rig.ask(r, request(fields="x-servestate-entity: b\r\n"))
                assert got.status == 503
                assert not up.received

    rig.run(body())


def test_keys_together_from_many_callers() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, "header", "X-Session")) as r:
            first = await entities(r, *map(by_header, KEYS))
            answers = await asyncio.gather(*(rig.ask(r, by_header(key)) for key in KEYS))
            assert [got.fields["x-servestate-entity"] for got in answers] == first
            await nothing_is_left(r, up)

    rig.run(body())


def test_the_check_notices_a_split_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StickySplit, "pick", lambda split, key="": split._unkeyed.pick())

    async def body() -> None:
        async with Upstream() as up, serving(sticky(up.url, "header", "X-Session")) as r:
            assert set(await entities(r, *[by_header("me")] * 10)) == {"a", "b"}

    rig.run(body())
