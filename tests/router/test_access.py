"""Callers by token: what each of them reaches, and that who may not know of an endpoint learns nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.access import Grant, Kind, Level
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.table import EndpointRoutes, RoutingTable
from servestate.runtime.keyring import write_keyring
from servestate.runtime.router import Router
from servestate.runtime.router.access import Access
from tests.router import rig
from tests.router.rig import (
    CHAT,
    Answer,
    Rig,
    ask,
    bearer,
    config,
    read_answer,
    request,
    serving,
    write_table,
)
from tests.router.upstreams import Upstream, entity, table

NOW = "2001-01-01T00:00:00Z"
CALLERS: dict[str, dict[str, Any]] = {
    "none": {},
    "bad": {},
    "expired": {"user_name": "ann", "rights": ["admin"], "expires": NOW},
    "stranger": {"user_name": "stranger"},
    "viewer": {"user_name": "viewer"},
    "asker": {"user_name": "asker"},
    "manager": {"user_name": "manager"},
    "robot": {"service_principal_name": "robot"},
    "grouped": {"user_name": "grouped", "groups": ["team"]},
    "sees-all": {"user_name": "x", "rights": ["view"]},
    "asks-all": {"user_name": "y", "rights": ["query"]},
    "admin": {"user_name": "z", "rights": ["admin"]},
    "creator": {"user_name": "c", "rights": ["create", "apply"]},
}
KEYS = rig.keyring(**{token: fields for token, fields in CALLERS.items() if fields})
GRANTS = (
    Grant(Level.CAN_VIEW, Kind.USER, "viewer"),
    Grant(Level.CAN_QUERY, Kind.USER, "asker"),
    Grant(Level.CAN_MANAGE, Kind.USER, "manager"),
    Grant(Level.CAN_QUERY, Kind.SERVICE_PRINCIPAL, "robot"),
    Grant(Level.CAN_QUERY, Kind.GROUP, "team"),
    Grant(Level.CAN_QUERY, Kind.GROUP, "stranger"),  # a group of that name, not the user
)
EXPECTED = {
    "none": 401,
    "bad": 401,
    "expired": 401,
    "stranger": 404,
    "creator": 404,
    "viewer": 403,
    "sees-all": 403,
}
INVOKE = "/serving-endpoints/chat-ep/invocations"


def guarded(*urls: str) -> RoutingTable:
    """`chat-ep` with those grants, and `other`, which is nobody's."""
    routes = EndpointRoutes("chat-ep", 1, (entity("a", 100, *urls),), GRANTS)
    return RoutingTable(1, "l", (routes, EndpointRoutes("other", 1, (entity("b", 100, *urls),))))


def fields_of(token: str) -> str:
    return "" if token == "none" else bearer(token)


def told(got: Answer) -> tuple[int, bytes, frozenset[str]]:
    """All that a caller can tell one refusal from another by."""
    return got.status, got.body, frozenset(got.fields)


@pytest.mark.parametrize("token", CALLERS)
@pytest.mark.parametrize("management", [False, True])
def test_every_route_for_every_caller(tmp_path: Path, token: str, management: bool) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        async with Upstream() as up, serving(guarded(up.url), api=path, keyring=KEYS) as r:
            port = r.management_port if management else r.port
            expected = EXPECTED.get(token, 200)
            for target, content in (
                ("/v1/chat/completions", CHAT),
                ("/v1/chat/completions", CHAT.replace(b"chat-ep", b"chat-ep/a")),
                ("/serving-endpoints/chat/completions", CHAT),
                ("/v1/completions", b'{"model":"chat-ep","prompt":"x"}'),
                ("/v1/embeddings", b'{"model":"chat-ep","input":"x"}'),
                (INVOKE, CHAT),
                ("/serving-endpoints/chat-ep/served-models/a/invocations", CHAT),
            ):
                got = await ask(r, request(content, target, fields_of(token)), port)
                assert got.status == expected, target
                assert ("x-servestate-endpoint" in got.fields) == (expected == 200), "for no others"
            served = len(up.received)
            assert served == (7 if expected == 200 else 0)
            got = await ask(r, request(b"", "/v1/models", fields_of(token), "GET"), port)
            if expected == 401:
                assert (got.status, got.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
            else:
                listed = ["chat-ep", "chat-ep/a"] if expected == 200 else []
                listed += ["other", "other/b"] if token in ("asks-all", "admin") else []
                assert [model["id"] for model in got.json()["data"]] == listed
            assert (await ask(r, request(b"", "/nowhere", fields_of(token), "GET"), port)).status == 404

    rig.run(body())


def test_a_hidden_endpoint_answers_like_none() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url), keyring=KEYS) as r:
            for token in ("stranger", "asker"):
                for content in (CHAT, b"{", b"{}", b"[]", b'{"messages":[],"n":9}', b"x" * 100_000):
                    for tail in ("invocations", "served-models/b/invocations"):
                        both = [
                            told(
                                await ask(
                                    r, request(content, f"/serving-endpoints/{name}/{tail}", bearer(token))
                                )
                            )
                            for name in ("other", "othex")
                        ]
                        assert both[0][1].replace(b"other", b"othex") == both[1][1]
                        assert both[0][::2] == both[1][::2]
                        assert both[0][0] == 404
                hidden = await ask(r, request(b'{"model":"other/b","messages":[]}', fields=bearer(token)))
                absent = await ask(r, request(b'{"model":"othex/b","messages":[]}', fields=bearer(token)))
                assert hidden.status == absent.status == 404
                assert hidden.body.replace(b"other", b"othex") == absent.body
            assert up.connections == 0

    rig.run(body())


HOSTILE = [
    "",
    "Bearer",
    "Bearer ",
    "bearer",
    "Basic YTpi",
    "Bearer a b",
    "asker",
    "Bearerasker",
    "Bearer\tasker",
]
HOSTILE += [
    "Bearer ' OR 1=1 --",
    'Bearer "; DROP TABLE tokens; --',
    "Bearer pg_sleep(10)",
    "Bearer \xff\xfe\xe9",
]
HOSTILE += ["Bearer ../../etc/passwd", "Bearer {{secrets/a/b}}", "Bearer %s%n", "Bearer ${jndi:ldap://x}"]
HOSTILE += ["Bearer " + "a" * 20_000, "Bearer asker,asker", "Bearer Asker", "Bearer asker\xa0", "Token asker"]
HOSTILE += ["Bearer asker\tx", "Digest asker", "Bearer null", "Bearer undefined", "Bearer 0", "Bearer []"]


def test_hostile_credentials_are_all_told_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url), keyring=KEYS) as r:
            plain = told(await ask(r, request(target=INVOKE)))
            assert plain[0] == 401
            assert json.loads(plain[1])["error_code"] == "UNAUTHENTICATED"
            for value in HOSTILE:
                got = await ask(r, request(target=INVOKE, fields=f"Authorization: {value}\r\n"))
                assert told(got) == plain, value
            twice = (
                bearer("asker") + bearer("asker"),
                bearer("asker") + bearer("bad"),
                "authorization:\r\n" + bearer("asker"),
            )
            for fields in twice:
                assert told(await ask(r, request(target=INVOKE, fields=fields))) == plain
            assert (
                await ask(r, request(fields="Authorization: Bearer " + "a" * (1 << 20) + "\r\n"))
            ).status == 431
            assert (await ask(r, request(fields="Authorization: Bearer a\0b\r\n"))).status == 400
            assert up.connections == 0
            for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
                got = await ask(r, request(target=INVOKE, fields=f"Authorization: {scheme}  asker \r\n"))
                assert got.status == 200
            assert "asker" not in json.dumps(r.router.report())

    rig.run(body())
    assert "asker" not in caplog.text


def test_strangers_are_refused_before_their_body() -> None:
    async def body() -> None:
        async with serving(guarded(), keyring=KEYS) as r:
            for more, status in (
                (fields_of("none"), 401),
                (fields_of("viewer"), 403),
                (fields_of("stranger"), 404),
            ):
                for framing in (
                    "Content-Length: 9999999",
                    "Transfer-Encoding: chunked",
                    "Expect: 100-continue\r\nContent-Length: 5",
                ):
                    reader, writer = await r.connect()
                    writer.write(f"POST {INVOKE} HTTP/1.1\r\nHost: h\r\n{more}{framing}\r\n\r\n".encode())
                    got = await rig.bounded(read_answer(reader), 2)
                    assert (got.status, got.closed) == (status, True), framing
                    writer.close()

    rig.run(body())


async def statuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> int:
    writer.write(request(target=INVOKE, fields=bearer(token)))
    return (await read_answer(reader)).status


def test_a_revoked_token_is_refused_on_connections_that_stand() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url), keyring=KEYS) as r:
            reader, writer = await r.connect()
            assert [await statuses(reader, writer, token) for token in ("asker", "new")] == [200, 401]
            r.let_in(rig.keyring(new={"user_name": "asker"}))
            began = time.monotonic()
            while await statuses(reader, writer, "asker") != 401:
                assert time.monotonic() - began < 2
                await asyncio.sleep(0.005)
            assert await statuses(reader, writer, "new") == 200
            writer.close()

    rig.run(body())


def test_a_token_expires_on_connections_that_stand() -> None:
    async def body() -> None:
        keys = rig.keyring(brief={"user_name": "asker"})
        async with Upstream() as up, serving(guarded(up.url), keyring=keys) as r:
            reader, writer = await r.connect()
            assert await statuses(reader, writer, "brief") == 200
            soon = time.time() + 0.3
            r.let_in(replace(keys, entries={k: replace(e, expires=soon) for k, e in keys.entries.items()}))
            end = time.monotonic() + 4
            while await statuses(reader, writer, "brief") != 401:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert time.time() >= soon
            writer.close()

    rig.run(body())


def test_grants_follow_the_table() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url), keyring=KEYS) as r:
            reader, writer = await r.connect()
            assert await statuses(reader, writer, "asker") == 200
            old = guarded(up.url)
            without = replace(old, version=2, endpoints=(replace(old.endpoints[0], grants=()),))
            r.install(without)
            await rig.until(lambda: r.router.report()["table_version"] == 2)
            assert await statuses(reader, writer, "asker") == 404
            writer.close()

    rig.run(body())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"format_version": 99}'),
        lambda path: path.write_text(""),
        lambda path: path.unlink(),
    ],
)
def test_a_spoilt_keyring_is_reported_and_the_old_one_stays(spoil: Any) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url), keyring=KEYS) as r:
            assert (r.router.report()["access"], r.router.report()["access_error"]) == ("tokens", None)
            spoil(r.config.keyring_path)
            await rig.until(lambda: r.router.report()["access_error"] is not None)
            assert str(r.config.keyring_path) in r.router.report()["access_error"]
            assert (await ask(r, request(target=INVOKE, fields=bearer("asker")))).status == 200
            assert (await ask(r, request(target=INVOKE))).status == 401
            r.let_in(rig.keyring())
            await rig.until(lambda: r.router.report()["access"] == "open")
            assert r.router.report()["access_error"] is None
            assert (await ask(r, request(target=INVOKE))).status == 200

    rig.run(body())


def test_an_open_router_takes_any_token_and_none() -> None:
    async def body() -> None:
        for keys in (None, rig.keyring()):
            async with Upstream() as up, serving(guarded(up.url), keyring=keys) as r:
                assert r.router.report()["access"] == "open"
                for fields in ("", *(f"Authorization: {value}\r\n" for value in HOSTILE), bearer("a") * 2):
                    assert (await ask(r, request(target=INVOKE, fields=fields))).status == 200

    rig.run(body())


def test_without_a_keyring_it_does_not_start(tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100)))
    path = tmp_path / "access.json"
    with pytest.raises(InvalidInput, match="SS610"):
        Router(config(tmp_path, keyring_path=path))
    path.write_text("{")
    with pytest.raises(InvalidInput, match="SS610"):
        Router(config(tmp_path, keyring_path=path))


def test_beyond_this_machine_it_takes_tokens_and_a_word(tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100)))
    path = tmp_path / "access.json"
    both = frozenset({"router", "management"})
    away: list[dict[str, Any]] = [
        {"host": "0.0.0.0"},
        {"management": ("10.0.0.1", 0), "api_path": tmp_path / "api.sock"},
    ]
    for listener, name in zip(away, ("router", "management"), strict=True):
        write_keyring(path, KEYS)
        with pytest.raises(InvalidInput, match="SS601"):
            Router(config(tmp_path, keyring_path=path, **listener))
        with pytest.raises(InvalidInput, match="SS601"):
            Router(config(tmp_path, keyring_path=path, plaintext=both - {name}, **listener))
        Router(config(tmp_path, keyring_path=path, plaintext=frozenset({name}), **listener))
        write_keyring(path, rig.keyring())
        with pytest.raises(InvalidInput, match=r"SS601[\s\S]*no access tokens"):
            Router(config(tmp_path, keyring_path=path, plaintext=both, **listener))
    with pytest.raises(InvalidInput, match="SS601"):
        Router(config(tmp_path, plaintext=both, host="0.0.0.0"))


def test_a_router_that_others_reach_never_opens_later(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    write_keyring(path, KEYS)
    access = Access(path, exposed=True)
    write_keyring(path, rig.keyring())
    access.poll(1.0)
    assert not access.open
    assert "no tokens" in (access.error or "")
    write_keyring(path, rig.keyring(new={"user_name": "asker"}))
    access.poll(2.0)
    assert access.error is None


def test_what_is_remembered_of_callers_is_bounded(tmp_path: Path) -> None:
    access = Access(None)
    for i in range(10_000):
        access.visitor(b"Bearer %d" % i)
        assert len(access._visitors) <= 4096
    access.visitor(b"Bearer " + b"a" * 30_000)
    assert max(map(len, access._visitors)) <= 512
    access.poll(1.0)
    assert not access._visitors


async def refused(r: Rig, times: int) -> list[float]:
    """Seconds that each of so many hostile requests took."""
    reader, writer = await r.connect()
    taken = []
    for i in range(times):
        began = time.perf_counter()
        writer.write(
            request(target=INVOKE, fields=f"Authorization: Bearer {HOSTILE[i % len(HOSTILE)]}{i}\r\n")
        )
        assert (await read_answer(reader)).status == 401
        taken.append(time.perf_counter() - began)
    writer.close()
    return taken


def test_refusals_are_quick() -> None:
    async def body() -> None:
        async with serving(guarded(), keyring=KEYS) as r:
            taken = sorted(await refused(r, 2000))
            assert taken[int(len(taken) * 0.99)] < 0.02

    rig.run(body())
