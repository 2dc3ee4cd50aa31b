"""What the soak counts: of a real relay, between a real client and a real upstream."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.descriptors import Descriptors, descriptors
from tests.cli.harness import until
from tests.load.place import HERE
from tests.ports import free_port

pytestmark = pytest.mark.skipif(shutil.which("ss") is None, reason="the kernel is asked with ss, of iproute2")

IDLE_S = 1.0
CLIENTS = 3


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay as it is seen from outside."""

    port: int
    pid: int
    upstream: int

    def connect(self) -> socket.socket:
        """A connection over which a request has been made."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(65536).endswith(b"{}")
        return client

    def counts(self) -> Descriptors:
        """Its descriptors."""
        return descriptors([self.pid], [os.getpid()], [self.upstream], IDLE_S)[self.pid]


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Its port and its pid."""
    port = free_port()
    with running("upstream.py", port, tmp_path) as process:
        until(lambda: listens(port), "the upstream is there")
        yield port, process.pid


@contextmanager
def relay(upstream: tuple[int, int], fault: str) -> Iterator[Relay]:
    port, upstream_pid = upstream
    with running("leaky.py", port, fault) as process:
        assert process.stdout is not None
        yield Relay(int(process.stdout.readline()), process.pid, upstream_pid)


@contextmanager
def running(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-I", "-S", str(HERE / program), *map(str, arguments)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_open_connections_are_told_from_the_rest(upstream: tuple[int, int]) -> None:
    with relay(upstream, "none") as tight:
        with tight.connect():
            during = tight.counts()
        assert (during.clients, during.upstreams) == (1, 1)
        until(lambda: tight.counts() == Descriptors(0, 0, during.others), "nothing is left of it")


@pytest.mark.parametrize("fault", ["client", "twice", "upstream", "file"])
def test_what_is_forgotten_is_no_open_connection(upstream: tuple[int, int], fault: str) -> None:
    with relay(upstream, fault) as leaky:
        with leaky.connect():
            before = leaky.counts()
        for _ in range(CLIENTS - 1):
            leaky.connect().close()
        expected = Descriptors(0, 0, before.others + CLIENTS)
        until(lambda: leaky.counts() == expected, f"{CLIENTS} more than in {before}")
