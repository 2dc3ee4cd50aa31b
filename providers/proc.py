"""What /proc tells: who runs, who started whom, which marks they wear, who listens where. Reads only.

A process may end between any two reads. Every function then answers as if it had never been there. Errors of
another kind (too many open files) are raised: they must never make something that runs look gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
_LISTEN = "0A"
# The local addresses on which a listener receives what is sent to 127.0.0.1, as the kernel prints them.
_REACHED_BY_LOOPBACK = {
    "0100007F",
    "00000000",
    "00000000000000000000000000000000",
    "0000000000000000FFFF00000100007F",
}


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that we use. `start` is in clock ticks since boot (field 22)."""

    pid: int
    comm: str
    state: str
    ppid: int
    start: int

    @property
    def dead(self) -> bool:
        """Ended, though its parent may not have collected it yet."""
        return self.state in "ZX"

    @property
    def paused(self) -> bool:
        """Stopped by a signal."""
        return self.state == "T"


def stat(pid: int) -> Stat | None:
    """The process with this pid now, zombies included."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except _GONE:
        return None
    # The name may hold spaces and parentheses, so the fields start after the last one.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Stat(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))


def processes() -> list[Stat]:
    """Everything that runs now, zombies included."""
    found = (stat(int(entry)) for entry in os.listdir(PROC) if entry.isdigit())
    return [one for one in found if one is not None]


def environ(pid: int, having: str) -> dict[str, str]:
    """The environment the process was started with, if `having` is in it; empty where it is not, where the
    process is gone and where it is not ours to read."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except _GONE:
        return {}
    if having.encode() + b"=" not in raw:
        return {}
    pairs = (os.fsdecode(item).partition("=") for item in raw.split(b"\0") if b"=" in item)
    return {name: value for name, _, value in pairs}


def descendants(roots: Iterable[int], everyone: Iterable[Stat]) -> set[int]:
    """The pids of `roots` and of all that they started, directly or not, and that still has its parent."""
    return below(roots, children_of(everyone))


def children_of(everyone: Iterable[Stat]) -> Mapping[int, Sequence[int]]:
    """The pids that each process has started, by its own."""
    children: dict[int, list[int]] = {}
    for one in everyone:
        children.setdefault(one.ppid, []).append(one.pid)
    return children


def below(roots: Iterable[int], children: Mapping[int, Sequence[int]]) -> set[int]:
    """As `descendants`, for many trees of the same processes."""
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, [])
    return found


def listeners(port: int) -> set[int]:
    """The socket inodes that a connection to 127.0.0.1:`port` may end at."""
    return {int(fields[9]) for fields in _tcp_rows() if fields[3] == _LISTEN and _receives(fields[1], port)}


def sockets(pid: int) -> set[int]:
    """The inodes of the sockets that the process holds open; empty where that cannot be read."""
    found = set()
    with suppress(*_GONE):
        for fd in os.scandir(PROC / str(pid) / "fd"):
            with suppress(*_GONE):
                target = os.readlink(fd.path)
                if target.startswith("socket:["):
                    found.add(int(target[len("socket:[") : -1]))
    return found


def _tcp_rows() -> Iterator[list[str]]:
    for table in ("tcp", "tcp6"):
        with suppress(*_GONE):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                yield line.split()


def _receives(local: str, port: int) -> bool:
    address, _, hex_port = local.partition(":")
    return int(hex_port, 16) == port and address in _REACHED_BY_LOOPBACK
