"""Probes of replicas, against servers that flip, dawdle, break the protocol, come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from servestate.planner.table import Backend, EntityRoute, RoutingTable
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router.balance.health import HEALTH, Health, Trial
from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.balance.prober import Prober
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routing import LiveTable, Registry
from tests.router import rig
from tests.router.rig import run, until
from tests.router.upstreams import Received, Script, Upstream, answer, chunk, hangs, hangs_up, says, table

QUICK = HealthPolicy(interval_s=0.05, timeout_s=0.1, ejection_s=10.0)
WELL = says(answer(b"ok"))
ILL = says(answer(b"no", "503 Service Unavailable"))
SECRETS = {"SERVESTATE_SECRET_S__K": "s3cret"}


def of(*upstreams: Upstream, health: str = "/health", key: str = "", version: int = 1) -> RoutingTable:
    backends = tuple(Backend(f"chat@abc#{u.port}", u.url, key, health) for u in upstreams)
    return table(EntityRoute("chat", 100, "model", "", False, backends), version=version)


class Probing:
    """A prober over a table that a test may change."""

    def __init__(self, routes: RoutingTable, policy: HealthPolicy) -> None:
        self._registry = Registry(Limits(health=policy), EnvSecrets(SECRETS), 0)
        self.ejections: Counter[tuple[str, str, str]] = Counter()
        self.table: LiveTable
        self.install(routes)
        self.prober = Prober(lambda: self.table, policy, self._ejected)

    def install(self, routes: RoutingTable) -> None:
        self.table = self._registry.admit(routes)

    def health(self, upstream: Upstream) -> Health:
        return self._registry.gauges[f"chat@abc#{upstream.port}"].health

    def close(self) -> None:
        for origin in self._registry.origins.values():
            origin.retire()

    def _ejected(self, *where: str) -> None:
        self.ejections[where] += 1  # type: ignore[index]


@asynccontextmanager
async def probing(routes: RoutingTable, policy: HealthPolicy = QUICK) -> AsyncIterator[Probing]:
    made = Probing(routes, policy)
    made.prober.start(asyncio.get_running_loop())
    try:
        yield made
    finally:
        made.prober.stop()
        made.close()
        await asyncio.sleep(0)


async def asked(upstream: Upstream, more: int) -> None:
    """Wait until so many more probes have been answered: each next one is sent only then."""
    enough = len(upstream.received) + more
    await until(lambda: len(upstream.received) > enough)


def test_a_server_that_flips_is_ejected_and_comes_back_for_a_trial() -> None:
    async def body() -> None:
        async with Upstream(WELL) as upstream, probing(of(upstream, key="{{secrets/s/k}}")) as p:
            await asked(upstream, 3)
            assert p.health(upstream).well
            first = upstream.received[0]
            assert (first.method, first.target, first.body) == ("GET", "/health", b"")
            assert dict(first.fields) == {
                "host": f"127.0.0.1:{upstream.port}",
                "authorization": "Bearer s3cret",
            }
            upstream.script = ILL
            await until(lambda: not p.health(upstream).well)
            assert p.ejections == {("chat-ep", "chat", HEALTH): 1}
            assert p.health(upstream).report(asyncio.get_running_loop().time())["reason"] == HEALTH
            until_when = p.health(upstream).closed_until
            await asked(upstream, 4)  # for as long as they fail it is put off
            assert p.health(upstream).closed_until >= until_when + 3 * QUICK.interval_s
            upstream.script = WELL
            await until(lambda: p.health(upstream).closed_until <= asyncio.get_running_loop().time())
            chat = p.table.endpoints["chat-ep"].by_name["chat"]
            assert chat.choose((), asyncio.get_running_loop().time()) is chat.backends[0]
            assert isinstance(p.health(upstream).state, Trial)
            assert p.ejections.total() == 1

    run(body())


def test_one_failure_is_none() -> None:
    async def body() -> None:
        async with Upstream(WELL) as upstream:
            turn = 0

            async def every_other(request: Received, writer: asyncio.StreamWriter) -> None:
                nonlocal turn
                turn += 1
                await (ILL if turn % 2 else WELL)(request, writer)

            upstream.script = every_other
            async with probing(of(upstream)) as p:
                await asked(upstream, 8)
                assert p.health(upstream).well

    run(body())


@pytest.mark.parametrize(
    "script",
    [
        hangs_up,
        says(b"SSH-2.0-OpenSSH\r\n"),
        says(answer(b"", "302 Found", "Location: /login\r\n")),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok"),
        says(b"HTTP/1.1 500 Oh\r\n\r\n" + b"x" * 100_000),
    ],
    ids=["hangs up", "no HTTP", "redirect", "surplus", "endless"],
)
def test_what_is_no_good_answer(script: Script) -> None:
    async def body() -> None:
        async with Upstream(script) as upstream, probing(of(upstream)) as p:
            await until(lambda: not p.health(upstream).well)
            assert len(upstream.received) == 2
            assert p.health(upstream).state.reason == HEALTH  # type: ignore[union-attr]

    run(body())


@pytest.mark.parametrize(
    "data",
    [
        answer(b"", "204 No Content").replace(b"Content-Length: 0\r\n", b""),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"ok") + chunk(b"ok") + b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
        answer(b"ok", fields="Connection: close\r\n"),
    ],
    ids=["no content", "chunks", "large", "close"],
)
def test_what_is_a_good_answer(data: bytes) -> None:
    async def body() -> None:
        async with Upstream(ILL) as upstream, probing(of(upstream)) as p:
            await until(lambda: not p.health(upstream).well)
            upstream.script = says(data)
            await until(lambda: p.health(upstream).closed_until <= asyncio.get_running_loop().time())

    run(body())


def test_a_dead_server_is_found_and_found_again() -> None:
    async def body() -> None:
        async with Upstream(WELL) as upstream:
            routes = of(upstream)
        async with probing(routes) as p:
            await until(lambda: not p.health(upstream).well)
            assert p.ejections.total() == 1

    run(body())


def test_a_slow_server_is_ejected_only_the_third_time_in_a_row() -> None:
    async def body() -> None:
        patient = replace(QUICK, timeout_s=0.25)
        found: list[bool] = []  # whether the replica was well when a probe arrived

        async with Upstream() as upstream, probing(of(upstream), patient) as p:

            async def slow_but_for_the_third(request: Received, writer: asyncio.StreamWriter) -> None:
                found.append(p.health(upstream).well)
                await (WELL if len(found) == 3 else hangs)(request, writer)

            upstream.script = slow_but_for_the_third
            await until(lambda: not p.health(upstream).well)
            assert found[:6] == [True] * 6
            assert True not in found[6:]
            await until(lambda: upstream.open <= 2)  # a probe that is late is taken back

    run(body())


def test_new_replicas_are_asked_gone_ones_are_not_and_what_is_known_stays() -> None:
    async def body() -> None:
        async with Upstream(ILL) as one, Upstream(WELL) as two, probing(of(one)) as p:
            await until(lambda: not p.health(one).well)
            loop = asyncio.get_running_loop()
            p.install(of(one, two, version=2))
            began = loop.time()
            await until(lambda: bool(two.received))
            assert loop.time() - began < QUICK.interval_s + 0.3  # for a machine that is busy
            assert not p.health(one).well
            p.install(of(two, version=3))
            await asked(two, 1)
            count = len(one.received)
            await asked(two, 4)
            assert len(one.received) == count
            assert p.ejections.total() == 1

    run(body())


def test_probes_keep_their_interval() -> None:
    async def body() -> None:
        async with Upstream(WELL) as upstream:
            loop = asyncio.get_running_loop()
            async with probing(of(upstream)):
                began = loop.time()
                await until(lambda: len(upstream.received) >= 12)
                assert loop.time() - began >= 10 * QUICK.interval_s
            count = await rig.settled(lambda: len(upstream.received), QUICK.interval_s * 3)
            assert count <= 14, "one more may have been under way"

    run(body())


def test_without_a_path_nothing_is_sent_and_nothing_is_done() -> None:
    async def body() -> None:
        calls = 0

        def counted(look: Callable[[], LiveTable]) -> Callable[[], LiveTable]:
            def table_in_use() -> LiveTable:
                nonlocal calls
                calls += 1
                return look()

            return table_in_use

        async with Upstream(WELL) as upstream, probing(of(upstream, health="")) as p:
            p.prober._table = counted(p.prober._table)
            tasks = len(asyncio.all_tasks())
            loop = asyncio.get_running_loop()
            began = loop.time()
            await asyncio.sleep(QUICK.interval_s * 4)
            assert not upstream.connections
            assert not p.prober._watched
            assert len(asyncio.all_tasks()) == tasks
            assert 0 < calls <= 1 + (loop.time() - began) / (QUICK.interval_s / 5)

    run(body())


def test_a_prober_that_is_stopped_leaves_nothing() -> None:
    async def body() -> None:
        async with Upstream(hangs) as upstream, probing(of(upstream)) as p:
            await until(lambda: bool(upstream.received))
            p.prober.stop()
            await until(lambda: upstream.open == 0)
            count = upstream.connections
            await asyncio.sleep(QUICK.interval_s * 3)
            assert upstream.connections == count

    run(body())
