"""Health over HTTP: what takes a replica out of use, what brings it back, and what never matters."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from servestate.planner.table import Backend, EntityRoute, Guard, Mirror, RoutingTable, Traffic
from servestate.runtime.router.balance.health import Health
from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.balance.replicas import Replicas
from servestate.runtime.router.records.exposition import expose
from tests.router import rig
from tests.router.leftovers import nothing_is_left
from tests.router.rig import QUICK, Rig, ask, bounded, read_answer, request, serving, until
from tests.router.upstreams import (
    BROKEN,
    BUSY,
    DOWN,
    Gate,
    Received,
    Script,
    Upstream,
    answer,
    begins,
    breaks,
    deaf,
    entity,
    hangs,
    hangs_up,
    in_turn,
    says,
    sse_head,
    table,
)

LONG = replace(QUICK, health=HealthPolicy(ejection_s=60))
SHORT = replace(QUICK, health=HealthPolicy(errors=2, ejection_s=0.05))


def replicas(*urls: str, traffic: Traffic | None = None, **more: Any) -> RoutingTable:
    """One entity with a replica per URL."""
    return table(entity("a", 100, *urls), traffic=traffic or Traffic(), **more)


def state(r: Rig, replica: str = "a#0") -> str:
    return str(r.router.report()["replicas"][replica]["state"])


async def statuses(r: Rig, count: int) -> Counter[int]:
    """Of so many requests, one after the other."""
    return Counter([(await ask(r, request())).status for _ in range(count)])


def once(first: Script, then: Script) -> Script:
    """`first` for one request, `then` for all others."""
    seen: list[Received] = []

    async def script(received: Received, writer: asyncio.StreamWriter) -> None:
        seen.append(received)
        await (first if len(seen) == 1 else then)(received, writer)

    return script


def test_five_errors_in_a_row_take_a_replica_out_of_use() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), LONG) as r,
        ):
            assert await statuses(r, 40) == {500: 5, 200: 35}
            assert (len(bad.received), len(good.received)) == (5, 35)
            told = r.router.report()["replicas"]
            assert told["a#1"] == {"inflight": 0, "state": "healthy"}
            assert (told["a#0"]["state"], told["a#0"]["reason"], told["a#0"]["times"]) == (
                "ejected",
                "5xx",
                1,
            )
            assert 59 < told["a#0"]["left_s"] <= 60
            metrics = expose(r.router.snapshot()).decode()
            labels = 'endpoint="chat-ep",entity="a"'
            assert f'servestate_ejections_total{{{labels},reason="5xx"}} 1' in metrics
            assert f'servestate_replica_state{{{labels},replica="a#0",state="ejected"}} 1' in metrics
            assert f'servestate_replica_state{{{labels},replica="a#1",state="healthy"}} 1' in metrics
            await nothing_is_left(r, bad, good)

    rig.run(body())


@pytest.mark.parametrize(
    ("script", "reason", "status"),
    [
        (hangs_up, "lost", 504),
        (says(b"nonsense\r\n\r\n"), "bad", 500),
        (says(sse_head() + b"0\r\n\r\n"), "empty", 504),
    ],
    ids=["lost", "bad", "empty"],
)
def test_answers_that_never_were_count_too(script: Script, reason: str, status: int) -> None:
    async def body() -> None:
        async with (
            Upstream(script) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), LONG) as r,
        ):
            assert await statuses(r, 20) == {status: 5, 200: 15}
            assert r.router.report()["replicas"]["a#0"]["reason"] == reason

    rig.run(body())


def fallback(first: str, second: str) -> RoutingTable:
    """Two entities of one replica each, of which the second has no share."""
    return table(entity("a", 100, first), entity("b", 0, second), traffic=Traffic(fallback=True))


async def passed_over(r: Rig, bad: Upstream) -> None:
    assert await statuses(r, 5) == {200: 5}
    assert state(r) == "ejected"
    got = await ask(r, request())
    assert (got.status, got.fields["x-servestate-entity"]) == (200, "b")
    assert await statuses(r, 9) == {200: 9}
    assert len(bad.received) == 5, "who falls back asks none again of which all that it has is ejected"


def test_with_fallback_an_entity_is_passed_over_while_all_of_it_is_ejected() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(fallback(bad.url, good.url), LONG) as r,
        ):
            await passed_over(r, bad)
            fallbacks = r.router.snapshot()["servestate_fallbacks_total"]
            assert [["chat-ep", "a", "b", "ejected"], 10] in fallbacks
            direct = request(target="/serving-endpoints/chat-ep/served-models/a/invocations")
            assert (await ask(r, direct)).status == 500, "who names it gets it"
            await nothing_is_left(r, bad, good)

    rig.run(body())


def test_the_check_notices_a_router_that_asks_the_ejected_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replicas, "closed", lambda replicas, now: False)

    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(fallback(bad.url, good.url), LONG) as r,
        ):
            with pytest.raises(AssertionError, match="asks none again"):
                await passed_over(r, bad)

    rig.run(body())


def test_with_fallback_one_request_is_its_trial() -> None:
    async def body() -> None:
        async with (
            Upstream(in_turn(*[BROKEN] * 2, answer())) as ill,
            Upstream() as good,
            serving(fallback(ill.url, good.url), SHORT) as r,
        ):
            assert await statuses(r, 2) == {200: 2}
            assert state(r) == "ejected"
            await asyncio.sleep(0.06)
            got = await ask(r, request())
            assert (got.status, got.fields["x-servestate-entity"]) == (200, "a")
            assert state(r) == "healthy"
            assert await statuses(r, 5) == {200: 5}
            assert (len(ill.received), len(good.received)) == (8, 2)

    rig.run(body())


def test_where_every_entity_is_ejected_they_are_asked_all_the_same() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as one,
            Upstream(says(BROKEN)) as other,
            serving(fallback(one.url, other.url), LONG) as r,
        ):
            assert await statuses(r, 12) == {500: 12}
            assert {state(r, "a#0"), state(r, "b#0")} == {"ejected"}
            assert (len(one.received), len(other.received)) == (12, 12)

    rig.run(body())


def test_an_entity_that_was_passed_over_is_the_last_resort() -> None:
    async def body() -> None:
        async with (
            Upstream(in_turn(*[BROKEN] * 5, answer())) as first,
            Upstream(in_turn(*[answer()] * 5, BROKEN)) as second,
            serving(fallback(first.url, second.url), LONG) as r,
        ):
            assert await statuses(r, 5) == {200: 5}
            assert state(r) == "ejected"
            got = await ask(r, request())
            assert (got.status, got.fields["x-servestate-entity"]) == (200, "a")
            assert (len(first.received), len(second.received)) == (6, 6), "each once"
            await nothing_is_left(r, first, second)

    rig.run(body())


def test_a_copy_that_does_not_fit_is_no_trial() -> None:
    async def body() -> None:
        task, traffic = "llm/v1/completions", Traffic(mirror=Mirror("b", 100))
        async with (
            Upstream() as first,
            Upstream(says(BROKEN)) as second,
            serving(
                table(entity("a", 100, first.url), entity("b", 0, second.url, task=task), traffic=traffic),
                SHORT,
            ) as r,
        ):
            direct = request(b'{"prompt":"x"}', "/serving-endpoints/chat-ep/served-models/b/invocations")
            for _ in range(2):
                assert (await ask(r, direct)).status == 500
            assert state(r, "b#0") == "ejected"
            await asyncio.sleep(0.06)
            assert (await ask(r, request())).status == 200
            mirrored = r.router.books.metrics.mirrored
            await until(lambda: mirrored.values.get(("chat-ep", "b", "unfit")) == 1)
            assert state(r, "b#0") == "ejected", "no request is under way there"

    rig.run(body())


def test_a_replica_that_nobody_reaches_fails_no_request_and_is_soon_not_tried() -> None:
    async def body() -> None:
        async with Upstream() as good, serving(replicas(DOWN, good.url), LONG) as r:
            assert await statuses(r, 20) == {200: 20}
            told = r.router.report()["replicas"]["a#0"]
            assert told["state"] == "ejected"
            assert "refused" in told["reason"]
            assert r.router.books.metrics.ejections.values == {("chat-ep", "a", "unreachable"): 1}

    rig.run(body())


def test_one_that_does_not_answer_in_time_is_to_blame() -> None:
    async def body() -> None:
        traffic = Traffic(deadline_s=0.05)
        async with (
            Upstream(hangs) as slow,
            Upstream() as good,
            serving(replicas(slow.url, good.url, traffic=traffic), LONG) as r,
        ):
            assert await statuses(r, 14) == {504: 5, 200: 9}
            assert r.router.report()["replicas"]["a#0"]["reason"] == "timeout"

    rig.run(body())


def test_one_that_takes_no_connection_in_time_is_to_blame() -> None:
    """The deadline of the endpoint is shorter than what a connection may take."""

    async def body() -> None:
        with deaf() as url:
            async with (
                Upstream() as good,
                serving(replicas(url, good.url, traffic=Traffic(deadline_s=0.05)), LONG) as r,
            ):
                assert await statuses(r, 14) == {503: 5, 200: 9}
                assert r.router.report()["replicas"]["a#0"]["reason"] == "no connection in time"
                assert r.router.books.metrics.ejections.values == {("chat-ep", "a", "unreachable"): 1}
                await nothing_is_left(r, good)

    rig.run(body())


@pytest.mark.parametrize("status", ["429 Too Many", "400 Bad", "404 Not Found", "422 Unprocessable"])
def test_what_the_caller_is_told_to_do_otherwise_never_counts(status: str) -> None:
    async def body() -> None:
        async with (
            Upstream(says(answer(b"{}", status))) as one,
            Upstream(says(answer(b"{}", status))) as two,
            serving(replicas(one.url, two.url), SHORT) as r,
        ):
            for _ in range(30):
                assert 400 <= (await ask(r, request())).status < 500
            assert (state(r, "a#0"), state(r, "a#1")) == ("healthy", "healthy")
            assert not r.router.books.metrics.ejections.values

    rig.run(body())


def test_an_answer_in_between_begins_the_count_anew() -> None:
    async def body() -> None:
        turns = in_turn(*[BROKEN] * 4, answer(), *[BROKEN] * 4, answer())
        async with (
            Upstream(turns) as moody,
            Upstream() as good,
            serving(replicas(moody.url, good.url), LONG) as r,
        ):
            assert await statuses(r, 40) == {500: 8, 200: 32}
            assert state(r) == "healthy"

    rig.run(body())


def test_half_of_many_is_too_many_even_if_no_two_follow_each_other() -> None:
    async def body() -> None:
        turns = in_turn(*[answer(), BROKEN] * 50)
        async with (
            Upstream(turns) as moody,
            Upstream() as good,
            serving(replicas(moody.url, good.url), LONG) as r,
        ):
            await statuses(r, 60)
            assert state(r) == "ejected"
            assert len(moody.received) == 20

    rig.run(body())


def test_a_trial_brings_it_back_and_a_failed_one_takes_twice_as_long() -> None:
    async def body() -> None:
        limits = replace(QUICK, health=HealthPolicy(errors=2, ejection_s=0.1))
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), limits) as r,
        ):
            assert await statuses(r, 8) == {500: 2, 200: 6}
            await until(lambda: r.router.report()["replicas"]["a#0"]["left_s"] == 0)
            assert await statuses(r, 8) == {500: 1, 200: 7}, "one trial, and it failed"
            told = r.router.report()["replicas"]["a#0"]
            assert (told["state"], told["times"]) == ("ejected", 2)
            assert told["left_s"] > 0.1
            bad.script = says(answer())
            await until(lambda: r.router.report()["replicas"]["a#0"]["left_s"] == 0)
            assert await statuses(r, 8) == {200: 8}
            assert state(r) == "healthy"
            assert len(bad.received) > 5, "it has its share again"

    rig.run(body())


def test_during_a_trial_all_others_go_elsewhere() -> None:
    async def body() -> None:
        gate = Gate()
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), SHORT) as r,
        ):
            await until_ejected(r)
            bad.script = gate
            seen = len(bad.received)
            trials = [asyncio.ensure_future(ask(r, request())) for _ in range(10)]
            await until(lambda: sum(t.done() for t in trials) == 9)
            assert (len(bad.received) - seen, state(r)) == (1, "trial")
            gate.open()
            assert {t.status for t in await asyncio.gather(*trials)} == {200}
            assert state(r) == "healthy"

    rig.run(body())


async def until_ejected(r: Rig) -> None:
    """And until its ejection is over."""
    while state(r) != "ejected":
        await ask(r, request())
    await until(lambda: r.router.report()["replicas"]["a#0"]["left_s"] == 0)


async def until_healthy(r: Rig) -> None:
    async def asking() -> None:
        while state(r) != "healthy":
            await asyncio.gather(*(ask(r, request()) for _ in range(4)))
            await asyncio.sleep(0.002)

    await rig.bounded(asking(), 2)


def test_a_client_that_leaves_during_a_trial_does_not_hold_it_up() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), SHORT) as r,
        ):
            await until_ejected(r)
            bad.script = hangs
            seen = len(bad.received)
            writers = []
            while state(r) != "trial":
                _, writer = await r.connect()
                writer.write(request())
                writers.append(writer)
                await asyncio.sleep(0.002)
            await until(lambda: len(bad.received) == seen + 1)
            for writer in writers:
                writer.transport.abort()
            await until(lambda: state(r) == "ejected")
            bad.script = says(answer())
            await until_healthy(r)
            await nothing_is_left(r, bad, good)

    rig.run(body())


@pytest.mark.parametrize("how", ["429", "connecting", "guarded", "guard", "oversize"])
def test_whatever_becomes_of_a_trial_another_one_follows(how: str) -> None:
    """A trial of which nobody tells the outcome would keep the replica out of use until it lapses."""

    async def body() -> None:
        async with Upstream(says(BROKEN)) as bad, Upstream() as good:
            limits = replace(SHORT, guarded_answer_bytes=1000)
            guard = {"guard_output": Guard(("forbidden",))} if how.startswith(("guard", "over")) else {}
            odd: dict[str, Script] = {
                "429": says(BUSY),
                "connecting": hangs_up,
                "guarded": says(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"a"'),
                "guard": says(answer(b'{"a":"forbidden"}')),
                "oversize": says(answer(b'{"a":"%b"}' % (b"x" * 2000))),
            }
            traffic = Traffic(stall_s=0.05)
            async with serving(replicas(bad.url, good.url, traffic=traffic, **guard), limits) as r:
                await until_ejected(r)
                bad.script = once(odd[how], says(answer()))
                await until_healthy(r)
                await nothing_is_left(r, bad, good)

    rig.run(body())


def test_the_last_replica_stays() -> None:
    async def body() -> None:
        async with Upstream(says(BROKEN)) as one, Upstream(says(BROKEN)) as two:
            async with serving(replicas(one.url, two.url), LONG) as r:
                assert await statuses(r, 30) == {500: 30}
                assert len(one.received) + len(two.received) == 30, "asked, every time"
                one.script = two.script = says(answer())
                assert await statuses(r, 30) == {200: 30}
            async with serving(replicas(one.url), LONG) as r:
                one.script = says(BROKEN)
                assert await statuses(r, 10) == {500: 10}
                one.script = says(answer())
                assert await statuses(r, 10) == {200: 10}

    rig.run(body())


def test_health_survives_a_reload() -> None:
    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), LONG) as r,
        ):
            await statuses(r, 20)
            r.install(replicas(bad.url, good.url, version=2))
            await until(lambda: r.router.report()["table_version"] == 2)
            assert state(r) == "ejected"
            assert await statuses(r, 10) == {200: 10}

    rig.run(body())


def test_an_unhealthy_replica_is_found_out_by_probes_alone() -> None:
    async def body() -> None:
        policy = HealthPolicy(interval_s=0.05, timeout_s=0.5)
        async with Upstream(says(answer(b"", "503 Unavailable"))) as bad, Upstream() as good:
            urls = (bad.url, good.url)
            backends = tuple(Backend(f"a#{i}", url, health="/health") for i, url in enumerate(urls))
            routes = table(EntityRoute("a", 100, "engine-model", "", False, backends))
            async with serving(routes, replace(QUICK, health=policy)) as r:
                await until(lambda: state(r) == "ejected")
                assert r.router.report()["replicas"]["a#0"]["reason"] == "health"
                assert {seen.method for seen in bad.received} == {"GET"}
                assert await statuses(r, 5) == {200: 5}
                assert {seen.method for seen in bad.received} == {"GET"}

    rig.run(body())


def test_the_check_notices_a_replica_that_is_never_ejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Health, "failed", lambda *_: False)

    async def body() -> None:
        async with (
            Upstream(says(BROKEN)) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), LONG) as r,
        ):
            assert (await statuses(r, 40))[500] == 20

    rig.run(body())


@pytest.mark.parametrize(
    ("script", "reason"), [(begins, "stalled"), (breaks, "lost")], ids=["stalls", "breaks"]
)
def test_an_answer_that_began_well_must_end_well(script: Script, reason: str) -> None:
    """Else a replica that dies in the middle of each answer would never be taken out of use."""

    async def body() -> None:
        limits = replace(LONG, stall_s=0.05)
        async with (
            Upstream(script) as bad,
            Upstream() as good,
            serving(replicas(bad.url, good.url), limits) as r,
        ):
            for _ in range(20):
                reader, writer = await r.connect()
                writer.write(request())
                with suppress(asyncio.IncompleteReadError):
                    await bounded(read_answer(reader))
                writer.close()
            assert len(bad.received) == 5
            told = r.router.report()["replicas"]["a#0"]
            assert (told["state"], told["reason"]) == ("ejected", reason)

    rig.run(body())


def test_a_client_that_leaves_in_the_middle_speaks_for_the_replica() -> None:
    async def body() -> None:
        async with Upstream(begins) as up, Upstream() as good, serving(replicas(up.url, good.url), LONG) as r:
            for _ in range(20):
                reader, writer = await r.connect()
                writer.write(request())
                await bounded(reader.readuntil(b"\r\n\r\n"))
                writer.close()
            assert state(r) == "healthy"
            assert len(up.received) > 5

    rig.run(body())
