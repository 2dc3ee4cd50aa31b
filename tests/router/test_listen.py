"""Sockets: families, names, ports that are taken, descriptors that run out."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.runtime.router.process import listen
from servestate.runtime.router.process.listen import Sockets, control_socket, open_all, open_listener, url_of
from tests.router import rig
from tests.router.processes import Process, connect, launched, serves_again
from tests.router.rig import bounded, config, read_answer, request, write_table
from tests.router.upstreams import Upstream, answer, entity, hangs, says, table


def addresses(sockets: tuple[socket.socket, ...]) -> list[tuple[str, int]]:
    return [sock.getsockname()[:2] for sock in sockets]


def test_a_name_of_both_families_is_listened_on_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(host: str, port: int, **_: object) -> list[tuple]:
        kind = socket.SOCK_STREAM
        later = (socket.AF_INET, kind, 6, "", ("127.0.0.1", port))
        return [(socket.AF_INET6, kind, 6, "", ("::1", port, 0, 0)), later]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    found = open_listener("localhost", 0, 2)
    (_, port), *_ = addresses(found)
    assert addresses(found) == [("127.0.0.1", port)] * 2 + [("::1", port)] * 2
    assert url_of(found, "http") == f"http://127.0.0.1:{port}"
    assert url_of(found[2:], "https") == f"https://[::1]:{port}"
    shares = Sockets(found).dealt(2)
    assert [addresses(share.router) for share in shares] == [[("127.0.0.1", port), ("::1", port)]] * 2
    Sockets(found).close()


def test_localhost_is_this_machine_whatever_a_file_of_names_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(host: str, port: int, **_: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", port))]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    with pytest.raises(InvalidInput, match="SS603"):
        open_listener("localhost", 0)


def test_a_port_is_one_routers_alone_however_many_sockets_it_has() -> None:
    first = open_listener("127.0.0.1", 0, 3)
    port = first[0].getsockname()[1]
    with pytest.raises(InvalidInput, match="SS603"):
        open_listener("127.0.0.1", port, 3)
    Sockets(first).close()
    again = open_listener("127.0.0.1", port, 1)
    Sockets(again).close()


def test_sockets_that_listen_there_already_are_kept_and_none_is_left_without_a_worker() -> None:
    before = open_all(("127.0.0.1", 0), ("127.0.0.1", 0), 3)
    kept = before.duplicate()
    more = open_all(("127.0.0.1", 0), ("127.0.0.1", 0), 4, kept)
    assert {*kept.router, *kept.management} < {*more.router, *more.management}
    assert set(addresses(more.router)) == set(addresses(before.router))
    assert not kept.without(more).router
    fewer = open_all(("127.0.0.1", 0), None, 1, kept)
    assert fewer.router == kept.router
    assert len(fewer.dealt(2)[0].router) == 2
    assert kept.without(fewer).management == kept.management
    for sockets in (before, more):
        sockets.close()


def test_a_control_socket_is_not_taken_from_a_router_that_answers(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with control_socket(path) as first:
        identity = listen.identity_of(path)
        with pytest.raises(InvalidInput, match=r"SS604[\s\S]*--replace"):
            control_socket(path)
        with control_socket(path, replacing=True):
            listen.remove_control(path, identity)
            assert path.exists(), "it is another one's by now"
        assert first.fileno() >= 0
    with control_socket(path):  # nobody answers there any more
        pass
    with pytest.raises(InvalidInput, match="SS604"):
        control_socket(tmp_path / ("x" * 120))
    with pytest.raises(InvalidInput, match="SS604"):
        control_socket(tmp_path / "nowhere" / "control.sock")


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_it_answers_over_ipv6_and_by_name(tmp_path: Path, host: str) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            router = rig.service(config(tmp_path, host=host))
            await router.start()
            port = int(router.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection(host, port)
            for name in ("localhost", "[::1]", f"[::1]:{port}"):
                writer.write(request(host=name))
                assert (await bounded(read_answer(reader))).status == 200
            writer.close()
            await router.stop()

    rig.run(body())


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_descriptors_it_sheds_without_spinning_and_recovers(tmp_path: Path, workers: int) -> None:
    async def body() -> None:
        async with Upstream() as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, workers=workers) as router:
                limited = processes_of(router)
                for pid in limited:
                    # Beneath what is open already: not one more can be had.
                    subprocess.run(["prlimit", f"--pid={pid}", "--nofile=16:"], check=True)
                spent = sum(map(cpu_s, limited))
                flood = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(300)]
                await asyncio.sleep(1.0)
                assert sum(map(cpu_s, limited)) - spent < 0.2
                assert sum(map(is_over, flood)) >= 250, "who cannot be served is told so, not left waiting"
                for sock in flood:
                    sock.close()
                for pid in limited:
                    subprocess.run(["prlimit", f"--pid={pid}", "--nofile=4096:"], check=True)
                await serves_again(router.port)
                assert router.end() == 0

    rig.run(body())


def processes_of(router: Process) -> list[int]:
    children = Path(f"/proc/{router.pid}/task/{router.pid}/children").read_text().split()
    return [int(pid) for pid in children] or [router.pid]


def is_over(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.slow
def test_with_few_descriptors_one_client_too_many_is_told_so(tmp_path: Path) -> None:
    """There is one for each client's upstream as well: whoever is let in can be served."""

    async def body() -> None:
        async with Upstream(hangs) as up:
            write_table(tmp_path / "table.json", table(entity("a", 100, up.url)))
            with launched(tmp_path, files=256) as router:
                connections = [await connect(router.port) for _ in range(200)]
                for _, writer in connections:
                    writer.write(request())
                await rig.until(lambda: len(up.received) == 64)
                told = [await bounded(read_answer(reader)) for reader, _ in connections[64:]]
                assert [one.status for one in told].count(503) >= 64
                assert {one.status for one in told} == {503, 0}
                assert {one.fields["retry-after"] for one in told if one.status} == {"1"}
                assert len(up.received) == 64
                for _, writer in connections:
                    writer.close()
                up.script = says(answer())
                await serves_again(router.port)
                assert router.end() == 0

    rig.run(body())
