"""What a router answers and says while it serves, and while it only ends what is in flight."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.router import rig
from tests.router.processes import launched, status, when
from tests.router.rig import read_answer, request, serving, write_table
from tests.router.upstreams import Received, Upstream, answer, entity, table


def test_a_load_balancer_is_told_whether_it_serves() -> None:
    """Anybody is, with or without tokens, and nothing beyond that."""

    async def body() -> None:
        gate = asyncio.Event()

        async def held(received: Received, writer: asyncio.StreamWriter) -> None:
            await gate.wait()
            writer.write(answer())

        look = request(b"", "/healthz", method="GET")
        keys = rig.keyring(secret={"user_name": "ann", "rights": ["query"]})
        async with Upstream(held) as up, serving(table(entity("a", 100, up.url)), keyring=keys) as r:
            reader, writer = await r.connect()
            for _ in range(2):
                writer.write(look)
                got = await read_answer(reader)
                assert (got.status, got.json(), got.closed) == (200, {"status": "ok"}, False)
                assert set(got.fields) == {"x-request-id", "content-type", "content-length"}
            expecting = request(b"{}", "/healthz", "Expect: 100-continue\r\n", method="GET")
            assert (await rig.ask(r, expecting.removesuffix(b"{}"))).status == 404
            asking, other = await r.connect()
            other.write(request(fields="Authorization: Bearer secret\r\n"))
            await rig.until(lambda: len(up.received) == 1)
            stopping = asyncio.create_task(r.router.stop())
            await asyncio.sleep(0)
            writer.write(look)
            got = await read_answer(reader)
            assert (got.status, got.json(), got.closed) == (503, {"status": "stopping"}, True)
            gate.set()
            assert (await read_answer(asking)).status == 200
            await rig.bounded(stopping)
            writer.close()
            other.close()

    rig.run(body())


@pytest.mark.parametrize("workers", [1, 2])
def test_while_it_drains_it_says_so(tmp_path: Path, workers: int) -> None:
    async def body() -> None:
        held = asyncio.Event()

        async def hold(received: Received, writer: asyncio.StreamWriter) -> None:
            await asyncio.wait_for(held.wait(), 10)
            writer.write(answer())

        async with Upstream(hold) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url), entity("b", 0, up.url)))
            with launched(tmp_path, workers=workers, drain_s=20) as router:
                serving = status(tmp_path)
                assert (serving["draining"], serving["inflight"]) == (False, 0)
                reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
                writer.write(request())
                await rig.until(lambda: len(up.received) == 1)
                router.process.send_signal(signal.SIGTERM)
                told = await when(tmp_path, lambda found: found["draining"])
                assert told["inflight"] == 1
                assert "draining" in {worker["state"] for worker in told["workers"]}
                assert "ready" not in {worker["state"] for worker in told["workers"]}
                held.set()
                assert (await read_answer(reader)).status == 200
                writer.close()
                await asyncio.to_thread(router.wait)
                assert router.said == "servestate: stopping: 1 request in flight, at most 20 s\n"

    rig.run(body())
