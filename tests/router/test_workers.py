"""Several workers: one port, exact splits and limits, tables for all, and what happens when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.address import parse_instance
from servestate.planner.table import Limit
from servestate.providers.protocol import TransientError
from servestate.runtime.keyring import write_keyring
from servestate.runtime.router_link import ControlSocket, router_status
from tests.router import rig
from tests.router.processes import PROGRAM, Process, control, launched, load, status, when
from tests.router.rig import Answer, bearer, bounded, keyring, read_answer, request, write_table
from tests.router.upstreams import Received, Upstream, answer, entity, table


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(port: int, data: bytes = b"") -> Answer:
    """One request on a connection of its own."""
    reader, writer = await connect(port)
    writer.write(data or request())
    try:
        return await bounded(read_answer(reader))
    finally:
        writer.close()


def workers_of(router: Process) -> list[int]:
    return [worker["pid"] for worker in status(router.folder)["workers"]]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_two_workers_are_one_router(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            split = table(entity("a", 90, up.url), entity("b", 10, up.url))
            write_table(tmp_path / "table.json", split)
            with launched(tmp_path, workers=2) as router:
                async with load(router.port, clients=16, reuse=3) as ledger:
                    while ledger.statuses[200] < 2000:
                        await asyncio.sleep(0.01)
                told = await asyncio.to_thread(status, tmp_path)
                entities = told["endpoints"]["chat-ep"]["entities"]
                called = sum(ledger.entities.values())
                assert ledger.statuses.keys() == {200}
                assert abs(entities["a"]["assigned"] - 0.9 * called) <= 1
                assert entities["a"]["assigned"] + entities["b"]["assigned"] == called
                assert (entities["a"]["weight"], told["table_version"]) == (90, 1)
                assert told["pid"] == router.pid
                pids = {worker["pid"] for worker in told["workers"]}
                assert len(pids) == 2
                assert router.pid not in pids
                exposed = control(tmp_path, "/metrics").decode()
                lines = [
                    line
                    for line in exposed.splitlines()
                    if line.startswith("servestate_split_assigned_total")
                ]
                assert sum(int(line.rpartition(" ")[2]) for line in lines) == called
                assert router.end() == 0
            assert not any(map(is_alive, pids))
            assert {path.name for path in tmp_path.iterdir()} <= {"table.json", "table.json.last-good"}

    rig.run(body())


@pytest.mark.slow
def test_metrics_are_those_of_all_workers_whichever_is_asked_and_never_fall(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=2, managed=True) as router:
                port = int((await asyncio.to_thread(status, tmp_path))["management"].rsplit(":", 1)[1])
                for _ in range(40):
                    assert (await ask(router.port)).status == 200
                assert {await requests(port) for _ in range(12)} == {40}
                os.kill(workers_of(router)[0], signal.SIGKILL)
                await when(tmp_path, lambda told: all_ready(told, 2))
                assert {await requests(port) for _ in range(12)} == {40}
                assert (await ask(router.port)).status == 200
                assert await requests(port) == 41
                write_table(tmp_path / "table.json", table(entity("b", 100, up.url), version=2))
                await when(tmp_path, lambda told: told["table_version"] == 2)
                assert 'entity="a"' not in control(tmp_path, "/metrics").decode()

    rig.run(body())


async def requests(port: int) -> int:
    """How many requests the metrics tell of, at the management listener."""
    exposed = await ask(port, request(b"", target="/metrics", method="GET"))
    assert exposed.status == 200
    lines = exposed.body.decode().splitlines()
    return sum(int(one.rpartition(" ")[2]) for one in lines if one.startswith("servestate_requests_total"))


@pytest.mark.slow
def test_limits_hold_over_all_workers_and_over_their_deaths(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            limited = table(entity("a", 100, up.url), limits=(Limit("endpoint", "", 200),))
            write_table(tmp_path / "table.json", limited)
            with launched(tmp_path, workers=2) as router:
                async with load(router.port, clients=16, reuse=3) as ledger:
                    while ledger.statuses[200] < 100:
                        await asyncio.sleep(0.002)
                    os.kill(workers_of(router)[0], signal.SIGKILL)
                    while ledger.statuses[429] < 500:
                        await asyncio.sleep(0.002)
                # What was admitted and then killed had been counted before it was sent.
                assert 200 - len(ledger.broken) <= ledger.statuses[200] <= 200
                assert len(up.received) <= 200

    rig.run(body())


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_no_other_connection_suffers(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            split = table(entity("a", 90, up.url), entity("b", 10, up.url))
            write_table(tmp_path / "table.json", split)
            with launched(tmp_path, workers=2) as router:
                for index in (0, 1):
                    before = await when(tmp_path, lambda told: all_ready(told, 2))
                    async with load(router.port, clients=16, reuse=5) as ledger:
                        await asyncio.sleep(0.3)
                        victim = before["workers"][index]["pid"]
                        broken = len(ledger.broken)
                        os.kill(victim, signal.SIGKILL)
                        killed = time.monotonic()
                        after = await when(tmp_path, lambda told, v=victim: all_ready(told, 2, v))
                        assert time.monotonic() - killed < 1.5  # 1 s, and the machine's other work
                        await asyncio.sleep(0.5)
                    assert after["workers"][1 - index]["pid"] == before["workers"][1 - index]["pid"]
                    assert (broken, ledger.refused, set(ledger.statuses)) == (0, [], {200})
                    # Each of the 16 clients had at most one connection with the worker that died.
                    assert len(ledger.broken) <= 16
                    assert ledger.slowest < 1.5
                    called = sum(ledger.entities.values())
                    assert abs(ledger.entities["a"] - 0.9 * called) <= 1 + len(ledger.broken)

    rig.run(body())


def all_ready(told: dict, count: int, but: int = 0) -> bool:
    found = told["workers"]
    return len(found) == count and all(w["state"] == "ready" and w["pid"] != but for w in found)


@pytest.mark.slow
def test_what_queued_for_a_killed_worker_is_answered_by_the_next(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=2) as router:
                victim = workers_of(router)[0]
                os.kill(victim, signal.SIGSTOP)  # so that its queue fills
                calls = [asyncio.create_task(ask(router.port)) for _ in range(40)]
                done, waiting = await asyncio.wait(calls, timeout=0.5)
                assert done, "the other worker answers"
                assert waiting, "nobody queued: nothing is shown"
                os.kill(victim, signal.SIGKILL)
                answers = [await call for call in calls]
                assert {a.status for a in answers} == {200}

    rig.run(body())


LISTENER = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_without_somebody_who_holds_the_socket_its_queue_dies_with_its_process() -> None:
    """The negative control: what the workers' parent is for."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as alone:
        assert alone.stdout is not None
        port = int(alone.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as queued:
            queued.sendall(request())
            alone.kill()
            alone.wait()
            with pytest.raises(ConnectionResetError):
                queued.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.slow
def test_no_more_requests_are_under_way_than_all_workers_may_have(tmp_path: Path) -> None:
    async def body() -> None:
        gate = asyncio.Event()

        async def held(received: Received, writer: asyncio.StreamWriter) -> None:
            await gate.wait()
            writer.write(answer())

        async with Upstream(held) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=3, bound=4) as router:
                calls = [asyncio.create_task(ask(router.port)) for _ in range(40)]
                await rig.until(lambda: sum(call.done() for call in calls) + len(up.received) == 40)
                running = len(up.received)
                gate.set()
                found = Counter([(await call).status for call in calls])
        assert running == 4  # 2, 1 and 1: with 40 connections each of the three has more than its part
        assert found == {200: 4, 503: 36}

    rig.run(body())


@pytest.mark.slow
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1")))
    with launched(tmp_path, workers=2) as router:
        pids = workers_of(router)
        router.process.kill()
        router.process.wait()
        end = time.monotonic() + 2
        while any(map(is_alive, pids)):
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", router.port))


@pytest.mark.slow
def test_signals_to_the_whole_group_end_it_in_order(tmp_path: Path) -> None:
    """As service supervisors send them: to every process at once."""

    async def body() -> None:
        gate = asyncio.Event()

        async def held(received: Received, writer: asyncio.StreamWriter) -> None:
            await gate.wait()
            writer.write(answer())

        async with Upstream(held) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=2) as router:
                calls = [asyncio.create_task(ask(router.port)) for _ in range(8)]
                await rig.until(lambda: len(up.received) == 8)
                for pid in (*workers_of(router), router.pid):
                    os.kill(pid, signal.SIGTERM)
                await asyncio.sleep(0.2)
                gate.set()
                answers = [await call for call in calls]
                assert {(a.status, a.fields["connection"]) for a in answers} == {(200, "close")}
                assert await asyncio.to_thread(router.wait) == 0

    rig.run(body())


@pytest.mark.slow
def test_a_worker_that_keeps_dying_is_started_ever_later_and_holds_nobody_up(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            a = entity("a", 100, up.url)
            write_table(tmp_path / "table.json", table(a))
            with launched(tmp_path, workers=2) as router:
                for _ in range(2):
                    await when(tmp_path, lambda told: all_ready(told, 2))
                    os.kill(workers_of(router)[0], signal.SIGKILL)
                down = await when(tmp_path, lambda told: told["workers"][0]["state"] == "down")
                assert down["workers"][1]["state"] == "ready"
                # Whatever is applied meanwhile: the next one reads it at its start.
                write_table(tmp_path / "table.json", table(a, version=2))
                link = ControlSocket(tmp_path / "control.sock")
                await bounded(link.adopted(2), 1)
                reports: list[str] = []
                await link.drained(parse_instance("chat-ep/a@0123456789#0"), 1, reports.append)
                assert reports == []
                after = await when(tmp_path, lambda told: all_ready(told, 2))
                assert after["table_version"] == 2
                assert router.end() == 0
                assert "it is replaced at once" in router.said
                assert "it is replaced in" in router.said

    rig.run(body())


@pytest.mark.slow
def test_nothing_counts_as_adopted_or_drained_while_a_worker_is_silent(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as up:
            a = entity("a", 100, up.url)
            write_table(tmp_path / "table.json", table(a))
            with launched(tmp_path, workers=2) as router:
                link = ControlSocket(tmp_path / "control.sock")
                paused = workers_of(router)[1]
                os.kill(paused, signal.SIGSTOP)
                try:
                    write_table(tmp_path / "table.json", table(a, version=2))
                    with pytest.raises(TransientError):
                        await router_status(tmp_path / "control.sock")
                    adopting = asyncio.create_task(link.adopted(2))
                    reports: list[str] = []
                    await link.drained(parse_instance("chat-ep/a@0123456789#0"), 2, reports.append)
                    assert "does not answer" in reports[0]
                    assert not adopting.done()
                finally:
                    os.kill(paused, signal.SIGCONT)
                await bounded(adopting, 3)

    rig.run(body())


@pytest.mark.slow
def test_workers_do_not_write_over_each_others_copies_of_the_table(tmp_path: Path) -> None:
    """They adopt a table, and keep its copy, at about the same moment."""
    write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1")))
    with launched(tmp_path, workers=4):
        for version in range(2, 42):
            write_table(
                tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1"), version=version)
            )
            told = status_until(tmp_path, version)
            assert told["table_copy_error"] is None, version
    assert not list(tmp_path.glob("*.part"))


def status_until(folder: Path, version: int) -> dict:
    end = time.monotonic() + 10
    while (told := status(folder))["table_version"] != version:
        assert time.monotonic() < end
        time.sleep(0.005)
    return told


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1")))
        with launched(tmp_path, workers=2) as router:
            hung = workers_of(router)[1]
            os.kill(hung, signal.SIGSTOP)
            await when(tmp_path, lambda told: all_ready(told, 2, hung), within_s=25)

    rig.run(body())


_HANGS = """
import os, sys, time
where = os.environ["HANGS"]
told = open(where).read() if os.path.exists(where) else ""
if told and "servestate.runtime.router.process.worker" in sys.orig_argv:
    if told == "at once":
        time.sleep(600)
    from servestate.runtime.router.process.server import Router
    async def hang(self, sockets):
        time.sleep(600)
    Router.start = hang
"""
"""A worker that starts hangs `at once`, or `last` when it should begin; as that file says."""


def hanging(folder: Path, when: str = "") -> dict[str, str]:
    """The environment of a router whose workers hang when they start."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_HANGS)
    (folder / "hangs").write_text(when)
    return {"PYTHONPATH": str(folder / "site"), "HANGS": str(folder / "hangs")}


@pytest.mark.slow
@pytest.mark.parametrize("when_it_hangs", ["at once", "last"])
def test_a_worker_that_hangs_at_its_start_is_killed_and_started_again(
    tmp_path: Path, when_it_hangs: str
) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1")))
        with launched(tmp_path, hanging(tmp_path), workers=2, worker_start_s=3) as router:
            first = workers_of(router)[0]
            (tmp_path / "hangs").write_text(when_it_hangs)
            os.kill(first, signal.SIGKILL)
            await when(tmp_path, lambda told: told["workers"][0]["state"] == "down", within_s=15)
            (tmp_path / "hangs").write_text("")
            await when(tmp_path, lambda told: all_ready(told, 2, first), within_s=15)
            assert router.end() == 0
            assert "was killed: it was not ready within 3 s; it is replaced in" in router.said

    rig.run(body())


@pytest.mark.slow
@pytest.mark.parametrize("when_it_hangs", ["at once", "last"])
def test_the_end_does_not_wait_for_a_worker_that_hangs_at_its_start(
    tmp_path: Path, when_it_hangs: str
) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1")))
    with launched(tmp_path, hanging(tmp_path), workers=2, drain_s=1) as router:
        first, other = workers_of(router)
        (tmp_path / "hangs").write_text(when_it_hangs)
        os.kill(first, signal.SIGKILL)
        time.sleep(2)
        began = time.monotonic()
        assert router.end() == 0
        assert time.monotonic() - began < 1 + 5 + 2  # drain_s, the overtime, the machine's other work
        assert not is_alive(other)


@pytest.mark.slow
@pytest.mark.parametrize("when_it_hangs", ["at once", "last"])
def test_a_router_whose_workers_hang_does_not_start_and_can_be_ended(
    tmp_path: Path, when_it_hangs: str
) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100, "http://127.0.0.1:1")))
    environ = {**os.environ, **hanging(tmp_path, when_it_hangs)}
    for wait_s, code, said in ((2, 1, "it was killed: it was not ready within 2 s"), (60, 0, "")):
        given = json.dumps({"workers": 2, "worker_start_s": wait_s, "drain_s": 1})
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        ) as router:
            if not code:
                time.sleep(3)
                router.send_signal(signal.SIGTERM)
            out, err = router.communicate(timeout=20)
        assert (router.returncode, out) == (code, "")
        assert said in err
        assert not list(tmp_path.glob("control*"))


@pytest.mark.slow
def test_a_hundred_changes_reach_every_worker(tmp_path: Path) -> None:
    """Tables, limits and tokens: two seconds after a change nobody goes by what was before."""

    async def body() -> None:
        async with Upstream() as up:
            a, b = entity("a", 100, up.url), entity("b", 0, up.url)
            keys = tmp_path / "access.json"
            owner = {"user_name": "u", "rights": ["query"]}
            write_table(tmp_path / "table.json", table(a, b))
            write_keyring(keys, keyring(t0=owner))
            with launched(tmp_path, workers=2, keyring=str(keys)) as router:
                connections = [await connect(router.port) for _ in range(12)]

                async def all_of(token: str) -> set[tuple[int, str]]:
                    for _, writer in connections:
                        writer.write(request(fields=bearer(token)))
                    answers = [await bounded(read_answer(reader)) for reader, _ in connections]
                    return {(a.status, a.fields.get("served-model-name", "")) for a in answers}

                slowest = 0.0
                for version in range(2, 102):
                    turned = version % 2
                    shares = replace(a, weight=100 * turned), replace(b, weight=100 - 100 * turned)
                    new = table(*shares, version=version)
                    token, wanted = f"t{version // 10}", {(200, "a" if turned else "b")}
                    if version % 25 == 0:
                        new = table(*shares, version=version, limits=(Limit("endpoint", "", 1),))
                    write_table(tmp_path / "table.json", new)
                    write_keyring(keys, keyring(**{token: owner}))
                    began = time.monotonic()
                    found: set[tuple[int, str]] = set()
                    while found != wanted and not (version % 25 == 0 and found == {(429, "")}):
                        found = await all_of(token)
                        assert time.monotonic() - began < 2, (version, found, wanted)
                    slowest = max(slowest, time.monotonic() - began)
                    if version % 10 == 0:
                        assert await all_of(f"t{version // 10 - 1}") == {(401, "")}
                for _, writer in connections:
                    writer.close()
                assert slowest < 2

    rig.run(body())


@pytest.mark.slow
def test_a_hundred_tables_under_load_fail_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with Upstream() as one, Upstream() as two:
            write_table(tmp_path / "table.json", table(entity("a", 100, one.url)))
            with launched(tmp_path, workers=2) as router:
                async with load(router.port, clients=8, reuse=50) as ledger:
                    for version in range(2, 102):
                        url = (one.url, two.url)[version % 2]
                        a, b = entity("a", version % 100, url), entity("b", 100 - version % 100, url)
                        write_table(tmp_path / "table.json", table(a, b, version=version, config=version))
                        await when(tmp_path, lambda told, v=version: told["table_version"] == v)
                assert (ledger.refused, ledger.broken, set(ledger.statuses)) == ([], [], {200})
                assert ledger.statuses[200] > 500

    rig.run(body())


@contextlib.contextmanager
def refused(folder: Path, workers: int) -> Iterator[str]:
    """What a router says that does not start."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), f'{{"workers": {workers}}}'],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode
    assert not ended.stdout
    yield ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_it_starts_again_without_anybody_who_writes_tables(tmp_path: Path, workers: int) -> None:
    """No controller and no store anywhere: the last good table serves, also when the newest is damaged."""

    async def body() -> None:
        async with Upstream() as up:
            path = tmp_path / "table.json"
            write_table(path, table(entity("a", 100, up.url), version=7))
            damages = [
                (lambda: None, ""),
                (lambda: path.write_text("{torn"), "not JSON"),
                (path.unlink, "No such"),
            ]
            for damage, error in damages:
                damage()
                with launched(tmp_path, workers=workers) as router:
                    assert (await ask(router.port)).status == 200
                    told = await asyncio.to_thread(status, tmp_path)
                    assert told["table_version"] == 7
                    assert error in (told["table_error"] or "")
                    assert bool(told["table_error"]) == bool(error)
                    assert await asyncio.to_thread(router.end) == 0
            (tmp_path / "table.json.last-good").unlink()
            with refused(tmp_path, workers) as said:
                assert "SS602 no routing table can be served" in said
                assert "No such file" in said
                assert "servestate apply" in said

    rig.run(body())
