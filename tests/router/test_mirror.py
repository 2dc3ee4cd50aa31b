"""Mirrors: who gets copies, how many, and that no caller ever notices."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from servestate.planner.table import Limit, Mirror, RoutingTable, Traffic
from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.mirror import LiveMirror
from tests.router import rig
from tests.router.leftovers import nothing_is_left
from tests.router.rig import CHAT, QUICK, Rig, ask, read_answer, request, serving, until
from tests.router.upstreams import (
    BROKEN,
    DOWN,
    Gate,
    Received,
    Script,
    Upstream,
    answer,
    chunk,
    entity,
    hangs,
    hangs_up,
    says,
    sse_head,
    table,
)

USED = answer(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}')


def mirrored(live: str, shadow: str | None, percent: int = 100, most: int = 8, **more: Any) -> RoutingTable:
    """All traffic to `live`; copies to `shadow` (None: it is not ready)."""
    traffic = Traffic(mirror=Mirror("shadow", percent, most), **more.pop("traffic", {}))
    urls = () if shadow is None else (shadow,)
    entities = entity("live", 100, live), entity("shadow", 0, *urls, model="shadow-model")
    return table(*entities, traffic=traffic, **more)


def outcomes(r: Rig) -> dict[str, int]:
    """What became of the copies."""
    found = r.router.books.metrics.mirrored.values
    return {outcome: count for (_, _, outcome), count in found.items()}


def mirror_of(r: Rig) -> LiveMirror:
    found = r.router.desk.table.endpoints["chat-ep"].mirror
    assert found is not None
    return found


@pytest.mark.parametrize("percent", [1, 25, 33, 100])
def test_of_any_hundred_in_a_row_exactly_so_many_are_copied(percent: int) -> None:
    async def body() -> None:
        async with (
            Upstream() as live,
            Upstream() as shadow,
            serving(mirrored(live.url, shadow.url, percent, most=100)) as r,
        ):
            reader, writer = await r.connect()
            for _ in range(200):
                writer.write(request())
                assert (await read_answer(reader)).status == 200
            writer.close()
            await until(lambda: outcomes(r) == {"ok": 2 * percent})
            assert (len(live.received), len(shadow.received)) == (200, 2 * percent)
            await nothing_is_left(r, live, shadow)

    rig.run(body())


def test_the_copy_is_the_same_request_for_another_model() -> None:
    content = b'{ "model": "chat-ep", "messages":[{"role":"user","content":"h\\u0069"}],  "seed" : 7 }'

    async def body() -> None:
        async with (
            Upstream() as live,
            Upstream() as shadow,
            serving(mirrored(live.url, shadow.url)) as r,
        ):
            fields = "Authorization: Bearer mine\r\ntraceparent: 00-aa-bb-01\r\nUser-Agent: me\r\n"
            assert (await ask(r, request(content, fields=fields))).body == b'{"ok":true}'
            await until(lambda: len(shadow.received) == 1)
            (original,), (copy,) = live.received, shadow.received
            assert copy.body == content.replace(b'"chat-ep"', b'"shadow-model"')
            assert original.body == content.replace(b'"chat-ep"', b'"engine-model"')
            assert copy.target == original.target
            ours = {"host", "content-length", "x-request-id"}
            kept = [[f for f in one.fields if f[0] not in ours] for one in (original, copy)]
            assert kept[0] == kept[1]
            assert "authorization" not in dict(copy.fields)
            assert dict(copy.fields)["x-request-id"] != dict(original.fields)["x-request-id"]

    rig.run(body())


def test_at_most_so_many_copies_at_once() -> None:
    async def body() -> None:
        async with (
            Upstream() as live,
            Upstream(hangs) as shadow,
            serving(mirrored(live.url, shadow.url, most=3)) as r,
        ):
            answers = await asyncio.gather(*(ask(r, request()) for _ in range(20)))
            assert Counter(got.status for got in answers) == {200: 20}
            await until(lambda: len(shadow.received) == 3)
            assert outcomes(r) == {"busy": 17}
            mirror = mirror_of(r)
            assert mirror.inflight == 3

    rig.run(body())


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (hangs, "late"),
        (hangs_up, "lost"),
        (says(BROKEN), "error"),
        (says(b"SSH-2.0-nonsense\r\n\r\n"), "lost"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{"), "late"),
        (None, "unreachable"),
    ],
    ids=["hangs", "hangs up", "fails", "no HTTP", "never whole", "not there"],
)
def test_no_caller_notices_what_becomes_of_a_copy(script: Script | None, outcome: str) -> None:
    async def body() -> None:
        async with Upstream() as live, Upstream(script or hangs) as shadow:
            # So long may a request take, and so a copy.
            limits = {"traffic": {"deadline_s": 0.5}}
            async with serving(mirrored(live.url, shadow.url if script else DOWN, **limits)) as r:
                began = asyncio.get_running_loop().time()
                for _ in range(5):
                    got = await ask(r, request())
                    assert (got.status, got.body) == (200, b'{"ok":true}')
                    assert got.fields["served-model-name"] == "live"
                assert asyncio.get_running_loop().time() - began < 0.5, "nobody waits for a copy"
                await until(lambda: outcomes(r) == {outcome: 5})
                await nothing_is_left(r, live, shadow)

    rig.run(body())


def test_a_target_that_is_not_ready_gets_none() -> None:
    async def body() -> None:
        async with Upstream() as live, serving(mirrored(live.url, None)) as r:
            assert (await ask(r, request())).status == 200
            await until(lambda: outcomes(r) == {"not_ready": 1})

    rig.run(body())


def test_who_answers_gets_no_copy_and_no_body_goes_where_it_does_not_fit() -> None:
    async def body() -> None:
        async with Upstream() as live, Upstream() as shadow:
            traffic = Traffic(mirror=Mirror("shadow", 100))
            entities = entity("live", 50, live.url), entity("shadow", 50, shadow.url)
            async with serving(table(*entities, traffic=traffic)) as r:
                await asyncio.gather(*(ask(r, request()) for _ in range(10)))
                await until(lambda: outcomes(r) == {"same": 5, "ok": 5})
                assert len(shadow.received) == 10
            entities = (
                entity("live", 100, live.url),
                entity("shadow", 0, shadow.url, task="llm/v1/embeddings"),
            )
            async with serving(table(*entities, traffic=traffic)) as r:
                assert (await ask(r, request())).status == 200
                await until(lambda: outcomes(r) == {"unfit": 1})

    rig.run(body())


def test_copies_count_for_nothing_but_themselves() -> None:
    async def body() -> None:
        limits = {"limits": (Limit("endpoint", "", calls=4, tokens=100_000),), "usage": True}
        async with (
            Upstream(says(USED)) as live,
            Upstream(says(USED)) as shadow,
            serving(mirrored(live.url, shadow.url, traffic={"concurrency": 1}, **limits)) as r,
        ):
            statuses = [(await ask(r, request())).status for _ in range(5)]
            assert statuses == [200, 200, 200, 200, 429]
            await until(lambda: outcomes(r) == {"ok": 4})
            of_shadow = r.counters("chat-ep", "shadow")
            assert (of_shadow["requests"], of_shadow["assigned"], of_shadow["direct"]) == (0, 0, 0)
            (used,) = r.router.report()["books"]["usage"]
            assert (used["entity"], used["requests"], used["input_tokens"]) == ("live", 4, 12)
            mirror = mirror_of(r)
            assert mirror.counters.codes["mirror"] == {200: 4}
            assert mirror.counters.tokens[:2] == [12, 16]

    rig.run(body())


def test_counts_survive_a_reload_and_copies_of_the_old_table_end_well() -> None:
    async def body() -> None:
        gate = Gate(USED)
        async with (
            Upstream() as live,
            Upstream(gate) as shadow,
            serving(mirrored(live.url, shadow.url, most=2)) as r,
        ):
            await asyncio.gather(*(ask(r, request()) for _ in range(2)))
            await until(lambda: len(shadow.received) == 2)
            r.install(mirrored(live.url, shadow.url, most=2, version=2))
            await until(lambda: r.router.report()["table_version"] == 2)
            assert (await ask(r, request())).status == 200
            await until(lambda: outcomes(r) == {"busy": 1})
            gate.open()
            await until(lambda: outcomes(r) == {"busy": 1, "ok": 2})
            mirror = mirror_of(r)
            assert (mirror.inflight, mirror.counters.codes["mirror"]) == (0, {200: 2})
            r.install(table(entity("live", 100, live.url), version=3))
            await until(lambda: r.router.report()["table_version"] == 3)
            assert (await ask(r, request())).status == 200
            await nothing_is_left(r, live)
            assert len(shadow.received) == 2

    rig.run(body())


def test_streams_are_copied_and_read_to_their_end() -> None:
    events = [chunk(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % i) for i in range(5)]
    usage = chunk(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":5}}\n\n')

    async def streams(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head())
        for event in (*events, usage, chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"):
            writer.write(event)
            await asyncio.sleep(0.002)

    async def body() -> None:
        content = json.dumps({**json.loads(CHAT), "stream": True}).encode()
        async with (
            Upstream(streams) as live,
            Upstream(streams) as shadow,
            serving(mirrored(live.url, shadow.url)) as r,
        ):
            got = await ask(r, request(content))
            assert got.whole
            assert got.body.count(b"[DONE]") == 1
            await until(lambda: outcomes(r) == {"ok": 1})
            mirror = mirror_of(r)
            assert mirror.counters.tokens[:2] == [1, 5]
            await nothing_is_left(r, live, shadow)

    rig.run(body())


def test_a_client_that_leaves_takes_its_request_along_but_not_the_copy() -> None:
    async def body() -> None:
        gate = Gate(USED)
        async with (
            Upstream(hangs) as live,
            Upstream(gate) as shadow,
            serving(mirrored(live.url, shadow.url)) as r,
        ):
            _, writer = await r.connect()
            writer.write(request())
            await until(lambda: len(live.received) == len(shadow.received) == 1)
            writer.transport.abort()
            await until(lambda: live.open == 0)
            assert shadow.open == 1
            gate.open()
            await until(lambda: outcomes(r) == {"ok": 1})
            await nothing_is_left(r, live, shadow)

    rig.run(body())


def test_a_copy_that_is_a_replicas_trial_decides_it() -> None:
    """Else the replica would wait for the outcome of a trial that nobody tells."""

    async def body() -> None:
        health = HealthPolicy(errors=1, ejection_s=0.05)
        async with Upstream() as live, Upstream(says(BROKEN)) as bad, Upstream() as good:
            shadow = entity("shadow", 0, bad.url, good.url, model="shadow-model")
            traffic = Traffic(mirror=Mirror("shadow", 100))
            routes = table(entity("live", 100, live.url), shadow, traffic=traffic)
            async with serving(routes, replace(QUICK, health=health)) as r:
                states = r.router.report

                async def copied(until_state: str) -> None:
                    while states()["replicas"]["shadow#0"]["state"] != until_state:
                        assert (await ask(r, request())).status == 200
                        await asyncio.sleep(0.002)

                await rig.bounded(copied("ejected"), 2)
                bad.script = says(answer())
                await rig.bounded(copied("healthy"), 2)

    rig.run(body())


def test_the_check_notices_a_mirror_that_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = LiveMirror.count
    monkeypatch.setattr(LiveMirror, "count", lambda mirror, change: counted(mirror, max(change, 0)))

    async def body() -> None:
        async with (
            Upstream() as live,
            Upstream() as shadow,
            serving(mirrored(live.url, shadow.url)) as r,
        ):
            await ask(r, request())
            await until(lambda: outcomes(r) == {"ok": 1})
            with pytest.raises(AssertionError, match="did not happen"):
                await until(lambda: mirror_of(r).inflight == 0, within=0.1)

    rig.run(body())
