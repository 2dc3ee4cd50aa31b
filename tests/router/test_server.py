"""Start and stop: where it listens, what it refuses, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.runtime.router import Router
from tests.router import rig
from tests.router.processes import connect, launched, refuses
from tests.router.rig import (
    QUICK,
    Answer,
    ask,
    chat,
    config,
    read_answer,
    request,
    rest_of,
    serving,
    write_table,
)
from tests.router.upstreams import DONE, EVENT, Gate, Upstream, echo, entity, hangs, sse_head, table


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "", "127.0.0.1.evil"])
def test_it_never_listens_off_loopback(tmp_path: Path, host: str) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100)))
    with pytest.raises(InvalidInput, match="SS601"):
        Router(config(tmp_path, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_loopback_it_listens_on(tmp_path: Path, host: str) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100)))
        router = rig.service(config(tmp_path, host=host))
        await router.start()
        await router.stop()

    rig.run(body())


@pytest.mark.parametrize(
    ("inflight", "workers", "parts"),
    [(10, 4, [3, 3, 2, 2]), (8, 4, [2] * 4), (2, 3, [1] * 3), (7, 1, [7]), (None, 2, [4096, 4096])],
)
def test_a_bound_of_all_is_divided_without_a_rest(
    tmp_path: Path, inflight: int | None, workers: int, parts: list[int]
) -> None:
    bound = config(tmp_path, workers=workers, inflight=inflight)
    assert [bound.share(index).limits.inflight for index in range(workers)] == parts


def test_a_port_that_is_taken_and_a_control_socket_in_use(tmp_path: Path) -> None:
    async def body() -> None:
        write_table(tmp_path / "table.json", table(entity("a", 100)))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(InvalidInput, match="SS603"):
                await rig.service(config(tmp_path, port=taken.getsockname()[1])).start()
        router = rig.service(config(tmp_path))
        await router.start()
        with pytest.raises(InvalidInput, match="SS604"):
            await rig.service(config(tmp_path)).start()
        await router.stop()
        # A file that a killed router left is no obstacle.
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "control.sock"))
        again = rig.service(config(tmp_path))
        await again.start()
        await again.stop()
        assert not (tmp_path / "control.sock").exists()

    rig.run(body())


def test_a_process_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", table(entity("a", 100)))
    with (
        launched(tmp_path, farewell_s=0.1) as router,
        socket.create_connection(("127.0.0.1", router.port)) as sock,
    ):
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert router.end(within_s=10) == 0


def test_stopping_lets_requests_end_and_closes_the_idle() -> None:
    async def body() -> None:
        gate, limits = Gate(), replace(QUICK, farewell_s=0.1)
        async with Upstream(gate) as up, serving(table(entity("a", 100, up.url)), limits) as r:
            idle_reader, idle_writer = await r.connect()
            reader, writer = await r.connect()
            writer.write(request())
            await rig.until(lambda: len(up.received) == 1)
            stopping = asyncio.create_task(r.router.stop())
            assert await rig.bounded(idle_reader.read()) == b""
            with pytest.raises(OSError):  # noqa: PT011 - refused or reset
                await r.connect()
            gate.open()
            got = await read_answer(reader)
            assert (got.status, got.fields["connection"]) == (200, "close")
            writer.close()
            idle_writer.close()
            await rig.bounded(stopping)

    rig.run(body())


def test_who_was_accepted_as_it_stops_is_answered() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), QUICK) as r:
            with socket.create_connection(("127.0.0.1", r.port)) as sock:
                sock.sendall(request())
                # The loop accepts in the turn in which it begins to stop, and hands out in the next.
                await asyncio.create_task(r.router.stop())
                sock.settimeout(5)
                got = sock.recv(100)
            assert got.startswith(b"HTTP/1.1 200 OK")
            assert len(up.received) == 1

    rig.run(body())


def test_what_came_while_the_loop_was_held_up_is_answered() -> None:
    async def body() -> None:
        limits = replace(QUICK, farewell_s=0.2)
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
            reader, writer = await r.connect()
            stopping = asyncio.create_task(r.router.stop())
            await asyncio.sleep(0.05)
            os.write(writer.get_extra_info("socket").fileno(), request())
            time.sleep(0.4)
            assert (await rig.bounded(read_answer(reader))).status == 200
            writer.close()
            await rig.bounded(stopping)

    rig.run(body())


def test_stopping_does_not_wait_for_ever() -> None:
    async def body() -> None:
        limits = replace(QUICK, drain_s=0.1)
        async with Upstream(hangs) as up, serving(table(entity("a", 100, up.url)), limits) as r:
            running = asyncio.create_task(ask(r, request()))
            await rig.until(lambda: len(up.received) == 1)
            await rig.bounded(r.router.stop(), 3)
            assert (await running).status == 0

    rig.run(body())


def test_slow_clients_meet_their_deadlines() -> None:
    async def body() -> None:
        limits = replace(QUICK, header_s=0.05, idle_s=0.05, body_grace_s=0.05)
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
            for sent, status in ((b"", 0), (b"POST /v1/ch", 400), (request()[:-3], 400)):
                reader, writer = await r.connect()
                writer.write(sent)
                assert (await rig.bounded(read_answer(reader))).status == status, sent
                assert await rig.bounded(reader.read()) == b""
                writer.close()
            reader, writer = await r.connect()
            writer.write(request())
            assert (await read_answer(reader)).status == 200
            assert await rig.bounded(reader.read()) == b""  # idle
            writer.close()
            await rig.until(lambda: not r.router.desk.clients)

    rig.run(body())


def test_too_many_connections_are_told_so() -> None:
    async def body() -> None:
        limits = replace(QUICK, client_sockets=3)
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
            held = [await r.connect() for _ in range(3)]
            await rig.until(lambda: len(r.router.desk.clients) == 3)
            reader, writer = await r.connect()
            got = await read_answer(reader)
            assert (got.status, got.fields["retry-after"]) == (503, "1")
            for _, w in [*held, (reader, writer)]:
                w.close()
            await rig.until(lambda: not r.router.desk.clients)
            assert (await ask(r, request())).status == 200

    rig.run(body())


def test_too_many_requests_under_way_are_told_so() -> None:
    async def body() -> None:
        gate, limits = Gate(), replace(QUICK, inflight=3)
        async with Upstream(gate) as up, serving(table(entity("a", 100, up.url)), limits) as r:
            running = [asyncio.create_task(ask(r, request())) for _ in range(3)]
            await rig.until(lambda: len(up.received) == 3)
            got = await ask(r, request())
            assert (got.status, got.fields["retry-after"]) == (503, "1")
            assert not got.closed, "it may ask again on this connection"
            assert (await ask(r, request(b"", "/v1/models", method="GET"))).status == 200, "no model is asked"
            gate.open()
            assert [(await one).status for one in running] == [200] * 3
            assert (await ask(r, request())).status == 200
            assert len(up.received) == 4

    rig.run(body())


def test_a_client_that_expects_100_gets_it() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            data = request(fields="Expect: 100-continue\r\n")
            reader, writer = await r.connect()
            head_end = data.index(b"\r\n\r\n") + 4
            writer.write(data[:head_end])
            assert (await read_answer(reader)).status == 100
            writer.write(data[head_end:])
            assert (await read_answer(reader)).status == 200
            writer.close()

    rig.run(body())


def test_large_bodies_and_answers_pass_whole() -> None:
    async def body() -> None:
        text = b"x" * 5_000_000
        async with Upstream(echo) as up, serving(table(entity("a", 100, up.url))) as r:
            raw = b'{"messages":[{"content":"%b"}],"model":"chat-ep"}' % text
            got = await rig.bounded(ask(r, request(raw)))
            assert got.body == raw.replace(b"chat-ep", b"engine-model")

    rig.run(body())


async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
    writer.write(request())
    return await rig.bounded(read_answer(reader))


def test_a_request_on_its_way_when_the_end_begins_is_still_answered() -> None:
    """The idle connections of clients that go on calling: none of them meets a closed socket."""

    async def body() -> None:
        limits = replace(QUICK, farewell_s=0.4)
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), limits) as r:
            busy = [await r.connect() for _ in range(4)]
            for reader, writer in busy:
                assert (await served(reader, writer)).status == 200
            silent, silent_writer = await r.connect()
            stopping = asyncio.create_task(r.router.stop())
            await asyncio.sleep(0.1)
            for reader, writer in busy:
                got = await served(reader, writer)
                assert (got.status, got.fields["connection"]) == (200, "close")
                assert await rig.bounded(reader.read()) == b""
                writer.close()
            assert not stopping.done()
            assert await rig.bounded(silent.read()) == b""
            silent_writer.close()
            await rig.bounded(stopping)

    rig.run(body())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_ends_whole_before_the_process_does(tmp_path: Path, workers: int) -> None:
    async def body() -> None:
        gate = Gate(DONE, begun=sse_head() + EVENT)
        async with Upstream(gate) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            for signals in (1, 2):
                gate.opened.clear()
                with launched(tmp_path, workers=workers) as router:
                    reader, writer = await connect(router.port)
                    writer.write(request(chat(stream=True)))
                    await rig.bounded(reader.readuntil(b'"x"'))
                    router.process.send_signal(signal.SIGTERM)
                    await refuses(router.port)
                    with pytest.raises(ConnectionRefusedError):
                        await connect(router.port)
                    assert router.process.poll() is None
                    if signals == 1:
                        gate.open()
                        assert (await rig.bounded(reader.read())).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
                    else:  # at once
                        router.process.send_signal(signal.SIGTERM)
                        assert b"[DONE]" not in await rig.bounded(rest_of(reader), 2)
                    writer.close()
                    assert await asyncio.to_thread(router.wait, 3) == 0

    rig.run(body())
