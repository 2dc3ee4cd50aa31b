"""Nobody reads a message other than we did: hostile framing is refused, and refused requests go nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import httptools
import pytest

from servestate.planner.table import RoutingTable
from servestate.runtime.router.http import heads, http1
from tests.router import rig
from tests.router.corpus import Case, cases
from tests.router.rig import QUICK, Rig, read_answer, request, serving
from tests.router.upstreams import Upstream, entity, table

Cut = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    # The middle of very long ones adds time, not insight.
    yield from (data[i : i + 1] for i in range(min(len(data), 400)))
    if len(data) > 400:
        yield data[400:]


def at_each_crlf(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\r\n", start) + 2
        end = end if end > 1 else len(data)
        yield data[start:end]
        start = end


async def deliver(r: Rig, up: Upstream, case: Case, cut: Cut, after_good: bool, patience: float) -> str:
    """What is wrong with how `case` was handled, or ""."""
    reader, writer = await r.connect()
    try:
        if after_good:
            writer.write(request())
            assert (await read_answer(reader)).status == 200
        seen, garbage = len(up.received), len(up.garbage)
        for piece in cut(case.data):
            writer.write(piece)
            await asyncio.sleep(0)
        got = await asyncio.wait_for(read_answer(reader), patience)
        if got.status != case.status:
            return f"status {got.status}, not {case.status}"
        if len(up.garbage) != garbage or len(up.received) - seen != case.seen:
            return f"the upstream saw {len(up.received) - seen} messages, not {case.seen}"
        if case.closes:
            rest = await asyncio.wait_for(reader.read(1), patience)
            return "more than one answer" if rest else ""
        writer.write(request())
        again = await asyncio.wait_for(read_answer(reader), patience)
        return "" if again.status == 200 else f"not usable afterwards: {again.status}"
    except (TimeoutError, ConnectionError) as error:
        return f"{type(error).__name__}"
    finally:
        writer.close()


async def check(corpus: list[Case], cut: Cut, after_good: bool = False, patience: float = 5) -> list[str]:
    routes: Callable[[str], RoutingTable] = lambda url: table(entity("current", 100, url))  # noqa: E731
    async with Upstream() as up:
        async with serving(routes(up.url), QUICK) as r:
            results = []
            for case in corpus:
                wrong = await deliver(r, up, case, cut, after_good, patience)
                if wrong:
                    results.append(f"{case.name}: {wrong}")
            assert r.inflight() == 0
        await rig.until(lambda: up.open == 0)
        if up.garbage:  # also what came of a head that was never finished
            results.append(f"the upstream saw {up.garbage[:3]!r}")
        return results


CORPUS = cases()


def test_the_corpus_is_large_and_holds_controls() -> None:
    assert len(CORPUS) >= 400
    assert sum(case.status == 200 for case in CORPUS) >= 12


@pytest.mark.parametrize("cut", [whole, byte_by_byte, at_each_crlf])
def test_corpus(cut: Cut) -> None:
    async def body() -> None:
        assert await check(CORPUS, cut) == []

    rig.run(body())


def test_corpus_after_a_good_request() -> None:
    async def body() -> None:
        assert await check(CORPUS, whole, after_good=True) == []

    rig.run(body())


def test_the_check_notices_a_missing_defence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the parser's word alone, without this layer's own rules, the corpus must fail."""

    def trusting(raw: bytes, limits: object) -> heads.RequestHead:
        fields = heads._Fields()
        parser = httptools.HttpRequestParser(fields)
        try:
            parser.feed_data(raw)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise heads.bad_request("bad") from None
        found = dict(fields.all)
        length = int(found.get(b"content-length", b"0"))
        is_chunked = b"chunked" in found.get(b"transfer-encoding", b"")
        target = raw.split(b" ")[1]
        return heads.RequestHead(parser.get_method(), target, False, b"", length, is_chunked, True, False)

    monkeypatch.setattr(http1, "judge_request", trusting)

    async def body() -> None:
        corpus = [case for case in CORPUS if not case.name.startswith("target byte")]
        failures = await check(corpus, whole, patience=0.2)
        assert any("the upstream saw 1" in f or "status 200" in f for f in failures), failures

    rig.run(body())


def test_a_body_over_the_bound_is_refused_while_it_comes() -> None:
    async def body() -> None:
        from dataclasses import replace

        limits = replace(QUICK, body_bytes=1000)
        async with Upstream() as up, serving(table(entity("current", 100, up.url)), limits) as r:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            got = await rig.ask(r, head + b"fff\r\n" + b"a" * 1001)
            assert (got.status, up.received) == (400, [])
            assert got.closed

    rig.run(body())
