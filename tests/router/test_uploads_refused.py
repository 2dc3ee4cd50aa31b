"""Large bodies that are refused, before anything of them goes out or in the middle: the upstream never gets a
whole request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from servestate.planner.access import Grant, Kind, Level
from servestate.planner.table import Limit
from servestate.runtime.router import Limits
from servestate.runtime.router.messages.passage import Passage
from tests.router import rig, uploads
from tests.router.rig import Answer, serving, until
from tests.router.uploads import (
    CUT,
    INVOKE,
    OPENAI,
    RAW,
    SMALL,
    Sender,
    Taker,
    begin,
    blamed,
    chat,
    framed,
    head,
    is_clean,
    to,
)
from tests.router.upstreams import entity, table

MIB = 1 << 20


# The router ends it.


@dataclass(frozen=True)
class Bad:
    """A body that is refused where it goes wrong, `says` why."""

    raw: bytes
    says: bytes
    target: str = INVOKE


def late(members: str) -> bytes:
    return chat(8000, behind="," + members)


BAD = {
    "second deciding key": Bad(late('"prompt":"x"'), b"prompt"),
    "second deciding key, custom": Bad(RAW[:-1] + b',"instances":[]}', b"instances"),
    "extra_params": Bad(late('"extra_params":{}'), b"extra_params"),
    "second model": Bad(late('"model":"x"'), b"model"),
    "second model, openai": Bad(late('"model":"x"'), b"model", OPENAI),
    "second model, escaped": Bad(late('"mo\\u0064el":"x"'), b"model"),
    "no json": Bad(RAW[:-1] + b",}", b"JSON"),
    "no key": Bad(RAW[:-1] + b",7:8}", b"JSON"),
    "no value": Bad(RAW[:-1] + b',"a":}', b"JSON"),
    "something behind": Bad(RAW + b"{}", b"JSON"),
    "ends in the middle": Bad(RAW[:-1], b"JSON"),
    "ends in a text": Bad(RAW[:-2], b"JSON"),
}


async def is_refused(bad: Bad) -> None:
    async with Taker() as up, serving(to(up), SMALL) as r:
        async with Sender(r.port) as sender:
            rest = await begin(r, up, sender, bad.raw, CUT, bad.target)
            await sender.send(rest)
            got = await sender.answer()
            assert (got.status, got.closed) == (400, True), got.body
            assert bad.says in got.body
            await until(lambda: up.last.lost)
            assert not up.last.whole
        await is_clean(r, up)
        assert blamed(r) == []


@pytest.mark.parametrize("kind", BAD)
def test_a_body_that_goes_wrong_late(kind: str) -> None:
    rig.run(is_refused(BAD[kind]))


def test_the_check_notices_a_router_that_does_not_look_at_late_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passage, "_is_overwritten", lambda self, key: False)
    for kind in ("second deciding key", "extra_params", "second model"):
        with pytest.raises(AssertionError):
            rig.run(is_refused(BAD[kind]), spoilt=True)


# Before anything goes out.


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_for_an_external_model(chunked: bool) -> None:
    """One in chunks is read to its end."""

    async def body() -> None:
        limits = replace(SMALL, external_body_bytes=7000)
        async with Taker() as up:
            routes = table(entity("a", 100, up.url + "/v1/chat", fixed_path=True))
            async with serving(routes, limits) as r:
                async with Sender(r.port) as sender:
                    raw = chat(8000)
                    whole = head(None) + framed(raw, True, last=True)
                    await sender.send(whole if chunked else head(len(raw)) + raw[:CUT])
                    got = await sender.answer()
                    assert (got.status, got.closed) == (400, not chunked)
                    assert b"at most 7000 bytes" in got.body
                await is_clean(r, up)
            assert up.connections == 0

    rig.run(body())


CHUNKS = {
    b"zz\r\n": b"chunk",
    b"5\r\nabcdefg": b"chunk",
    b"-1\r\n": b"chunk",
    b"0\r\nContent-Length: 1\r\n\r\n": b"trailer",
    framed(RAW[CUT:], True): b"7000 bytes",
}


@pytest.mark.parametrize("rest", CHUNKS, ids=["no size", "too long", "negative", "length", "grows"])
def test_chunks_that_go_wrong_late(rest: bytes) -> None:
    """They are none, or hold too much."""

    async def body() -> None:
        limits = replace(SMALL, body_bytes=7000)
        async with Taker() as up, serving(to(up), limits) as r:
            async with Sender(r.port) as sender:
                await sender.send(head(None) + framed(RAW[:CUT], True))
                await until(lambda: any(client._reader.held == CUT for client in r.router.desk.clients))
                await sender.send(rest)
                got = await sender.answer()
                assert (got.status, got.closed) == (400, True)
                assert CHUNKS[rest] in got.body
            await is_clean(r, up, limits=limits)
            assert up.connections == 0

    rig.run(body())


KEYS = rig.keyring(ann_s={"user_name": "ann"}, bob_s={"user_name": "bob"})
GRANTS = {"grants": (Grant(Level.CAN_QUERY, Kind.USER, "ann"), Grant(Level.CAN_VIEW, Kind.USER, "bob"))}


async def is_turned_away(
    status: int,
    *,
    token: str = "",
    target: str = INVOKE,
    limits: Limits = SMALL,
    before: int = 0,
    **more: Any,
) -> Answer:
    """The answer to somebody who has sent the beginning only, after so many who were let in."""
    async with Taker() as up, serving(to(up, **more.pop("routes", {})), limits, **more) as r:
        for _ in range(before):
            assert (await uploads.ask(r, RAW)).status == 200
        async with Sender(r.port) as sender:
            fields = rig.bearer(token) if token else ""
            await sender.send(head(len(RAW), target, fields) + RAW[:CUT])
            got = await sender.answer()
            assert (got.status, got.closed, len(up.uploads)) == (status, True, before)
            assert got.fields["connection"] == "close"
            assert await sender.closed() == b""
        await is_clean(r, up, limits=limits)
        return got


@pytest.mark.parametrize(
    ("token", "target", "status"),
    [
        ("", INVOKE, 401),
        ("bob_s", INVOKE, 403),
        ("ann_s", INVOKE.replace("chat-ep", "no-ep"), 404),
    ],
)
def test_those_who_may_not(token: str, target: str, status: int) -> None:
    async def body() -> None:
        await is_turned_away(status, token=token, target=target, keyring=KEYS, routes=GRANTS)

    rig.run(body())


def test_those_who_come_too_often() -> None:
    async def body() -> None:
        got = await is_turned_away(429, before=2, routes={"limits": (Limit("endpoint", "", 2),)})
        assert int(got.fields["retry-after"]) > 0

    rig.run(body())


def test_when_too_many_are_under_way() -> None:
    async def body() -> None:
        limits = replace(SMALL, inflight=1)
        async with (
            Taker() as up,
            serving(to(up), limits) as r,
            Sender(r.port) as one,
            Sender(r.port) as other,
        ):
            rest = await begin(r, up, one, RAW, CUT)
            await other.send(head(len(RAW)) + RAW[:CUT])
            got = await other.answer()
            assert (got.status, got.closed, len(up.uploads)) == (503, True, 1)
            await one.send(rest)
            assert (await one.answer()).status == 200

    rig.run(body())
