"""T84: a port that somebody else took is never taken for our engine, and nobody but our engine is asked."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from dataclasses import replace

import pytest

from servestate.providers import health, proc
from servestate.providers.ports import Ports, bindable
from servestate.providers.protocol import Failed, PermanentError, Ready, Starting


class Thief:
    """Takes ports the moment they are found free, answers 200 to everything and counts who asks."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.visitors = 0

    def found_free(self, port: int) -> bool:
        free = bindable(port)
        if free:
            self.take(port)
        return free

    def take(self, port: int) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(16)
        self.sockets.append(listener)
        threading.Thread(target=self._serve, args=[listener], daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.visitors += 1
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        for listener in self.sockets:
            listener.shutdown(socket.SHUT_RDWR)  # wakes its thread
            listener.close()


@pytest.fixture
def thief():
    made = Thief()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("flags", "code"), [((), "SS514"), (("--retry-bind",), "SS507")], ids=["engine gives up", "engine waits"]
)
def test_a_thief_between_check_and_bind_is_never_ready(site, kit, thief, flags, code):
    async def go():
        provider, spec = site.provider(replace(site.ports, free=thief.found_free)), kit.tiny(*flags)
        for _ in range(25):
            launched = await provider.launch(spec, site.marks())
            seen = await kit.settled(provider, launched.handle, spec)
            assert isinstance(seen, Failed)
            # The engine may still be trying when the thief is seen, so both codes are right for the first.
            assert seen.code == code or (code == "SS514" and seen.code in ("SS506", "SS507"))
            assert "port" in seen.why
            await provider.stop(launched.handle, 0.5)
        assert thief.visitors == 0
        launched = await site.provider().launch(spec, site.marks())
        assert await kit.settled(provider, launched.handle, spec) == Ready()
        assert int(launched.url.rpartition(":")[2]) not in {s.getsockname()[1] for s in thief.sockets}

    asyncio.run(go())


def test_a_thief_after_a_crash_is_never_ready(site, kit, thief):
    async def go():
        provider, launched, spec = await kit.ready(site)
        (tree,) = site.trees()
        os.kill(tree.members[0].pid, 9)
        port = int(launched.url.rpartition(":")[2])
        await kit.until(lambda: not proc.listeners(port))
        thief.take(port)
        assert isinstance(await provider.probe(launched.handle, spec), Failed)
        assert thief.visitors == 0

    asyncio.run(go())


def test_a_port_that_changes_hands_during_the_question_is_not_ready(site, kit, monkeypatch):
    async def go():
        provider, launched, spec = await kit.ready(site)

        async def answered_by_another(url):
            monkeypatch.setattr(proc, "listeners", lambda port: {1})
            return ""

        monkeypatch.setattr(health, "ask", answered_by_another)
        assert await provider.probe(launched.handle, spec) == Starting("the port changes hands")

    asyncio.run(go())


def test_a_port_is_handed_out_once_at_a_time(tmp_path):
    ports = Ports(first=21000, last=21063, registry=tmp_path / "ports" / "registry")
    held = [ports.reserve(seed=5) for _ in range(20)]
    assert len({port for port, _ in held}) == 20
    port, fd = held[3]
    os.close(fd)
    again, fd = ports.reserve(seed=port - 21000)
    assert again == port
    for other in {fd, *(f for _, f in held)} - {held[3][1]} | {fd}:
        os.close(other)


def test_a_port_somebody_listens_on_is_not_handed_out(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = Ports(first=port, last=port, registry=tmp_path / "ports" / "registry")
        with pytest.raises(PermanentError, match=f"SS510 every port from {port} to {port} is taken"):
            ports.reserve(seed=0)


def test_the_default_range_lies_below_the_kernels_own():
    assert Ports().last < 32768


def test_a_registry_that_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "servestate-0" / "ports"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(PermanentError, match="SS504"):
        Ports(registry=folder).reserve(seed=0)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermanentError, match="SS504"):
        Ports(registry=folder).reserve(seed=0)


def test_a_port_stays_reserved_as_long_as_its_instance_lives(site, kit):
    async def go():
        provider, launched, _ = await kit.ready(site)
        port = int(launched.url.rpartition(":")[2])
        only = replace(site.ports, first=port, last=port, free=lambda port: True)
        with pytest.raises(PermanentError, match="SS510"):
            only.reserve(seed=0)
        await provider.stop(launched.handle, 1)
        _, fd = only.reserve(seed=0)
        os.close(fd)

    asyncio.run(go())
