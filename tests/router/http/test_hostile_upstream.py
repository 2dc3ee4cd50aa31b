"""Hostile upstreams: the client gets a whole truth or a visible failure, the next one the truth."""

from __future__ import annotations

import asyncio
import gzip
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import httpx
import pytest

from servestate.runtime.router import Limits, proxy
from servestate.runtime.router.http import http1
from servestate.runtime.router.http.heads import AnswerHead, BadAnswer
from servestate.runtime.router.http.http1 import AnswerReader
from servestate.runtime.router.proxy import Exchange
from tests.router import rig
from tests.router.rig import QUICK, Answer, Rig, read_answer, request, serving
from tests.router.upstreams import Received, Script, Upstream, answer, chunk, entity, says, sse_head, table

LIMITS = replace(QUICK, request_s=0.15, stall_s=0.15, peek_s=0.1, upstream_idle_s=1.0)
PATIENT = replace(LIMITS, request_s=4.0, stall_s=4.0, peek_s=4.0)
BODY = b'{"choices":[{"text":"' + b"x" * 200 + b'"}]}'
GOOD = answer(BODY)


@dataclass(frozen=True)
class Hostile:
    """An answer; whether the upstream closes after it (FIN), resets (RST) or stays; whether the answer is a
    whole truth that may pass."""

    name: str
    data: bytes
    end: str = "stay"
    whole: bool = False


def head(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{text}\r\n".encode("latin-1")


def hostiles() -> list[Hostile]:
    found = [*_statuses(), *_framing(), *_lengths(), *_chunks(), *_cut(), *_sizes(), *_bodiless()]
    assert len({h.name for h in found}) == len(found)
    return found


def _statuses() -> Iterator[Hostile]:
    for status in (
        "000 x",
        "099 x",
        "101 Switching Protocols",
        "600 x",
        "999 x",
        "1000 x",
        "20 x",
        "abc",
        "-200 x",
        "",
    ):
        yield Hostile(f"status {status!r}", GOOD.replace(b"200 OK", status.encode()))
    for version in ("HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "http/1.1", "ICY", "RTSP/1.0", "HTTP/1.", "XTTP/1.1"):
        yield Hostile(f"version {version!r}", GOOD.replace(b"HTTP/1.1", version.encode(), 1))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    yield Hostile("three 103 first", interim * 3 + GOOD, whole=True)
    yield Hostile("a 100 first", b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, whole=True)
    yield Hostile("ten thousand 1xx", interim * 10_000 + GOOD)
    yield Hostile("1xx and nothing", interim * 2)
    yield Hostile("1xx with a length", b"HTTP/1.1 103 E\r\nContent-Length: 5\r\n\r\nhello" + GOOD)
    yield Hostile("no http at all", b"SSH-2.0-OpenSSH_9.6\r\n")
    yield Hostile("binary", bytes(range(256)) * 4)
    yield Hostile("nothing, closed", b"", "fin")
    yield Hostile("nothing, reset", b"", "rst")
    yield Hostile("nothing at all", b"")


def _framing() -> Iterator[Hostile]:
    n = len(BODY)
    for value in (
        f"+{n}",
        f"-{n}",
        f"0x{n:x}",
        f"{n},{n}",
        f"{n} {n}",
        "abc",
        "",
        "9" * 30,
        f"{n}.0",
        f"{n};",
    ):
        yield Hostile(f"length {value!r}", head(f"Content-Length: {value}\r\n") + BODY)
    yield Hostile("two equal lengths", head(f"Content-Length: {n}\r\n" * 2) + BODY)
    yield Hostile("two lengths", head(f"Content-Length: {n}\r\nContent-Length: 1\r\n") + BODY)
    for coding in ("gzip", "gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;q=1", ""):
        yield Hostile(
            f"coding {coding!r}", head(f"Transfer-Encoding: {coding}\r\n") + chunk(BODY) + b"0\r\n\r\n"
        )
        both = head(f"Content-Length: {n}\r\nTransfer-Encoding: {coding}\r\n")
        yield Hostile(f"coding and length {coding!r}", both + BODY)
    both = head(f"Content-Length: {n}\r\nTransfer-Encoding: chunked\r\n")
    yield Hostile("chunked and length", both + chunk(BODY) + b"0\r\n\r\n")
    old = GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")
    yield Hostile("http 1.0", old, whole=True)
    yield Hostile(
        "http 1.0 kept alive", old.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1), whole=True
    )
    chunked10 = head("Transfer-Encoding: chunked\r\n").replace(b"1.1", b"1.0") + chunk(BODY) + b"0\r\n\r\n"
    yield Hostile("chunks on http 1.0", chunked10)
    yield Hostile("until closed", head("") + BODY, "fin", whole=True)
    for end in ("\n", "\r"):
        yield Hostile(f"line end {end!r}", GOOD.replace(b"\r\n", end.encode()), "fin")
    for field in (
        "A\r\n",
        " A: 1\r\n",
        "A : 1\r\n",
        ": 1\r\n",
        "A: 1\r\n 2\r\n",
        "A: \x00\r\n",
        "A B: 1\r\n",
    ):
        yield Hostile(f"field {field!r}", head(f"{field}Content-Length: {n}\r\n") + BODY)


def _lengths() -> Iterator[Hostile]:
    n = len(BODY)
    for delta in (1, 2, 10, 1000):
        yield Hostile(f"length {delta} too small", head(f"Content-Length: {n - min(delta, n)}\r\n") + BODY)
        for end in ("fin", "rst", "stay"):
            yield Hostile(
                f"length {delta} too large, {end}", head(f"Content-Length: {n + delta}\r\n") + BODY, end
            )
    yield Hostile("a second answer behind", GOOD + GOOD)
    yield Hostile("a poisoned answer behind", GOOD + answer(b"POISON"))
    yield Hostile("one byte behind", GOOD + b"X")
    yield Hostile("an empty line behind", GOOD + b"\r\n")


def _chunks() -> Iterator[Hostile]:
    start = head("Transfer-Encoding: chunked\r\n")
    good = chunk(BODY)
    yield Hostile("chunked", start + good + b"0\r\n\r\n", whole=True)
    yield Hostile("bytes behind the last chunk", start + good + b"0\r\n\r\nX")
    yield Hostile("an answer behind the last chunk", start + good + b"0\r\n\r\n" + answer(b"POISON"))
    for size in ("0xe2", "+e2", "-1", "", "g", " e2", "e2 ", "fffffffff", "e2;\x00"):
        yield Hostile(f"chunk size {size!r}", start + size.encode() + b"\r\n" + BODY + b"\r\n0\r\n\r\n")
        yield Hostile(f"second chunk size {size!r}", start + good + size.encode() + b"\r\n" + BODY + b"\r\n")
    yield Hostile("chunk without its end", start + good[:-2] + b"xx0\r\n\r\n")
    yield Hostile("no last chunk, fin", start + good, "fin")
    yield Hostile("no last chunk, rst", start + good, "rst")
    yield Hostile("no last chunk", start + good)
    yield Hostile("bad trailer", start + good + b"0\r\nA B: 1\r\n\r\n")
    yield Hostile("trailer", start + good + b"0\r\nA: 1\r\n\r\n", whole=True)


def _cut() -> Iterator[Hostile]:
    end_of_head = GOOD.index(b"\r\n\r\n") + 4
    for at in (1, 5, 12, 20, 40, end_of_head - 2, end_of_head, end_of_head + 1, len(GOOD) - 1):
        yield Hostile(f"fin at {at}", GOOD[:at], "fin")
        yield Hostile(f"rst at {at}", GOOD[:at], "rst")


def _sizes() -> Iterator[Hostile]:
    yield Hostile("head of 10 MB", head("A: " + "a" * 10_000_000 + "\r\n"))
    yield Hostile("endless head", b"HTTP/1.1 200 OK\r\n" + b"A: a\r\n" * 5000)
    yield Hostile("101 fields", head("A: a\r\n" * 100 + f"Content-Length: {len(BODY)}\r\n") + BODY)
    bomb = gzip.compress(b"\0" * 1_000_000)
    packed = answer(bomb, fields="Content-Encoding: gzip\r\n")
    yield Hostile("gzip bomb", packed, whole=True)


def _bodiless() -> Iterator[Hostile]:
    for status in ("204 No Content", "304 Not Modified"):
        yield Hostile(f"{status} with a body", answer(BODY, status))
        yield Hostile(
            f"{status} chunked",
            head("Transfer-Encoding: chunked\r\n").replace(b"200 OK", status.encode()) + chunk(BODY),
        )
    yield Hostile("redirect", answer(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n"))
    yield Hostile("205", answer(b"", "205 Reset Content"), whole=True)


def scripted(hostile: Hostile, step: int) -> Script:
    """Send the answer in pieces of `step` bytes (0 = at once), then end as it says."""

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        data = hostile.data
        # Long ones are dripped at both ends only: the middle adds time, not insight.
        with suppress(ConnectionError):
            if step and len(data) < 2000:
                for i in range(0, len(data), step):
                    writer.write(data[i : i + step])
                    await asyncio.sleep(0)
            else:
                writer.write(data)
                await writer.drain()
        if hostile.end == "rst":
            writer.transport.abort()
        elif hostile.end == "fin":
            writer.close()
        else:
            await asyncio.sleep(0)

    return script


def judge(hostile: Hostile, got: Answer) -> str:
    """What is wrong with what the client got, or ""."""
    if b"POISON" in got.body:
        return "it was given another's answer"
    if hostile.whole:
        return "" if 200 <= got.status < 300 and got.whole else f"{got.status}, whole {got.whole}"
    if 200 <= got.status < 300 and got.whole and got.body == BODY:
        return "it passed for whole"
    if 200 <= got.status < 300 and got.whole:
        return f"{got.status} with {got.body[:60]!r} looks whole"
    return "" if got.status in (200, 500, 503, 504) else f"status {got.status}"


async def one(r: Rig, up: Upstream, hostile: Hostile, step: int) -> str:
    up.script = scripted(hostile, step)
    reader, writer = await r.connect()
    writer.write(request())
    try:
        got = await asyncio.wait_for(read_answer(reader), 5)
        wrong = judge(hostile, got)
        if not wrong and not got.closed:
            wrong = await truth(up, reader, writer, "the same client")
    except TimeoutError:
        wrong = "no answer in time"
    writer.close()
    reader, writer = await r.connect()
    after = await truth(up, reader, writer, "the next client")
    writer.close()
    return wrong or after


async def truth(up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str) -> str:
    """What is wrong with the next answer on a client's socket, or ""."""
    up.script = says(answer(b"TRUTH"))
    writer.write(request())
    got = await asyncio.wait_for(read_answer(reader), 5)
    return "" if got.body == b"TRUTH" else f"{who} got {got}"


# Surplus that comes in a later read than the end of its answer finds the answer gone and whole; the
# connection is dropped, which the next client's truth shows.
LATE_SURPLUS = (" behind", "too small", "204 No Content", "304 Not Modified")


async def untruths(chosen: Sequence[Hostile], step: int) -> list[str]:
    """What clients got wrong of these answers, sent in pieces of `step` bytes. Those that are whole have all
    the time that a busy machine takes for them."""
    wrong = []
    for whole, limits in ((False, LIMITS), (True, PATIENT)):
        async with Upstream() as up, serving(table(entity("current", 100, up.url)), limits) as r:
            for hostile in (hostile for hostile in chosen if hostile.whole is whole):
                found = await one(r, up, hostile, step)
                late = step and any(part in hostile.name for part in LATE_SURPLUS) and "looks whole" in found
                if found and not (
                    late or (step and "passed for whole" in found and "behind" in hostile.name)
                ):
                    wrong.append(f"{hostile.name}: {found}")
            if r.inflight():
                wrong.append(f"{r.inflight()} in flight at the end")
    return wrong


@pytest.mark.parametrize("step", [0, 1, 7])
def test_the_client_sees_the_truth(step: int) -> None:
    async def body() -> None:
        assert await untruths(hostiles(), step) == []

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rig.run(body())
    # The test's own 10 MB head, in the upstream, in the socket and as a constant, counts here as well.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (20 + 60) * 1024


def test_the_check_notices_a_router_that_keeps_surplus(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what stands behind an answer taken for the beginning of the next, somebody must get another's."""
    receive = AnswerReader.receive
    surplus: dict[AnswerReader, bytes] = {}

    def keeps(self: AnswerReader, data: bytes) -> bytes:
        data = surplus.pop(self, b"") + data
        content = data if self.head is not None else data.partition(b"\r\n\r\n")[2]
        try:
            return receive(self, data)
        except BadAnswer:
            if self.length is None or self._left >= 0:
                raise
            self.complete = True
            surplus[self] = content[self._left :]
            return content[: self._left]

    monkeypatch.setattr(AnswerReader, "receive", keeps)

    async def body() -> None:
        chosen = [hostile for hostile in hostiles() if hostile.name == "a poisoned answer behind"]
        async with Upstream() as up, serving(table(entity("current", 100, up.url)), LIMITS) as r:
            up.script = scripted(chosen[0], 0)
            assert (await rig.ask(r, request())).body == BODY
            up.script = says(answer(b"TRUTH"))
            assert (await rig.ask(r, request())).body == b"POISON"
        assert len(await untruths(chosen, 0)) == 1

    rig.run(body())


def test_the_check_notices_a_router_that_believes_any_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that says two things believed in the first of them, bodies must pass for whole."""
    judge_head = http1.judge_answer
    no_coding = re.compile(rb"Transfer-Encoding: [^\r]*\r\n")

    def believes(raw: bytes, limits: Limits) -> AnswerHead:
        return judge_head(no_coding.sub(b"", raw) if b"Content-Length" in raw else raw, limits)

    monkeypatch.setattr(http1, "judge_answer", believes)

    async def body() -> None:
        chosen = [hostile for hostile in hostiles() if hostile.name.startswith("coding and length")]
        assert len(await untruths(chosen, 0)) == len(chosen)

    rig.run(body())


def test_there_are_enough() -> None:
    assert len(hostiles()) >= 120


def cut_short(kind: str) -> list[bytes]:
    """The beginnings of an answer of 4 KiB, cut at 200 places."""
    text = b"".join(b'data: {"n":%d,"text":"%s"}\n\n' % (i, b"x" * 60) for i in range(50))[:4000]
    text = text[: text.rfind(b"\n\n") + 2] + b"data: [DONE]\n\n"
    starts: dict[str, Callable[[], bytes]] = {
        "length": lambda: answer(text),
        "chunked": lambda: head("Transfer-Encoding: chunked\r\n") + pieces(text, 512),
        "events": lambda: sse_head() + pieces(text, 83),
    }
    data = starts[kind]()
    return [data[: 1 + i * (len(data) - 2) // 199] for i in range(200)]


def judge_cut(kind: str, got: Answer, *, nearly_whole: bool) -> str:
    """What is wrong with what the client got of a cut answer, or ""."""
    if got.status not in (200, 504):
        return f"status {got.status}"
    if got.status == 200 and got.whole:
        return "it passed for whole"
    if kind != "events" or got.status == 504:
        return ""
    # The upstream's own last event may have come before its framing broke.
    if b"[DONE]" in got.body and not nearly_whole:
        return "it says that it is done"
    events = [event for event in got.body.split(b"\n\n") if event]
    if not all(event.startswith(b"data: ") and event[-1:] in b"}]" for event in events):
        return "half an event"
    return "" if events[-1].startswith(b'data: {"error":') else "it does not say that it broke off"


async def unseen(kind: str) -> list[str]:
    """The cuts that a client could not see, and whether one was not counted."""
    cuts, wrong = cut_short(kind), []
    async with Upstream() as up, serving(table(entity("current", 100, up.url)), LIMITS) as r:
        for n, data in enumerate(cuts):
            up.script = scripted(Hostile("", data, ("fin", "rst")[n % 2]), 0)
            got = await rig.bounded(rig.ask(r, request()))
            found = judge_cut(kind, got, nearly_whole=len(data) > len(cuts[-1]) - 19)
            wrong += [f"cut at {len(data)}: {found}"] if found else []
        counted = r.counters("chat-ep", "current")["errors"]
        wrong += [f"{counted} of {len(cuts)} counted"] if counted != len(cuts) else []
        assert r.inflight() == 0
    return wrong


@pytest.mark.parametrize("kind", ["length", "chunked", "events"])
def test_every_cut_is_seen(kind: str) -> None:
    """No cut looks whole, and no broken stream says that it is done."""

    async def body() -> None:
        assert await unseen(kind) == []

    rig.run(body())


@pytest.mark.parametrize("kind", ["length", "chunked", "events"])
def test_the_check_notices_a_router_that_takes_a_close_for_the_end(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an upstream's close taken for the end of its answer, cuts must pass for whole; of a known length,
    where the router frames anew what came."""
    lost = Exchange.lost
    if kind == "length":
        framed = proxy.framing_of
        monkeypatch.setattr(proxy, "framing_of", lambda status, _, client: framed(status, None, client))

    def believes(self: Exchange, why: str, *, bad: bool) -> None:
        if self.begun:
            self._upstream = None
            self._relay(b"", True)
        else:
            lost(self, why, bad=bad)

    monkeypatch.setattr(Exchange, "lost", believes)

    async def body() -> None:
        found = await unseen(kind)
        assert sum("passed for whole" in one for one in found) > 150
        assert "counted" in found[-1]

    rig.run(body())


@pytest.mark.parametrize("kind", ["length", "chunked", "events"])
def test_every_cut_is_an_error_to_a_real_client(kind: str) -> None:
    """httpx goes by the framing alone: what it takes for whole, applications do."""
    text = b"".join(b'data: {"n":%d}\n\n' % i for i in range(60)) + b"data: [DONE]\n\n"
    data = {
        "length": answer(text),
        "chunked": head("Transfer-Encoding: chunked\r\n") + pieces(text, 128),
        "events": sse_head() + pieces(text, 31),
    }[kind]

    async def body() -> None:
        async with (
            Upstream() as up,
            serving(table(entity("current", 100, up.url)), LIMITS) as r,
            httpx.AsyncClient(base_url=r.router.url, timeout=5) as client,
        ):
            cuts, refused = range(1, len(data) - 1, max(1, len(data) // 200)), 0
            for n, cut in enumerate(cuts):
                up.script = scripted(Hostile("", data[:cut], ("fin", "rst")[n % 2]), 0)
                try:
                    got = await client.post("/v1/chat/completions", content=rig.CHAT)
                except httpx.RemoteProtocolError:
                    refused += 1
                    continue
                assert got.status_code == 504, (cut, got.content)
            assert refused > len(cuts) // 2, "most cuts are behind the head"

    rig.run(body())


def pieces(text: bytes, size: int) -> bytes:
    return b"".join(chunk(text[i : i + size]) for i in range(0, len(text), size)) + b"0\r\n\r\n"


def test_an_event_stream_that_ends_with_its_connection_needs_its_last_event() -> None:
    async def body() -> None:
        start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\n\n"
        async with Upstream() as up, serving(table(entity("current", 100, up.url)), LIMITS) as r:
            up.script = scripted(Hostile("", start + b"data: [DONE]\n\n", "fin"), 0)
            got = await rig.ask(r, request())
            assert (got.whole, got.body) == (True, b"data: {}\n\ndata: [DONE]\n\n")
            up.script = scripted(Hostile("", start, "fin"), 0)
            got = await rig.ask(r, request())
            assert not got.whole
            assert b'data: {"error"' in got.body

    rig.run(body())
