"""The check for what is left of requests, which many tests end with: it sees each kind of it."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from servestate.runtime.router.http.upstream import Exchange, TcpOrigin
from tests.router import rig
from tests.router.leftovers import nothing_is_left
from tests.router.rig import QUICK, Rig, ask, request, serving
from tests.router.upstreams import Gate, Upstream, deaf, entity, table


async def is_seen(r: Rig, *upstreams: Upstream) -> None:
    with pytest.raises(AssertionError, match="did not happen"):
        await nothing_is_left(r, *upstreams, within=0.1)


def test_the_check_notices_a_request_under_way() -> None:
    async def body() -> None:
        gate = Gate()
        async with Upstream(gate) as up, serving(table(entity("a", 100, up.url))) as r:
            asking = asyncio.create_task(ask(r, request()))
            await rig.until(lambda: len(up.received) == 1)
            await is_seen(r, up)
            gate.open()
            await asking
            await nothing_is_left(r, up)

    rig.run(body())


def test_the_check_notices_a_client_that_is_still_connected() -> None:
    async def body() -> None:
        async with serving(table(entity("a", 100))) as r:
            _, writer = await r.connect()
            await rig.until(lambda: len(r.router.desk.clients) == 1)
            await is_seen(r)
            writer.close()
            await nothing_is_left(r)

    rig.run(body())


def test_the_check_notices_a_connection_that_no_pool_has() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            assert (await ask(r, request())).status == 200
            await nothing_is_left(r, up)
            _, writer = await r.connect(up.port)
            await rig.until(lambda: up.open == 2)
            await is_seen(r, up)
            writer.close()
            await nothing_is_left(r, up)

    rig.run(body())


def test_the_check_notices_a_task() -> None:
    async def body() -> None:
        async with serving(table(entity("a", 100))) as r:
            with deaf() as url:
                origin = TcpOrigin("127.0.0.1", int(url.rpartition(":")[2]), False, QUICK)
                nobody = cast(Exchange, None)  # never called: the connection is never made
                dialling = origin.dial(nobody, asyncio.get_running_loop())
                await is_seen(r)
                dialling.cancel()
                await nothing_is_left(r)

    rig.run(body())
