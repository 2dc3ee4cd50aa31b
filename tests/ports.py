"""Ports for what a test starts."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

_LOWEST = 29_000
"""Engines of ours listen below."""
_TAKEN_FROM = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now and that nobody is given before it is used: below those from
    which the system takes the ports of connections, and an Engine those that it publishes."""
    highest = max(int(_TAKEN_FROM.read_text().split()[0]) - 1, _LOWEST + 1000)
    for _ in range(100):
        port = random.randint(_LOWEST, highest)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise AssertionError(f"no port between {_LOWEST} and {highest} is free")
