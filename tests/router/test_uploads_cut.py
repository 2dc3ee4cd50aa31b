"""Large bodies that go on as they come and do not arrive: what either side then sees, and what is left."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from servestate.planner.table import Traffic
from servestate.runtime.router.http import upstream
from tests.router import rig, uploads
from tests.router.rig import QUICK, Answer, Rig, bounded, request, serving, until
from tests.router.uploads import (
    CUT,
    INVOKE,
    OPENAI,
    PATIENT,
    RAW,
    SMALL,
    Script,
    Sender,
    Taker,
    Upload,
    begin,
    blamed,
    chat,
    closes,
    custom,
    dies,
    early,
    framed,
    head,
    is_clean,
    takes,
    to,
    waits,
)
from tests.router.upstreams import DONE, EVENT, answer, entity, sse_head, table

MIB = 1 << 20


# The upstream ends it.


@pytest.mark.parametrize("end", [dies, closes])
def test_an_upstream_that_goes_in_the_middle(end: Script) -> None:
    async def body() -> None:
        async def script(up: Upload) -> None:
            await up.beginning(100)
            await end(up)

        async with Taker(script) as up, serving(to(up), SMALL) as r:
            async with Sender(r.port) as sender:
                await begin(r, up, sender, RAW, CUT)
                got = await sender.answer()
                assert (got.status, got.closed, got.whole) == (504, True, True)
                assert got.fields["servestate-retry"] == "unsafe"
                assert await sender.closed() == b""
            assert (len(up.uploads), up.last.whole) == (1, False), "not a second time"
            assert blamed(r) == ["lost"]
            up.script = takes
            assert (await uploads.ask(r, RAW)).status == 200
            await is_clean(r, up)

    rig.run(body())


SAID = {
    "413 Content Too Large": 400,
    "400 Bad Request": 400,
    "429 Too Many Requests": 429,
    "500 Internal Server Error": 500,
    "200 OK": 200,
}


@pytest.mark.parametrize("then", [waits, closes, takes])
@pytest.mark.parametrize("said", SAID)
def test_an_upstream_that_answers_before_it_has_all(said: str, then: Script) -> None:
    """Its answer goes out, and what is left of the body has nowhere to go."""

    async def body() -> None:
        whole = answer(b'{"error":{"message":"so it is"}}', said)
        async with Taker(early(whole, then=then)) as up, serving(to(up), SMALL) as r:
            async with Sender(r.port) as sender:
                rest = await begin(r, up, sender, RAW, CUT)
                got = await sender.answer()
                assert (got.status, got.closed, got.whole) == (SAID[said], True, True)
                assert b"so it is" in got.body
                await sender.send(rest + request())
                assert await sender.closed() == b"", "what comes behind is not answered"
            up.script = takes
            assert (await uploads.ask(r, RAW)).status == 200
            assert up.last.connection == 2, "the rest is still owed to the first"
            await until(lambda: not r.router.desk.clients)
            assert r.router.desk.budget.left == SMALL.buffered_bytes

    rig.run(body())


async def never_used_again() -> None:
    async with Taker(early(answer())) as up, serving(to(up), SMALL) as r, Sender(r.port) as sender:
        await begin(r, up, sender, RAW, CUT)
        assert (await sender.answer()).status == 200
        assert all(not origin.idle for origin in r.router._registry.origins.values()), "it is kept"


def test_a_connection_that_is_owed_a_rest_is_never_used_again() -> None:
    rig.run(never_used_again())


def test_the_check_notices_a_router_that_uses_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = upstream.UpstreamConnection._settle

    def settle(self: upstream.UpstreamConnection, head: Any) -> None:
        self.unsent = False
        real(self, head)

    monkeypatch.setattr(upstream.UpstreamConnection, "_settle", settle)
    with pytest.raises(AssertionError, match="it is kept"):
        rig.run(never_used_again(), spoilt=True)


@pytest.mark.parametrize("finishes", [True, False])
def test_an_answer_that_begins_before_the_request_is_over(finishes: bool) -> None:
    """An event stream while the body goes on, and when that never ends."""

    async def body() -> None:
        async def script(up: Upload) -> None:
            await up.beginning()
            up.writer.write(sse_head() + EVENT)
            await up.rest()
            up.writer.write(DONE)

        limits = replace(SMALL, stall_s=5.0 if finishes else 0.2)
        async with Taker(script) as up, serving(to(up), limits) as r:
            async with Sender(r.port) as sender:
                raw = chat(8000)
                rest = await begin(r, up, sender, raw, CUT, OPENAI)
                began = await sender.line()
                assert began.startswith(b"HTTP/1.1 200")
                assert b"Connection: close" in began
                if finishes:
                    await sender.send(rest)
                said = await sender.closed()
                assert (b"[DONE]" in said, said.endswith(b"0\r\n\r\n")) == (finishes, finishes)
                await until(lambda: up.last.whole if finishes else up.last.lost)
            assert blamed(r) == [], "it waited for the client"
            await is_clean(r, up)

    rig.run(body())


def test_a_refusal_is_heard_though_its_connection_breaks() -> None:
    """A server that answers without having read the body, as for a wrong key, resets the connection with its
    close: the answer is here by then, and a piece of the body that is written now fails."""

    async def body() -> None:
        # Without that word a connection whose request went out whole would be kept, and found closed.
        said = b'{"error":{"message":"too much"}}'
        refusal = answer(said, "413 Content Too Large", "Connection: close\r\n")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_refuse_all, args=(listener, refusal), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with serving(table(entity("a", 100, url)), replace(QUICK, health=SMALL.health)) as r:
                found = Counter[int]()
                for size in (300_000, MIB, 4 * MIB) * 10:
                    found[(await uploads.ask(r, custom(size))).status] += 1
                assert found[400] + found[504] == 30
                assert found[400] >= 27, "now and then its system drops the answer with the connection"
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

    rig.run(body())


def _refuse_all(listener: socket.socket, refusal: bytes) -> None:
    """In a thread: at its own pace."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                data = connection.recv(1 << 16)
                while data and b"\r\n\r\n" not in data:
                    data += connection.recv(1 << 16)
                connection.sendall(refusal)


def test_an_upstream_that_takes_nothing_is_to_blame() -> None:
    async def body() -> None:
        async def script(up: Upload) -> None:
            await up.beginning()
            await waits(up)

        limits, hurried = replace(QUICK, health=SMALL.health), Traffic(deadline_s=0.3)
        async with Taker(script) as up, serving(to(up, traffic=hurried), limits) as r:
            got = await bounded(uploads.ask(r, custom(16 * MIB)), 5)
            assert (got.status, got.closed) == (504, True)
            assert b"took no more of the request" in got.body
            assert blamed(r) == ["stalled"]
            await until(lambda: not r.router.desk.clients)
            assert r.router.desk.budget.left == limits.buffered_bytes

    rig.run(body())


async def trickles(sender: Sender, rest: bytes, pause_s: float) -> None:
    for at in range(0, len(rest), 100):
        await sender.send(rest[at : at + 100])
        await asyncio.sleep(pause_s)


def test_an_error_that_never_ends_is_not_waited_for_while_the_body_goes_on() -> None:
    """What came of it within `error_body_s` is enough, whatever the client still sends."""

    async def body() -> None:
        whole = answer(b'{"error":{"message":"so it is"}}' + b" " * 100, "500 Internal Server Error")
        script = early(whole[:-50], then=Upload.rest)
        limits = replace(SMALL, error_body_s=0.1)
        async with Taker(script) as up, serving(to(up), limits) as r, Sender(r.port) as sender:
            rest = await begin(r, up, sender, RAW, CUT)
            sending = asyncio.create_task(trickles(sender, rest, 0.05))
            got = await sender.answer(5)
            assert (got.status, got.closed) == (500, True)
            assert b"so it is" in got.body
            assert not sending.done()
            sending.cancel()

    rig.run(body())


def test_an_answer_without_content_does_not_hurry_the_client() -> None:
    """An upstream may say 200 at once and then wait for the body: the client has the time that it has."""

    async def body() -> None:
        async def script(up: Upload) -> None:
            await up.beginning()
            up.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            await up.rest()
            up.writer.write(b"{}")

        limits = replace(SMALL, peek_s=0.1, body_grace_s=5.0)
        async with Taker(script) as up, serving(to(up), limits) as r, Sender(r.port) as sender:
            rest = await begin(r, up, sender, RAW, CUT)
            await asyncio.sleep(0.3)
            await sender.send(rest)
            got = await sender.answer()
            assert (got.status, got.body) == (200, b"{}")

    rig.run(body())


# The client ends it.


def test_a_client_that_leaves_in_the_middle() -> None:
    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r:
            async with Sender(r.port) as sender:
                await begin(r, up, sender, RAW, CUT)
            await until(lambda: up.last.lost)
            await is_clean(r, up)
            assert blamed(r) == []

    rig.run(body())


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("more", [0, 500])
def test_a_client_that_sends_too_slowly(more: int, kept: bool) -> None:
    """`kept`: the connection to the upstream stood already."""

    async def body() -> None:
        limits = replace(SMALL, body_grace_s=0.3, body_bytes_per_s=1 << 20)
        async with Taker() as up, serving(to(up), limits) as r:
            if kept:
                assert (await rig.ask(r, request())).status == 200
            async with Sender(r.port) as sender:
                rest = await begin(r, up, sender, RAW, CUT)
                await sender.send(rest[:more])
                got = await sender.answer(2)
                assert (got.status, got.closed) == (400, True)
                assert b"did not arrive in time" in got.body
                await until(lambda: up.last.lost)
            assert blamed(r) == []
            await is_clean(r, up)

    rig.run(body())


def test_a_client_that_was_held_is_not_late() -> None:
    """The time in which it was not read does not count."""

    async def body() -> None:
        go = asyncio.Event()

        async def script(up: Upload) -> None:
            await up.beginning()
            await go.wait()
            await takes(up)

        limits = replace(QUICK, body_grace_s=0.3, body_bytes_per_s=1 << 30)
        async with Taker(script) as up, serving(to(up), limits) as r, Sender(r.port) as sender:
            raw = custom(16 * MIB)
            sender.sending(head(len(raw)) + raw)
            await asyncio.sleep(1.0)
            go.set()
            assert (await sender.answer()).status == 200
            assert up.last.body == raw

    rig.run(body())


# At random.


@dataclass
class Fate:
    """What becomes of one request: in which pieces it is sent, and who leaves where; -1: nobody."""

    raw: bytes
    pieces: list[int]
    chunked: bool
    client_leaves: int
    upstream_leaves: int
    answers_early: bool


def dealt(rand: random.Random) -> Fate:
    size = rand.choice([200, 3000, 9000, 30_000, 200_000])
    raw = (
        custom(size) if rand.random() < 0.5 else chat(size, '"model":"chat-ep",', rand.choice(["", ',"n":1']))
    )
    cuts = sorted(rand.randrange(len(raw)) for _ in range(rand.randrange(6)))

    def somewhere(often: float) -> int:
        return rand.randrange(len(raw)) if rand.random() < often else -1

    return Fate(
        raw, [*cuts, len(raw)], rand.random() < 0.5, somewhere(0.2), somewhere(0.2), rand.random() < 0.3
    )


async def suffered(r: Rig, fate: Fate, number: int) -> Answer | None:
    """The answer, None where the client has left."""
    async with Sender(r.port) as sender:
        fields = f"traceparent: {number}\r\n"
        await sender.send(head(None if fate.chunked else len(fate.raw), INVOKE, fields))
        at = 0
        for cut in fate.pieces:
            if 0 <= fate.client_leaves < cut:
                return None
            await sender.send(framed(fate.raw[at:cut], fate.chunked, last=cut == len(fate.raw)))
            await asyncio.sleep(0.001)
            at = cut
        return await sender.answer(5)


def test_at_random() -> None:
    """Every request ends, the upstream has each of them whole and right or not whole, one in chunks only if
    all of it was sent, and nothing is left."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rand = random.Random(seed)
    fates = [dealt(rand) for _ in range(400)]

    async def script(up: Upload) -> None:
        (number,) = (int(line[13:]) for line in up.head.split(b"\r\n") if line.startswith(b"traceparent: "))
        fate = fates[number]
        up.head = b"%d" % number
        if fate.upstream_leaves >= 0:
            while len(up.body) < fate.upstream_leaves and await up.more(fate.upstream_leaves - len(up.body)):
                pass
            if fate.answers_early:
                up.writer.write(answer(fields="Connection: close\r\n"))
            up.writer.transport.abort()
        else:
            await takes(up)

    async def body() -> None:
        limits = replace(SMALL, health=PATIENT)
        async with Taker(script) as up, serving(to(up), limits) as r:
            found: Counter[object] = Counter()
            slots = asyncio.Semaphore(20)

            async def one(number: int) -> None:
                fate = fates[number]
                async with slots:
                    got = await suffered(r, fate, number)
                status = None if got is None else got.status
                found[status] += 1
                if fate.client_leaves < 0 and fate.upstream_leaves < 0:
                    assert status == 200, (number, fate, got)
                assert status in (None, 200, 504), (number, status)

            await asyncio.gather(*(one(number) for number in range(len(fates))))
            print(dict(found))
            assert found[200] > 100
            assert found[504] > 10
            await is_clean(r, up)
            numbers = [int(upload.head) for upload in up.uploads]
            assert len(numbers) == len(set(numbers)), "none came twice"
            for upload in up.uploads:
                fate = fates[int(upload.head)]
                assert not ((upload.whole or fate.chunked) and fate.client_leaves >= 0)
                wanted = fate.raw.replace(b'"chat-ep"', b'"engine-model"')
                assert upload.length == len(wanted)
                if upload.whole:
                    assert upload.body == wanted

    rig.run(body())


def test_an_upstream_that_is_busy_is_waited_for() -> None:
    """It begins to read when it comes to this request: that has the time of any other."""

    async def body() -> None:
        async def script(up: Upload) -> None:
            await up.beginning()
            await asyncio.sleep(0.6)
            await takes(up)

        limits = replace(QUICK, stall_s=0.2, health=SMALL.health)
        async with Taker(script) as up, serving(to(up), limits) as r:
            got = await bounded(uploads.ask(r, custom(16 * MIB)), 5)
            assert (got.status, blamed(r)) == (200, [])

    rig.run(body())


def test_an_upstream_that_tires_of_a_slow_client_is_not_to_blame() -> None:
    async def body() -> None:
        async def script(up: Upload) -> None:
            await up.beginning()
            await asyncio.sleep(0.3)
            await dies(up)

        limits = replace(SMALL, prompt_s=0.1)
        async with Taker(script) as up, serving(to(up), limits) as r, Sender(r.port) as sender:
            await begin(r, up, sender, RAW, CUT)
            got = await sender.answer()
            assert (got.status, blamed(r)) == (504, [])

    rig.run(body())


@pytest.mark.parametrize("late", [b'"n":100', b'"temperature":3'])
def test_parameters_are_checked_where_they_come_late_too(late: bytes) -> None:
    async def body() -> None:
        async with Taker() as up, serving(to(up), SMALL) as r:
            raw = chat(8000)[:-1] + b"," + late + b"}"
            got = await bounded(uploads.ask(r, raw, INVOKE), 5)
            assert (got.status, got.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
            assert not any(upload.whole for upload in up.uploads)

    rig.run(body())
