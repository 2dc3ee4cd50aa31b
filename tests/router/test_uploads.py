"""Large bodies that go on as they come: what arrives, when, and what of it is held."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.table import Guard, Limit, Mirror, Payloads, RoutingTable, Sticky, Traffic
from servestate.runtime.router import Limits
from servestate.runtime.router import client as client_module
from servestate.runtime.router.process.tls import TlsFiles
from tests.router import processes, rig, uploads
from tests.router.apart import apart
from tests.router.kept import keeping
from tests.router.leftovers import nothing_is_left
from tests.router.rig import QUICK, Rig, bounded, read_answer, serving, settled, until
from tests.router.test_tls import pair, trusting
from tests.router.uploads import (
    INVOKE,
    OPENAI,
    Sender,
    Taker,
    Upload,
    begin,
    chat,
    custom,
    framed,
    head,
    to,
)
from tests.router.upstreams import DOWN, answer, entity, table

MIB = 1 << 20
SMALL = replace(QUICK, passed_bytes=4096, large_bytes=1024)
CUT = 3000


# When it arrives, and as what.


@pytest.mark.parametrize(
    ("raw", "target"),
    [(custom(8000), INVOKE), (chat(8000), OPENAI), (chat(8000, before=""), INVOKE)],
    ids=["custom", "openai", "chat"],
)
def test_the_upstream_reads_while_the_client_still_sends(raw: bytes, target: str) -> None:
    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
            rest = await begin(r, up, sender, raw, CUT, target)
            await until(lambda: len(up.last.body) >= CUT)
            assert not up.last.whole
            await sender.send(rest)
            got = await sender.answer()
            assert (got.status, got.closed) == (200, False)

    rig.run(body())


def test_one_in_chunks_goes_on_once_it_is_whole() -> None:
    """With a length, since not every server knows requests in chunks."""

    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
            raw = custom(8000)
            await sender.send(head(None))
            for piece in (raw[:5000], raw[5000:]):
                await sender.send(framed(piece, True))
            await until(lambda: held(r) == len(raw))
            await asyncio.sleep(0.02)
            assert up.connections == 0, "nothing goes out before the end"
            await sender.send(framed(b"", True, last=True))
            got = await sender.answer()
            assert (got.status, got.closed) == (200, False)
            assert (up.last.length, up.last.body) == (len(raw), raw)

    rig.run(body())


@pytest.mark.parametrize("chunked", [False, True])
def test_sixteen_mib_arrive_byte_for_byte(chunked: bool) -> None:
    async def body() -> None:
        raw = custom(Limits().body_bytes)
        async with Taker() as up, serving(to(up)) as r:
            assert (await uploads.ask(r, raw, chunked=chunked)).status == 200
            assert hashlib.sha256(up.last.body).digest() == hashlib.sha256(raw).digest()
            assert up.last.length == len(raw)

    rig.run(body())


OURS = '"client_request_id":"r\\"1","usage_context":{"a":[1,"}"]}'


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("raw", "target"),
    [
        (chat(8000, '"model":"chat-ep",'), OPENAI),
        (chat(8000, '"n":1 , "model" : "a-name-that-is-longer" , '), INVOKE),
        (chat(8000, ""), INVOKE),
        (chat(8000, "", ',"model":"late"'), INVOKE),
        (chat(8000, "", ',"model":"late","n":1'), INVOKE),
        (chat(8000, OURS + ',"model":"chat-ep",'), OPENAI),
        (chat(8000, '"model":"chat-ep",' + OURS + ","), OPENAI),
        (chat(8000, '"model":"chat-ep",', "," + OURS), OPENAI),
        (chat(8000, '"client_request_id":"r",', ',"usage_context":{}, "n":1, "model":"late"'), INVOKE),
        (custom(8000)[:-1] + b',"model":"its own",' + OURS.encode() + b"}", INVOKE),
    ],
)
def test_what_is_changed_and_that_the_length_is_true(raw: bytes, target: str, chunked: bool) -> None:
    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
            if chunked:
                sent = head(None, target) + framed(raw[:5000], True) + framed(raw[5000:], True, last=True)
            else:
                sent = await begin(r, up, sender, raw, 5000, target)
            for at in range(0, len(sent), 777):
                await sender.send(sent[at : at + 777])
                await asyncio.sleep(0)
            assert (await sender.answer()).status == 200
            wanted = json.loads(raw)
            wanted.pop("client_request_id", None)
            wanted.pop("usage_context", None)
            if "inputs" not in wanted:
                wanted["model"] = "engine-model"
            assert up.last.json() == wanted
            assert up.last.length == len(up.last.body)
            assert up.last.body.count(b'"model"') == 1

    rig.run(body())


# What is held.


def held(r: Rig) -> int:
    """Of bodies, by all clients and what they are connected to."""
    total = 0
    for client in r.router.desk.clients:
        total += client._reader.held + len(client._ahead)
        upload = getattr(client._exchange, "upload", None)
        if upload is not None:
            total += len(upload._first)
        upstream = getattr(client._exchange, "_upstream", None)
        if upstream is not None and not upstream.is_closing():
            total += upstream._transport.get_write_buffer_size()
    return total


class Reluctant:
    """A script that reads no more than the beginning until it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, upload: Upload) -> None:
        await upload.beginning()
        await self.go.wait()
        await uploads.takes(upload)


async def stops_and_goes_on() -> None:
    """What the router holds stays within its bound while the upstream reads nothing, and then all arrives."""
    reluctant, raw, most = Reluctant(), custom(Limits().body_bytes), 0
    async with Taker(reluctant) as up, serving(to(up)) as r, Sender(r.port, 1 << 16) as sender:
        sending = sender.sending(head(len(raw)) + raw)
        reading = asyncio.create_task(sender.answer(30))

        def taken() -> int:
            nonlocal most
            most = max(most, held(r))
            return sender.sent

        stopped = await settled(taken, 0.15)
        assert not sending.done(), "it is not read any more"
        assert most <= QUICK.passing_bytes
        assert r.router.desk.budget.left == QUICK.buffered_bytes - QUICK.passing_bytes
        reluctant.go.set()
        await until(lambda: taken() > stopped)
        assert (await reading).status == 200
        assert most <= QUICK.passing_bytes
        assert hashlib.sha256(up.last.body).digest() == hashlib.sha256(raw).digest()
        assert r.router.desk.budget.left == QUICK.buffered_bytes


def test_an_upstream_that_does_not_read_stops_the_client() -> None:
    rig.run(stops_and_goes_on())


def test_the_check_notices_a_router_without_back_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module.ClientConnection, "hold", lambda self, held: None)
    with pytest.raises(AssertionError, match="it is not read any more"):
        rig.run(stops_and_goes_on(), spoilt=True)


async def hundred_at_once(limits: Limits, within: float) -> tuple[int, int]:
    """Send them to an upstream that reads none before as many have come as will: how many those were, and by
    how much the router has grown when all are through."""
    go, raw = asyncio.Event(), custom(Limits().body_bytes)
    whole = head(len(raw)) + raw

    async def script(upload: Upload) -> None:
        await upload.beginning()
        await go.wait()
        size = 0
        while await upload.more():
            size += len(upload.body)
            upload.body.clear()
            if size % (1 << 20) < 1 << 16:
                await asyncio.sleep(0.001)
        upload.writer.write(answer())

    async def one(port: int) -> int:
        async with Sender(port) as sender:
            sender.sending(whole)
            return (await sender.answer(120)).status

    async with Taker(script) as up, apart(to(up), limits) as r:
        before = r.memory()
        asking = [asyncio.create_task(one(r.port)) for _ in range(100)]
        with suppress(AssertionError):
            await until(lambda: up.begun(count=100), within)
        begun = len(up.uploads)
        await asyncio.sleep(0.3)  # whatever it holds, it holds it by now
        go.set()
        assert set(await asyncio.gather(*asking)) == {200}
        return begun, r.most_memory() - before


@pytest.mark.slow
def test_a_hundred_large_bodies_take_what_their_pieces_take() -> None:
    """1.6 GiB: all are under way together, within the bound for each."""

    async def body() -> None:
        begun, grown = await hundred_at_once(Limits(), 30)
        print(f"MiB: {grown / MIB:.0f}")
        assert begun == 100
        assert grown < 100 * Limits().passing_bytes * 1.5

    rig.run(body())


@pytest.mark.slow
def test_the_check_notices_a_router_that_holds_them_whole() -> None:
    async def body() -> None:
        whole = Limits(passed_bytes=Limits().body_bytes, body_grace_s=60.0)
        begun, grown = await hundred_at_once(whole, 5)
        print(f"MiB: {grown / MIB:.0f}, {begun} begun")
        assert begun < 100
        assert grown > 4 * 100 * Limits().passing_bytes

    rig.run(body())


# Who is held whole.


def two(up: Taker, **more: Any) -> RoutingTable:
    return table(entity("a", 100, up.url), entity("b", 0, up.url), **more)


NEEDS = {
    "fallback": {"traffic": Traffic(fallback=True)},
    "mirror": {"traffic": Traffic(mirror=Mirror("b", 100, 8))},
    "prefix_hash": {"traffic": Traffic(replicas="prefix_hash")},
    "sticky": {"traffic": Traffic(split="sticky", sticky=Sticky("body", "user"))},
    "guard": {"guard_input": Guard(("secret plan",))},
    "usage": {"usage": True},
    "token limit": {"limits": (Limit("endpoint", "", tokens=1_000_000),)},
    "inference table": {"payloads": Payloads("main.logs.chat")},
}
BODIES = {
    "extra_params": (chat(8000, '"extra_params":{"a":"1"},'), INVOKE),
    "no model yet": (chat(8000, "", ',"model":"chat-ep"'), OPENAI),
    "no key yet": (b'{"other":"' + uploads.text(8000) + b'","inputs":[]}', INVOKE),
    "breaks off in a model": (b'{"model":"' + uploads.text(8000) + b'","inputs":[]}', INVOKE),
    "breaks off in usage_context": (chat(10, f'"usage_context":{{"a":"{"x" * 8000}"}},'), INVOKE),
}


async def is_held_whole(folder: Path, routes: RoutingTable, up: Taker, raw: bytes, target: str) -> None:
    async with keeping(routes, folder, SMALL) as r, Sender(r.port) as sender:
        at = 0
        await sender.send(head(len(raw), target))
        for cut in (5000, len(raw) - 5):
            await sender.send(raw[at:cut])
            await until(lambda: any(c._reader.held == cut for c in r.router.desk.clients))  # noqa: B023
            at = cut
        await asyncio.sleep(0.02)
        assert up.uploads == [], "nothing goes out before the end"
        await sender.send(raw[at:])
        assert (await sender.answer()).status == 200
        assert up.last.whole


@pytest.mark.parametrize("need", NEEDS)
def test_what_needs_a_body_whole_gets_it_whole(need: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with Taker() as up:
            raw = chat(8000, behind=',"user":"u"')
            await is_held_whole(tmp_path, two(up, **NEEDS[need]), up, raw, OPENAI)

    rig.run(body())


@pytest.mark.parametrize("kind", BODIES)
def test_what_cannot_be_told_early_is_told_late(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with Taker() as up:
            await is_held_whole(tmp_path, to(up), up, *BODIES[kind])

    rig.run(body())


# Connections on either side.


def test_the_next_replica_gets_all_of_it_where_one_cannot_be_reached() -> None:
    async def body() -> None:
        async with Taker() as up, serving(table(entity("a", 100, DOWN, up.url)), SMALL) as r:
            for _ in range(3):
                async with Sender(r.port) as sender:
                    raw = chat(8000)
                    await sender.send(await begin(r, up, sender, raw, CUT, OPENAI))
                    assert (await sender.answer()).status == 200
                    assert up.last.body == raw.replace(b"chat-ep", b"engine-model")
            assert len(up.uploads) == 3
            await nothing_is_left(r, up)  # type: ignore[arg-type]
        async with serving(table(entity("a", 100, DOWN, DOWN)), SMALL) as r, Sender(r.port) as sender:
            await sender.send(head(8000) + custom(8000)[:CUT])
            got = await sender.answer()
            assert (got.status, got.closed, got.fields.get("servestate-retry")) == (503, True, None)
            assert await sender.closed() == b""

    rig.run(body())


@pytest.mark.parametrize("whole", [False, True])
def test_while_there_is_no_connection_the_client_is_not_read(whole: bool) -> None:
    """It takes a second until the system knocks again. `whole`: the rest was read all the same."""

    async def body() -> None:
        raw, limits = (custom(8000), SMALL) if whole else (custom(8 * MIB), QUICK)
        with listening() as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with serving(table(entity("a", 100, url)), limits) as r, Sender(r.port, 1 << 16) as sender:
                sending = sender.sending(head(len(raw)) + (raw[:CUT] if whole else raw))
                await until(lambda: held(r) > limits.large_bytes)
                (client,) = r.router.desk.clients
                if whole:
                    client.data_received(raw[CUT:])  # as if it had been on its way here
                else:
                    await settled(lambda: sender.sent, 0.15)
                    assert not sending.done()
                    assert held(r) <= limits.passing_bytes
                loop = asyncio.get_running_loop()
                with (await loop.sock_accept(listener))[0]:  # that of the filler
                    accepted, _ = await loop.sock_accept(listener)
                reader, writer = await asyncio.open_connection(sock=accepted)
                upload = Upload(await bounded(reader.readuntil(b"\r\n\r\n")), 1, reader, writer)
                await bounded(upload.rest())
                assert upload.body == raw
                writer.write(answer())
                assert (await sender.answer()).status == 200
                writer.close()

    rig.run(body())


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Somebody whose queue is full, until he accepts."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.setblocking(False)
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        yield listener


@pytest.mark.parametrize("chunked", [False, True])
def test_the_connection_is_kept_on_both_sides(chunked: bool) -> None:
    """The next request, large or small, may be sent already behind the body."""

    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
            raw, small = custom(8000), rig.request()
            for _ in range(3):
                if chunked:
                    rest = head(None) + framed(raw, True, last=True)
                else:
                    rest = await begin(r, up, sender, raw, CUT)
                behind = small + head(len(raw)) + raw
                await sender.send(rest + behind)
                for sent in (raw, rig.CHAT.replace(b"chat-ep", b"engine-model"), raw):
                    got = await sender.answer()
                    assert (got.status, got.closed) == (200, False)
                    assert sent in [upload.body for upload in up.uploads[-3:]]
            assert (len(up.uploads), up.connections) == (9, 1)

    rig.run(body())


def test_a_client_that_waits_to_be_asked() -> None:
    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
            raw = custom(8000)
            await sender.send(head(len(raw), fields="Expect: 100-continue\r\n"))
            assert await sender.line() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await sender.send(raw[:CUT])
            await until(lambda: up.begun())
            assert b"expect" not in up.last.head.lower()
            await sender.send(raw[CUT:])
            got = await sender.answer()
            assert (got.status, got.closed) == (200, False), "and asked once"
            assert up.last.body == raw

    rig.run(body())


def test_http_1_0() -> None:
    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
            raw = custom(8000)
            await sender.send(head(len(raw), version="1.0") + raw[:CUT])
            await until(lambda: up.begun())
            await sender.send(raw[CUT:])
            got = await sender.answer()
            assert (got.status, got.closed, up.last.body == raw) == (200, True, True)
            assert await sender.closed() == b""

    rig.run(body())


def test_over_tls(tmp_path: Path) -> None:
    async def body() -> None:
        cert, key = pair(tmp_path, "one")
        async with Taker() as up:
            settings = rig.config(tmp_path, tls=TlsFiles(cert, key))
            rig.write_table(settings.table_path, to(up))
            router = rig.service(settings)
            await router.start()
            reader, writer = await processes.connect(int(router.url.rsplit(":", 1)[1]), trusting(cert))
            raw = custom(4 * MIB)
            writer.write(head(len(raw)) + raw[:MIB])
            await until(lambda: up.begun(MIB - 1))
            writer.write(raw[MIB:])
            assert (await bounded(read_answer(reader))).status == 200
            assert up.last.body == raw
            writer.close()
            await router.stop()

    rig.run(body())


# Room.


def test_many_at_once_where_there_is_room_for_few() -> None:
    """Large ones that stream, large ones that do not, small ones: all arrive, and all room is given back."""

    async def body() -> None:
        tight = replace(QUICK, body_bytes=MIB, buffered_bytes=3 * MIB, body_grace_s=20.0)
        kinds = [
            (custom(900_000), INVOKE, False),
            (custom(700_000), INVOKE, True),
            (chat(500_000, "", ',"model":"chat-ep"'), OPENAI, False),
            (chat(500_000), OPENAI, False),
            (rig.CHAT, OPENAI, False),
        ]
        async with Taker() as up, serving(to(up), tight) as r:
            asked = [uploads.ask(r, raw, path, chunked=chunked) for raw, path, chunked in kinds * 8]
            answers = await asyncio.gather(*asked)
            assert [got.status for got in answers] == [200] * 40
            assert all(upload.whole for upload in up.uploads)
            await until(lambda: r.router.desk.budget.left == 3 * MIB)
            await nothing_is_left(r, up)  # type: ignore[arg-type]

    rig.run(body())


def test_a_client_that_got_room_late_is_not_waited_for() -> None:
    """What is here of a body goes on once there is room, though nothing more comes."""

    async def body() -> None:
        tight = replace(SMALL, body_bytes=10_000, buffered_bytes=10_000, passing_bytes=10_000)
        async with (
            Taker(Reluctant()) as up,
            serving(to(up), tight) as r,
            Sender(r.port) as one,
            Sender(r.port) as other,
        ):
            raw = custom(9000)
            await begin(r, up, one, raw, CUT)
            await other.send(head(len(raw)) + raw[:CUT])
            await until(lambda: any(client._waiting for client in r.router.desk.clients))
            await one.leave()
            await until(lambda: up.begun(count=2))

    rig.run(body())
