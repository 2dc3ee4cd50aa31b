"""A router that is replaced by another: nothing is refused, nothing breaks, no shared count is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.table import Limit
from servestate.runtime.router.process.handover import path_beside, predecessor_of
from servestate.runtime.router.process.listen import Sockets
from servestate.runtime.router.process.merging import NOTHING
from servestate.runtime.router.process.server import Router
from servestate.runtime.router_link import ControlSocket
from tests.router import rig
from tests.router.processes import PROGRAM, Process, ask, connect, control, launched, load, status, when
from tests.router.rig import bounded, chat, config, request, write_table
from tests.router.upstreams import DONE, EVENT, Gate, Upstream, entity, sse_head, table


@asynccontextmanager
async def successor(
    folder: Path, after_s: float = 0.0, *, replace: bool = True, **given: Any
) -> AsyncIterator[asyncio.Task[Process]]:
    """A router that takes over, or without `replace` just starts, while the loop goes on; the task is done
    once it has."""
    router = launched(folder, replace=replace, **given)

    async def start() -> Process:
        await asyncio.sleep(after_s)
        return await asyncio.to_thread(router.__enter__)

    starting = asyncio.create_task(start())
    try:
        yield starting
    finally:
        await asyncio.wait([starting])
        if starting.exception() is None:
            await asyncio.to_thread(router.__exit__, None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (3, 1)])
def test_nothing_is_refused_and_nothing_breaks(tmp_path: Path, before: int, after: int) -> None:
    async def body() -> None:
        async with Upstream() as up:
            split = table(entity("a", 90, up.url), entity("b", 10, up.url))
            write_table(tmp_path / "table.json", split)
            with launched(tmp_path, workers=before) as old:
                assert old.line() == "alone"
                async with (
                    successor(tmp_path, 0.3, workers=after) as taking_over,
                    load(old.port, clients=12, reuse=10) as ledger,
                ):
                    new = await taking_over
                    assert new.url == old.url
                    assert await asyncio.to_thread(old.wait) == 0
                    assert f"replaced by the router with pid {new.pid}" in old.said
                    assert await asyncio.to_thread(new.line) == "alone"
                    seen = ledger.statuses[200]
                    await rig.until(lambda: ledger.statuses[200] > seen + 100)
                    told = await asyncio.to_thread(status, tmp_path)
                    assert (told["pid"], len(told["workers"])) == (new.pid, after)
                assert ledger.failures() == []
                if before > 1:  # what several share goes on where it stood
                    called = sum(ledger.entities.values())
                    assert abs(ledger.entities["a"] - 0.9 * called) <= 1

    rig.run(body())


@pytest.mark.slow
def test_the_check_notices_a_router_that_ends_before_the_next_one_begins(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path) as old:
                async with load(old.port, clients=12, reuse=10) as ledger:
                    await rig.until(lambda: ledger.statuses[200] > 0)
                    assert await asyncio.to_thread(old.end) == 0
                    seen = ledger.statuses[200]
                    async with successor(tmp_path, replace=False, port=old.port) as starting:
                        await starting
                        await rig.until(lambda: ledger.statuses[200] > seen)
                        assert ledger.refused
                        assert ledger.failures()

    rig.run(body())


@pytest.mark.slow
def test_limits_go_on_where_they_stood(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            limited = table(entity("a", 100, up.url), limits=(Limit("endpoint", "", 20),))
            write_table(tmp_path / "table.json", limited)
            with launched(tmp_path, workers=2) as old:
                assert [(await ask(old.port)).status for _ in range(15)] == [200] * 15
                async with successor(tmp_path, workers=2) as taking_over:
                    new = await taking_over
                    assert await asyncio.to_thread(old.wait) == 0
                    found = [(await ask(new.port)).status for _ in range(10)]
                    assert found == [200] * 5 + [429] * 5

    rig.run(body())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_that_is_running_ends_whole_and_counts_until_then(tmp_path: Path, workers: int) -> None:
    async def body() -> None:
        gate = Gate(DONE, begun=sse_head() + EVENT)
        async with Upstream(gate) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=workers) as old:
                reader, writer = await connect(old.port)
                writer.write(request(chat(stream=True)))
                await bounded(reader.readuntil(b'"x"'))
                async with successor(tmp_path, workers=workers) as taking_over:
                    new = await taking_over
                    told = await when(tmp_path, lambda told: told.get("replacing") == old.pid)
                    assert told["pid"] == new.pid
                    assert told["replicas"]["a#0"]["inflight"] == 1
                    # Nothing is adopted before the old one goes by it too, nothing drained that it uses.
                    write_table(tmp_path / "table.json", table(entity("a", 100, up.url), version=2))
                    await bounded(ControlSocket(tmp_path / "control.sock").adopted(2), 3)
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(_drained(tmp_path), 0.5)
                    with pytest.raises(InvalidInput, match="being replaced already"):
                        await asyncio.to_thread(predecessor_of, tmp_path / "control.sock")
                    assert old.process.poll() is None
                    gate.open()
                    rest = await bounded(reader.read())
                    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
                    writer.close()
                    assert await asyncio.to_thread(old.wait) == 0
                    assert await asyncio.to_thread(new.line) == "alone"
                    told = await when(tmp_path, lambda told: "replacing" not in told)
                    assert told["replicas"]["a#0"]["inflight"] == 0

    rig.run(body())


async def _drained(folder: Path) -> None:
    """Return once the router says that nothing runs on the replica of the tests."""
    await when(folder, lambda told: told["replicas"]["a#0"]["inflight"] == 0, within_s=60)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_successor_that_cannot_start_leaves_everything_as_it_was(tmp_path: Path, workers: int) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=workers) as old:
                async with load(old.port, clients=8, reuse=10) as ledger:
                    for _ in range(3):
                        async with successor(tmp_path, workers=workers, tls=["no.pem", "no.pem"]) as failing:
                            with pytest.raises(AssertionError, match="SS640"):
                                await failing
                    told = await asyncio.to_thread(status, tmp_path)
                    assert told["pid"] == old.pid
                    assert "replacing" not in told
                assert ledger.failures() == []
                async with successor(tmp_path, workers=workers) as taking_over:
                    new = await taking_over
                    assert await asyncio.to_thread(old.wait) == 0
                    assert (await ask(new.port)).status == 200

    rig.run(body())


@pytest.mark.slow
def test_it_takes_new_addresses_and_gives_old_ones_up(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=2) as old, socket.create_server(("127.0.0.1", 0)) as probe:
                free = probe.getsockname()[1]
                probe.close()
                async with successor(tmp_path, workers=1, port=free) as taking_over:
                    new = await taking_over
                    assert await asyncio.to_thread(old.wait) == 0
                    assert new.port == free
                    assert (await ask(free)).status == 200
                    with pytest.raises(ConnectionRefusedError):
                        await ask(old.port)

    rig.run(body())


def test_a_successor_that_dies_late_finds_its_place_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had the control socket already: whoever asks there must find the router that serves."""

    async def dies(self: Router, sockets: Sockets) -> None:
        sockets.close()
        raise OSError("at the last moment")

    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100)))
        settings = config(tmp_path)
        old = rig.service(settings)
        await old.start()
        predecessor = await asyncio.to_thread(predecessor_of, settings.control_path)
        monkeypatch.setattr(Router, "start", dies)
        with pytest.raises(OSError, match="at the last moment"):
            await rig.service(settings).start(predecessor)
        monkeypatch.undo()
        told = await when(tmp_path, lambda told: told["pid"] == os.getpid())
        assert told["listen"] == old.url
        again = await asyncio.to_thread(predecessor_of, settings.control_path)
        assert again is not None
        again.leave()
        await old.stop()
        assert not settings.control_path.exists()
        assert not path_beside(settings.control_path).exists()

    rig.run(body())


_DIES_LAST = """
import os, signal
from servestate.runtime.router.process.handover import Predecessor
Predecessor.follow = lambda self: os.kill(os.getpid(), signal.SIGKILL)
"""
"""Once all its sockets are open, before it has said so."""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_successor_that_was_killed_there_can_be_another(tmp_path: Path, workers: int) -> None:
    """It leaves its sockets' files where those of the router that serves were."""

    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=workers) as old:
                given = json.dumps({"workers": workers, "replace": True})
                for _ in range(2):
                    killed = await asyncio.create_subprocess_exec(
                        sys.executable, "-c", _DIES_LAST + PROGRAM, str(tmp_path), given
                    )
                    assert await bounded(killed.wait(), 20) == -signal.SIGKILL
                    told = await when(tmp_path, lambda told: told["pid"] == old.pid)
                    assert "replacing" not in told
                async with successor(tmp_path, workers=workers) as taking_over:
                    new = await taking_over
                    assert await asyncio.to_thread(old.wait) == 0
                    assert (await ask(new.port)).status == 200

    rig.run(body())


def test_a_router_that_is_not_there_for_a_successor_is_not_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100)))
        settings = config(tmp_path)
        router = rig.service(settings)
        await router.start()
        path_beside(settings.control_path).unlink()
        with pytest.raises(InvalidInput, match=r"SS642 .*not there for a successor"):
            await asyncio.to_thread(predecessor_of, settings.control_path)
        await router.stop()

    rig.run(body())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_while_it_drains_it_says_no_more_than_is_asked(tmp_path: Path, workers: int) -> None:
    """It does so many times a second, and everything would be thousands of numbers for many endpoints."""

    async def body() -> None:
        gate = Gate()
        async with Upstream(gate) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url), entity("b", 0, up.url)))
            with launched(tmp_path, workers=workers) as old:
                asking = asyncio.create_task(ask(old.port))
                await rig.until(lambda: len(up.received) == 1)
                predecessor = await asyncio.to_thread(predecessor_of, tmp_path / "control.sock")
                assert predecessor is not None
                await predecessor.follow()
                await rig.until(lambda: predecessor.report is not None)
                asked = json.loads(await asyncio.to_thread(control, tmp_path, "/status?brief"))
                wanted = {"table_version": 1, "table_error": None, "connections": 1, "inflight": 1}
                assert predecessor.report == asked == {**wanted, "replicas": {"a#0": {"inflight": 1}}}
                gate.open()
                assert (await asking).status == 200
                await bounded(predecessor.gone.wait())
                assert predecessor.report == NOTHING
                predecessor.belongings.sockets.close()

    rig.run(body())


def test_without_a_router_that_runs_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    assert predecessor_of(tmp_path / "control.sock") is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path_beside(tmp_path / "control.sock")))
    assert predecessor_of(tmp_path / "control.sock") is None


def test_only_this_user_may_ask(tmp_path: Path) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100)))
        router = rig.service(config(tmp_path))
        await router.start()
        assert path_beside(tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600
        await router.stop()

    rig.run(body())
