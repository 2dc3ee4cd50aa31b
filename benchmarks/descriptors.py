"""What the descriptors of a process are for, as the kernel tells it.

| descriptor                                                                               | counts as |
| ---------------------------------------------------------------------------------------- | --------- |
| a connection whose other end a client holds                                              | client    |
| a connection whose other end an upstream holds, over which something has come lately     | upstream  |
| a connection whose other end is gone, or over which nothing has come for long            | other     |
| a second descriptor of a connection, a listening socket, a unix socket, a file, a pipe … | other     |

How many connections there are is up to those at their other ends, and which process each comes to is up to
the kernel; the others are the process's own. So whatever it forgets to close is sooner or later an other: a
client's connection once the client has left, an upstream's once it has been idle for too long.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

_SS = ("ss", "--tcp", "--info", "--extended", "--numeric", "--oneline", "--no-header", "state", "established")
"""Of iproute2. A line for each end: two queues, its own address, the other end's, then fields `name:value`,
of which `ino` is the socket's inode, and `lastrcv` how many milliseconds ago data has come."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """How many a process has, by what they are for."""

    clients: int
    upstreams: int
    others: int

    @property
    def all(self) -> int:
        """The whole number."""
        return self.clients + self.upstreams + self.others


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a connection that both ends keep. `silent_s` is how long nothing has come to it."""

    inode: int
    own: str
    peer: str
    silent_s: float


def descriptors(
    pids: Iterable[int], clients: Iterable[int], upstreams: Iterable[int], idle_s: float
) -> dict[int, Descriptors]:
    """Those of each of `pids`, between the processes `clients` and `upstreams`. A connection to an upstream
    is not kept for longer than `idle_s` without being used. Raises OSError where a process is gone, or where
    there is no `ss`."""
    held = {pid: list(_held(pid)) for pid in pids}
    near = {inode for pid in clients for inode in _held(pid)}
    far = {inode for pid in upstreams for inode in _held(pid)}
    ends = list(_ends())  # last: what is made in between is in nobody's list yet
    to_clients = {end.inode for end in _opposite(ends, near)}
    to_upstreams = {end.inode for end in _opposite(ends, far) if end.silent_s <= idle_s}
    return {pid: _counted(found, to_clients, to_upstreams) for pid, found in held.items()}


def _opposite(ends: Sequence[_End], sockets: set[int | None]) -> Iterator[_End]:
    """The other ends of the connections of those sockets."""
    wanted = {(end.peer, end.own) for end in ends if end.inode in sockets}
    return (end for end in ends if (end.own, end.peer) in wanted)


def _counted(held: list[int | None], to_clients: set[int], to_upstreams: set[int]) -> Descriptors:
    sockets = set(held)
    clients, upstreams = len(sockets & to_clients), len(sockets & to_upstreams)
    return Descriptors(clients, upstreams, len(held) - clients - upstreams)


def _held(pid: int) -> Iterator[int | None]:
    """For each descriptor the inode of its socket, None where it is none."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed since
            kind, _, number = os.readlink(f"/proc/{pid}/fd/{descriptor}").partition(":")
            yield int(number.strip("[]")) if kind == "socket" else None


def _ends() -> Iterator[_End]:
    """Of all TCP connections of this machine that are open on both sides."""
    for line in subprocess.run(_SS, capture_output=True, text=True, check=True).stdout.splitlines():
        _, _, own, peer, *rest = line.split()
        fields = dict(field.partition(":")[::2] for field in rest)
        silent_s = int(fields.get("lastrcv", 0)) / 1000  # left out where it is 0
        if "ino" in fields:
            yield _End(int(fields["ino"]), own, peer, silent_s)
