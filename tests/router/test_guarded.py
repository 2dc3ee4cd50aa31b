"""Guards over HTTP: what they refuse, what they mask, and that they cost nobody else anything."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from servestate.planner.table import Guard, Limit, Mirror, RoutingTable, Traffic
from servestate.runtime.router.guards.guard import LiveGuard
from servestate.runtime.router.guards.threads import GuardThreads
from servestate.runtime.router.records.exposition import expose
from tests.router import rig
from tests.router.leftovers import nothing_is_left
from tests.router.rig import QUICK, Rig, ask, read_answer, request, serving, until
from tests.router.upstreams import (
    BUSY,
    Received,
    Script,
    Upstream,
    answer,
    breaks,
    chunk,
    entity,
    says,
    sse_head,
    table,
)

WORDS = Guard(("secret plan",))
BLOCKS = Guard((), "BLOCK")
MASKS = Guard(("secret plan",), "MASK")
INVOKE = "/serving-endpoints/chat-ep/invocations"
NAMED = "/serving-endpoints/chat-ep/served-models/a/invocations"
OPENAI = ("/v1/chat/completions", "/serving-endpoints/chat/completions")
MAIL = "ann.smith@example.com"


def guarded(url: str, before: Guard | None = None, after: Guard | None = None, **more: Any) -> RoutingTable:
    return table(entity("a", 100, url), guard_input=before, guard_output=after, **more)


def chat(text: str, **more: Any) -> bytes:
    document = {"model": "chat-ep", "messages": [{"role": "user", "content": text}], **more}
    return json.dumps(document).encode()


def said(text: str) -> bytes:
    """A whole answer of a model."""
    document = {
        "id": "c-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    }
    return answer(json.dumps(document).encode())


def event(content: str | None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    document = {"id": "c-1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
    document["choices"][0]["finish_reason"] = finish
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def stream(*pieces: str, pause_s: float = 0.0, seen: list[float] | None = None) -> Script:
    """A stream of those pieces of text."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\n'

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head())
        tail = [usage] if b"include_usage" in received.body else []
        for data in (*map(event, pieces), event(None, "stop"), *tail, b"data: [DONE]\n\n"):
            writer.write(chunk(data))
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.write(b"0\r\n\r\n")

    return script


def text_of(body: bytes) -> str:
    """The text of a stream, as a client adds it up."""
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])


def counted(r: Rig) -> dict[tuple[str, ...], int]:
    return r.router.books.metrics.guarded.values


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Guards look for as long as this is not set."""
    gate = threading.Event()
    request_of, answer_of = LiveGuard.request, LiveGuard.answer
    monkeypatch.setattr(LiveGuard, "request", lambda *args: (gate.wait(5), request_of(*args))[1])
    monkeypatch.setattr(LiveGuard, "answer", lambda *args: (gate.wait(5), answer_of(*args))[1])
    yield gate
    gate.set()


@pytest.mark.parametrize("target", [*OPENAI, INVOKE, NAMED])
@pytest.mark.parametrize(
    ("guard", "text"), [(WORDS, "the Secret\nPLAN is"), (BLOCKS, f"write to {MAIL}")], ids=["word", "pii"]
)
def test_what_a_guard_refuses_reaches_nobody(target: str, guard: Guard, text: str) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url, guard)) as r:
            got = await ask(r, request(chat(text), target))
            assert got.status == 400
            told = got.json()
            assert told["error_code"] == "INVALID_PARAMETER_VALUE"
            assert ("error" in told) == target.startswith("/v1")
            message = told["error"]["message"] if "error" in told else told["message"]
            assert "guardrail" in message
            assert MAIL not in message
            assert not up.received
            assert (await ask(r, request(chat("hello"), target))).status == 200
            assert counted(r) == {("chat-ep", "input", "refused"): 1}
            metrics = expose(r.router.snapshot()).decode()
            assert 'servestate_guarded_total{endpoint="chat-ep",side="input",action="refused"} 1' in metrics
            assert r.counters("chat-ep", "a")["requests"] == 1, "a refused one is not taken on"
            assert r.counters("chat-ep", "a")["assigned"] + r.counters("chat-ep", "a")["direct"] == 1
            await nothing_is_left(r, up)

    rig.run(body())


@pytest.mark.parametrize("target", [*OPENAI, INVOKE, NAMED])
def test_what_is_masked_is_masked_and_every_other_byte_stays(target: str) -> None:
    content = (
        b'{ "model":"chat-ep",  "messages" : [{"role":"user","content":"h\\u0069 '
        + MAIL.encode()
        + b', \\u00e9t\\u00e9"}],\n "seed":1.50, "x":[ ] }'
    )

    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url, MASKS)) as r:
            assert (await ask(r, request(content, target))).status == 200
            expected = content.replace(MAIL.encode(), b"<EMAIL_ADDRESS>")
            assert up.received[0].body == expected.replace(b'"chat-ep"', b'"engine-model"')
            assert counted(r) == {("chat-ep", "input", "masked"): 1}

    rig.run(body())


@pytest.mark.parametrize(
    ("target", "document"),
    [
        ("/v1/completions", {"model": "chat-ep", "prompt": ["hello", f"to {MAIL}"]}),
        ("/v1/embeddings", {"model": "chat-ep", "input": f"to {MAIL}"}),
        (INVOKE, {"dataframe_split": {"columns": ["who"], "data": [[MAIL], ["bob"]]}}),
        (INVOKE, {"messages": [{"role": "user", "content": [{"type": "text", "text": f"to {MAIL}"}]}]}),
        (INVOKE, {"prompt": "hello", "extra_params": {"suffix": f"to {MAIL}"}}),
    ],
    ids=["completions", "embeddings", "dataframe", "parts", "extra_params"],
)
def test_every_kind_of_body_is_looked_at(target: str, document: dict[str, Any]) -> None:
    async def body() -> None:
        content = json.dumps(document).encode()
        async with Upstream() as up:
            async with serving(guarded(up.url, MASKS)) as r:
                assert (await ask(r, request(content, target))).status == 200
                assert MAIL.encode() not in up.received[0].body
                assert b"<EMAIL_ADDRESS>" in up.received[0].body
            async with serving(guarded(up.url, BLOCKS)) as r:
                assert (await ask(r, request(content, target))).status == 400
                assert len(up.received) == 1

    rig.run(body())


def test_fallback_and_mirror_get_the_masked_body_too() -> None:
    async def body() -> None:
        async with Upstream(says(BUSY)) as a, Upstream() as b, Upstream() as c:
            entities = (
                entity("a", 100, a.url),
                entity("b", 0, b.url, model="b-model"),
                entity("c", 0, c.url, model="c-model"),
            )
            traffic = Traffic(fallback=True, mirror=Mirror("c", 100))
            async with serving(table(*entities, traffic=traffic, guard_input=MASKS)) as r:
                got = await ask(r, request(chat(f"to {MAIL}")))
                assert (got.status, got.fields["served-model-name"]) == (200, "b")
                await until(lambda: len(c.received) == 1)
                for up, model in ((a, "engine-model"), (b, "b-model"), (c, "c-model")):
                    document = json.loads(up.received[0].body)
                    assert document["messages"][0]["content"] == "to <EMAIL_ADDRESS>"
                    assert document["model"] == model
                await nothing_is_left(r, a, b, c)

    rig.run(body())


@pytest.mark.parametrize(
    ("guard", "text"), [(WORDS, "our secret plan"), (BLOCKS, f"it is {MAIL}")], ids=["word", "pii"]
)
@pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
def test_an_answer_that_is_refused_is_a_400_and_no_byte_of_it(
    guard: Guard, text: str, streaming: bool
) -> None:
    async def body() -> None:
        halves = text[:7], text[7:]
        script = stream(*halves) if streaming else says(said(text))
        async with Upstream(script) as up, serving(guarded(up.url, after=guard)) as r:
            reader, writer = await r.connect()
            for _ in range(2):
                writer.write(request(chat("hello", stream=streaming)))
                got = await read_answer(reader)
                assert (got.status, got.json()["error"]["type"]) == (400, "invalid_request_error")
                assert text.encode() not in got.body
                assert got.fields["served-model-name"] == "a"
            writer.close()
            assert counted(r) == {("chat-ep", "output", "refused"): 2}
            await nothing_is_left(r, up)

    rig.run(body())


def test_a_masked_answer() -> None:
    async def body() -> None:
        async with (
            Upstream(says(said(f"it is {MAIL}."))) as up,
            serving(guarded(up.url, after=MASKS)) as r,
        ):
            got = await ask(r, request(chat("hello")))
            assert got.status == 200
            assert got.whole
            assert got.json()["choices"][0]["message"]["content"] == "it is <EMAIL_ADDRESS>."
            assert got.json()["usage"]["total_tokens"] == 12
            assert counted(r) == {("chat-ep", "output", "masked"): 1}
            up.script = says(said("nothing to see"))
            assert (await ask(r, request(chat("hello")))).status == 200
            assert counted(r) == {("chat-ep", "output", "masked"): 1}

    rig.run(body())


def test_a_masked_stream_is_whole_again() -> None:
    async def body() -> None:
        pieces = ["it is ann", ".smith@exa", "mple.com", ", I ", "think"]
        async with (
            Upstream(stream(*pieces)) as up,
            serving(guarded(up.url, after=MASKS)) as r,
        ):
            got = await ask(r, request(chat("hello", stream=True)))
            assert (got.status, got.whole) == (200, True)
            assert got.fields["content-type"] == "text/event-stream"
            assert text_of(got.body) == "it is <EMAIL_ADDRESS>, I think"
            assert got.body.endswith(b"data: [DONE]\n\n")
            assert got.body.count(b"data: {") == len(pieces) + 1
            assert b'"finish_reason": "stop"' in got.body

    rig.run(body())


def test_a_stream_with_nothing_to_mask_passes_as_it_is() -> None:
    async def body() -> None:
        async with Upstream(stream("a", "b", "c")) as up:
            async with serving(guarded(up.url)) as r:
                plain = await ask(r, request(chat("hello", stream=True)))
            async with serving(guarded(up.url, after=MASKS)) as r:
                assert (await ask(r, request(chat("hello", stream=True)))).body == plain.body

    rig.run(body())


def test_a_broken_stream_is_never_passed_as_a_whole_one() -> None:
    async def body() -> None:
        async with Upstream(breaks) as up, serving(guarded(up.url, after=WORDS)) as r:
            got = await ask(r, request(chat("hello", stream=True)))
            assert (got.status, got.fields["servestate-retry"]) == (504, "unsafe")

    rig.run(body())


@pytest.mark.parametrize("finished", [True, False])
def test_a_stream_that_its_connection_ends_is_whole_if_it_says_so(finished: bool) -> None:
    async def body() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"

        async def ends(received: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(head + event("hello") + (b"data: [DONE]\n\n" if finished else b""))
            await writer.drain()
            writer.close()

        async with Upstream(ends) as up, serving(guarded(up.url, after=WORDS)) as r:
            got = await ask(r, request(chat("hello", stream=True)))
            assert got.status == (200 if finished else 504)

    rig.run(body())


def test_a_guarded_stream_that_begins_with_an_error_is_no_200() -> None:
    async def body() -> None:
        error = chunk(b'data: {"error":{"message":"no room","code":503}}\n\n') + chunk(b"data: [DONE]\n\n")
        async with Upstream(says(sse_head() + error + b"0\r\n\r\n")) as a, Upstream(stream("x")) as b:
            entities = entity("a", 100, a.url), entity("b", 0, b.url)
            async with serving(table(*entities, guard_output=WORDS)) as r:
                got = await ask(r, request(chat("hello", stream=True)))
                assert (got.status, got.json()["error"]["message"]) == (503, "no room")
                a.script = says(sse_head() + b"0\r\n\r\n")
                assert (await ask(r, request(chat("hello", stream=True)))).status == 504
            traffic = Traffic(fallback=True, after_send=True)
            async with serving(table(*entities, guard_output=WORDS, traffic=traffic)) as r:
                got = await ask(r, request(chat("hello", stream=True)))
                assert (got.status, got.fields["served-model-name"]) == (200, "b")
                assert text_of(got.body) == "x"

    rig.run(body())


def test_what_cannot_be_judged_is_not_passed_on() -> None:
    async def body() -> None:
        packed = answer(b"\x1f\x8b\x08\x00zzzz", fields="Content-Encoding: gzip\r\n")
        async with Upstream(says(packed)) as up, serving(guarded(up.url, after=WORDS)) as r:
            assert (await ask(r, request(chat("hello")))).status == 400
            up.script = says(answer(b"<html>no JSON</html>"))
            assert (await ask(r, request(chat("hello")))).status == 400

    rig.run(body())


def test_a_guard_that_fails_lets_nothing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> bytes:
        raise RuntimeError("a bug")

    async def body() -> None:
        async with Upstream(says(said("hello"))) as up:
            async with serving(guarded(up.url, before=WORDS)) as r:
                monkeypatch.setattr(LiveGuard, "request", fails)
                assert (await ask(r, request(chat("hello")))).status == 500
                assert not up.received
            async with serving(guarded(up.url, after=WORDS)) as r:
                monkeypatch.setattr(LiveGuard, "answer", fails)
                got = await ask(r, request(chat("hello")))
                assert got.status == 500
                assert b"hello" not in got.body
                assert b"a bug" not in got.body
                assert not counted(r), "it was not the guard's judgement"
                await nothing_is_left(r, up)

    rig.run(body())


def test_an_answer_that_is_too_large_for_a_guard() -> None:
    async def body() -> None:
        limits = replace(QUICK, guarded_answer_bytes=10_000)
        async with (
            Upstream(says(said("x" * 20_000))) as up,
            serving(guarded(up.url, after=WORDS), limits) as r,
        ):
            got = await ask(r, request(chat("hello")))
            assert (got.status, got.fields["servestate-retry"]) == (500, "unsafe")
            up.script = stream(*["y" * 100] * 500)
            assert (await ask(r, request(chat("hello", stream=True)))).status == 500
            await nothing_is_left(r, up)

    rig.run(body())


def test_limits_count_what_the_guard_let_pass() -> None:
    async def body() -> None:
        once = (Limit("endpoint", "", calls=1),)
        async with Upstream() as up, serving(guarded(up.url, WORDS, limits=once)) as r:
            for text, status in (("secret plan", 400), ("hello", 200), ("secret plan", 400), ("hello", 429)):
                assert (await ask(r, request(chat(text)))).status == status
            assert len(up.received) == 1

    rig.run(body())


def test_a_client_that_leaves_while_the_guard_looks(held: threading.Event) -> None:
    async def body() -> None:
        async with Upstream(says(said("hello"))) as up:
            async with serving(guarded(up.url, before=WORDS)) as r:
                _, writer = await r.connect()
                writer.write(request(chat("hello")))
                await until(lambda: len(r.router.desk.clients) == 1)
                await asyncio.sleep(0.02)
                writer.transport.abort()
                await until(lambda: not r.router.desk.clients)
                held.set()
                await asyncio.sleep(0.05)
                assert not up.received, "nobody waits for it"
                held.clear()
            async with serving(guarded(up.url, after=WORDS, traffic=Traffic(concurrency=1))) as r:
                _, writer = await r.connect()
                writer.write(request(chat("hello")))
                await until(lambda: len(up.received) == 1)
                await asyncio.sleep(0.02)
                writer.transport.abort()
                await until(lambda: r.inflight() == 0)
                held.set()
                assert (await ask(r, request(chat("hello")))).status == 200
                await nothing_is_left(r, up)

    rig.run(body())


def test_a_guard_that_takes_too_long_says_so(held: threading.Event) -> None:
    async def body() -> None:
        limits = replace(QUICK, guard_s=0.05)
        async with Upstream(says(said("hello"))) as up:
            async with serving(guarded(up.url, before=WORDS), limits) as r:
                got = await ask(r, request(chat("hello")))
                assert got.status == 503
                assert int(got.fields["retry-after"]) >= 1
                assert not up.received
            async with serving(guarded(up.url, after=WORDS), limits) as r:
                got = await ask(r, request(chat("hello")))
                assert (got.status, got.fields["servestate-retry"]) == (500, "unsafe")
                assert r.router.report()["replicas"]["a#0"]["state"] == "healthy"
                await nothing_is_left(r, up)
                held.set()
                await asyncio.sleep(0.02)

    rig.run(body())


async def together(r: Rig, *bodies: bytes) -> list[rig.Answer]:
    return list(await asyncio.gather(*(ask(r, request(one)) for one in bodies)))


async def looked_at(r: Rig) -> asyncio.Task[rig.Answer]:
    """A request that a thread has taken up."""
    task = asyncio.ensure_future(ask(r, request(chat("hello"))))
    await until(lambda: bool(guard_threads()))
    await asyncio.sleep(0.05)
    return task


def guard_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("guard-")]


def test_requests_that_guards_have_no_room_for_come_again(held: threading.Event) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url, WORDS)) as r:
            r.router.desk.guards = GuardThreads(threads=1, waiting=4)
            asking = [await looked_at(r)]
            asking += [asyncio.ensure_future(ask(r, request(chat(f"hello {n}")))) for n in range(5)]
            await until(lambda: sum(one.done() for one in asking) == 3)
            for one in asking:
                if one.done():
                    assert one.result().status == 503
                    assert int(one.result().fields["retry-after"]) >= 1
            assert counted(r) == {("chat-ep", "input", "busy"): 3}
            assert len(guard_threads()) == 1
            assert not up.received
            held.set()
            assert sorted([(await one).status for one in asking]) == [200] * 3 + [503] * 3
            assert {answer.status for answer in await together(r, *[chat("again")] * 2)} == {200}
            r.router.desk.guards.close()
            assert not guard_threads()
            await nothing_is_left(r, up)

    rig.run(body())


def test_who_leaves_while_it_waits_for_a_guard_gives_its_place_back(held: threading.Event) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url, WORDS)) as r:
            r.router.desk.guards = guards = GuardThreads(threads=1, waiting=4)
            first = await looked_at(r)
            for _ in range(20):
                leaving = [(await r.connect())[1] for _ in range(2)]
                for writer in leaving:
                    writer.write(request(chat("hello")))
                await until(lambda: r.router.desk.inflight == 3)
                for writer in leaving:
                    writer.transport.abort()
                await until(lambda: r.router.desk.inflight == 1)
            assert not counted(r), "none was turned away"
            held.set()
            assert (await first).status == 200
            assert len(up.received) == 1
            guards.close()

    rig.run(body())


def test_an_answer_that_guards_have_no_room_for_is_not_to_be_repeated(held: threading.Event) -> None:
    async def body() -> None:
        async with Upstream(says(said("hello"))) as up, serving(guarded(up.url, after=WORDS)) as r:
            r.router.desk.guards = guards = GuardThreads(threads=1, waiting=1)
            asking = [await looked_at(r)]
            asking += [asyncio.ensure_future(ask(r, request(chat("hello")))) for _ in range(2)]
            await until(lambda: any(one.done() for one in asking))
            (got,) = [one.result() for one in asking if one.done()]
            assert (got.status, got.fields["servestate-retry"]) == (500, "unsafe")
            assert counted(r) == {("chat-ep", "output", "busy"): 1}
            assert r.router.report()["replicas"]["a#0"]["state"] == "healthy"
            held.set()
            assert sorted([(await one).status for one in asking]) == [200, 200, 500]
            guards.close()

    rig.run(body())


def test_the_threads_of_guards_end_with_the_router(held: threading.Event) -> None:
    async def body() -> None:
        async with Upstream() as up, serving(guarded(up.url, WORDS)) as r:
            asking = [asyncio.ensure_future(ask(r, request(chat("hello")))) for _ in range(5)]
            await until(lambda: r.router.desk.inflight == 5)
            assert len(guard_threads()) == 2
            r.router.abort()
            held.set()
            await asyncio.gather(*asking)
        assert not guard_threads()
        assert not up.received

    rig.run(body())


def test_others_are_answered_while_a_guard_works() -> None:
    """The guard is at work on the processor, in several threads; the loop still turns."""

    async def body() -> None:
        heavy = chat("Call +49 30 1234567, or maybe not. " * 4000)
        async with Upstream() as up:
            plain = table(entity("b", 100, up.url), name="plain").endpoints
            both = guarded(up.url, MASKS)
            both = replace(both, endpoints=(*both.endpoints, *plain))
            async with serving(both) as r:
                working = [asyncio.ensure_future(ask(r, request(heavy))) for _ in range(3)]
                await asyncio.sleep(0.05)
                waits: list[float] = []
                reader, writer = await r.connect()
                light = request(rig.CHAT.replace(b"chat-ep", b"plain"))
                while not all(task.done() for task in working):
                    began = time.perf_counter()
                    writer.write(light)
                    assert (await read_answer(reader)).status == 200
                    waits.append(time.perf_counter() - began)
                writer.close()
                assert {task.result().status for task in working} <= {200, 400}
                assert len(waits) > 5, "or the guard was too quick to tell"
                waits.sort()
                print(f"{len(waits)} answers, median {waits[len(waits) // 2]:.4f} s, worst {waits[-1]:.4f} s")
                assert waits[len(waits) // 2] < 0.05
                assert waits[-1] < 0.5

    rig.run(body())


def test_the_check_notices_a_guard_that_is_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveGuard, "request", lambda guard, kind, raw, document: raw)
    monkeypatch.setattr(LiveGuard, "answer", lambda guard, kind, content, streaming: content)

    async def body() -> None:
        async with Upstream(says(said(f"it is {MAIL}"))) as up, serving(guarded(up.url, MASKS, MASKS)) as r:
            got = await ask(r, request(chat("the secret plan")))
            assert got.status == 200
            assert MAIL.encode() in got.body

    rig.run(body())
