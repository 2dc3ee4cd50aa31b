"""How a running router is replaced by another without a connection being refused.

| the successor                 | the router that runs                                              |
| ----------------------------- | ----------------------------------------------------------------- |
| asks                          | gives its listening sockets, and the memory of what is counted    |
| starts; cannot: ends          | serves on, as if nothing had been                                 |
| accepts connections, says so  | stops accepting, drains, says what it still has in flight         |
| -                             | ends what runs beside it, then itself, which closes the connection |
| starts what runs beside it    | -                                                                 |

They meet on a socket beside the control socket, which only this user can open. Both accept from the same
queues for a moment, so none is ever without somebody who does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime.router.process.link import Link, Message, open_link
from servestate.runtime.router.process.listen import (
    Sockets,
    answers,
    control_socket,
    identity_of,
    is_at,
    remove_control,
)
from servestate.runtime.router.process.merging import NOTHING, Report
from servestate.runtime.router.process.status import Silent

_VERSION = 1
_PATIENCE_S = 10.0
_AT_ONCE = 200
"""Descriptors in one message; the kernel takes 253."""
_REPORT_S = 0.05


def path_beside(control_path: Path) -> Path:
    """Where a successor asks; no longer than the path itself."""
    return control_path.with_suffix(".next")


@dataclass(frozen=True, slots=True)
class Belongings:
    """What is handed over: sockets, the descriptor of the shared memory (None: it has none), and the numbers
    in it that are taken."""

    sockets: Sockets
    memory: int | None
    numbers: tuple[int, ...]

    def send(self, connection: socket.socket) -> None:
        """Give copies of all. Raises OSError."""
        sockets = self.sockets
        descriptors = [s.fileno() for s in (*sockets.router, *sockets.management)]
        memory = [] if self.memory is None else [self.memory]
        head = {
            "version": _VERSION,
            "pid": os.getpid(),
            "router": len(sockets.router),
            "management": len(sockets.management),
            "memory": len(memory),
            "numbers": self.numbers,
        }
        connection.sendall(orjson.dumps(head) + b"\n")
        for at in range(0, len(descriptors) + len(memory), _AT_ONCE):
            socket.send_fds(connection, [b"\n"], [*descriptors, *memory][at : at + _AT_ONCE])


class Succession:
    """The side of the router that runs. `belongings` says what there is to give, `report` in brief what is in
    flight; `failed` is called where a successor did not start, `handed` where it did."""

    def __init__(
        self,
        control_path: Path,
        belongings: Callable[[], Belongings],
        report: Callable[[], Awaitable[Report]],
        failed: Callable[[], Awaitable[None]],
        handed: Callable[[int], None],
    ) -> None:
        self._path = path_beside(control_path)
        self._belongings = belongings
        self._report = report
        self._failed = failed
        self._handed = handed
        self._socket: socket.socket
        self._identity = (0, 0)
        self._accepting: asyncio.Task[None] | None = None
        self._giving: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self.open_for_all = True
        """False while this router is itself still taking over: two at once would be more than anybody can
        follow."""

    def open(self) -> None:
        """Be there for a successor. Raises InvalidInput SS604."""
        self._socket = control_socket(self._path, replacing=True)
        self._socket.setblocking(False)
        self._identity = identity_of(self._path)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Nothing is in flight any more."""
        for task in (self._accepting, self._giving):
            if task is not None:
                task.cancel()
        self._socket.close()
        remove_control(self._path, self._identity)
        if self._link is not None:
            self._link.tell(report=NOTHING)
            await asyncio.sleep(0)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            if not _is_ours(connection):
                connection.close()
            elif self._giving is not None or not self.open_for_all:
                with connection, suppress(OSError):
                    connection.sendall(orjson.dumps({"refused": "it is being replaced already"}) + b"\n")
            else:
                self._giving = asyncio.create_task(self._give(connection))

    async def _give(self, connection: socket.socket) -> None:
        started, ended = asyncio.Event(), asyncio.Event()
        successor = [0]

        def heard(message: Message) -> None:
            if "started" in message:
                successor[0] = int(message["started"])
                started.set()

        try:
            self._belongings().send(connection)
        except OSError:
            connection.close()
            self._giving = None
            return
        # The successor takes the closing of this connection for the end of this process: a second descriptor
        # of it stays open until then, whatever becomes of the loop.
        kept = os.dup(connection.fileno())
        self._link = await open_link(connection, heard, ended.set)
        await _first_of(started, ended)
        if not started.is_set():
            os.close(kept)
            self._take_back()
            self._link = self._giving = None
            await self._failed()
            return
        self._handed(successor[0])
        while not ended.is_set():
            with suppress(Silent):  # the last that was said holds until there is something to say again
                self._link.tell(report=await self._report())
            await asyncio.sleep(_REPORT_S)

    def _take_back(self) -> None:
        """Be there for the next one where this one has put its own socket in the place of ours."""
        if is_at(self._path, self._identity):
            return
        if self._accepting is not None:
            self._accepting.cancel()
        self._socket.close()
        self.open()


class Predecessor:
    """The side of the successor: the router that still runs. `report` is the last that it said of itself;
    once it has none, it routes nothing any more. `gone` is set when its process has ended."""

    def __init__(self, connection: socket.socket, belongings: Belongings, pid: int) -> None:
        self._connection = connection
        self._link: Link
        self.belongings = belongings
        self.pid = pid
        self.report: Report | None = None
        self.gone = asyncio.Event()

    async def follow(self) -> None:
        """Say that connections are accepted here, and listen to what it says from now on."""
        self._connection.setblocking(False)
        self._link = await open_link(self._connection, self._heard, self._lost)
        self._link.tell(started=os.getpid())

    def leave(self) -> None:
        """Let it serve on: this router cannot start."""
        self._connection.close()
        self.belongings.sockets.close()

    def _heard(self, message: Message) -> None:
        self.report = message["report"]

    def _lost(self) -> None:
        self.report = NOTHING
        self.gone.set()


def predecessor_of(control_path: Path) -> Predecessor | None:
    """The router that runs there, and what it gives; None where none does, whatever files one has
    left. Raises InvalidInput SS642."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_PATIENCE_S)
    try:
        try:
            connection.connect(os.fspath(path_beside(control_path)))
        except (FileNotFoundError, ConnectionRefusedError):
            if answers(control_path):
                raise ValueError("it is not there for a successor") from None
            connection.close()
            return None
        head, descriptors = _receive(connection)
        return Predecessor(connection, _belongings(head, descriptors), head["pid"])
    except (OSError, ValueError) as error:
        connection.close()
        what = f"the router that runs cannot be replaced: {error}"
        fix = "it serves on; try again, or stop it and start this one"
        raise InvalidInput([Diagnostic("SS642", what, fix)]) from None


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What it says and all descriptors that come along. Raises OSError, and ValueError where it gives
    nothing."""
    said, descriptors = b"", list[int]()
    head: dict[str, Any] = {}
    while not head or len(descriptors) < head["router"] + head["management"] + head["memory"]:
        data, received, _, _ = socket.recv_fds(connection, 65536, _AT_ONCE)
        descriptors += received
        said += data
        if not data:
            raise ValueError("it ended meanwhile")
        if not head and b"\n" in said:
            head = orjson.loads(said.partition(b"\n")[0])
            if "refused" in head:
                raise ValueError(head["refused"])
            if head["version"] != _VERSION:
                raise ValueError("it is of another version")
    return head, descriptors


def _belongings(head: dict[str, Any], descriptors: Sequence[int]) -> Belongings:
    for fd in descriptors:
        os.set_inheritable(fd, False)
    sockets = [socket.socket(fileno=fd) for fd in descriptors[: head["router"] + head["management"]]]
    memory = descriptors[-1] if head["memory"] else None
    share = Sockets(tuple(sockets[: head["router"]]), tuple(sockets[head["router"] :]))
    return Belongings(share, memory, tuple(head["numbers"]))


def _is_ours(connection: socket.socket) -> bool:
    """Whether it is this user who asks; the file's mode says so already."""
    wanted = struct.Struct("3i")  # pid, uid, gid; socket(7), unix(7)
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, wanted.size)
    return bool(wanted.unpack(found)[1] == os.getuid())


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
