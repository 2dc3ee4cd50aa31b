"""TLS connections from their first packet on.

The loop's own server tells of a connection once its handshake is over, so whoever never ends one could have
as many as there are descriptors. Here each counts from the moment it is accepted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from socket import socket

from servestate.runtime.router.process.listen import BACKLOG

_AT_ONCE = 64
"""Accepted before the loop goes on with others."""
_REST_S = 0.1
"""Until it is tried again where the system has no descriptor left."""


class TlsServer:
    """Accepts on `sock`, and gives what has ended its handshake within `handshake_s` to a `connection`. One
    for which there is no room is closed at once: an answer would cost a handshake. Owned by the loop."""

    def __init__(
        self,
        connection: Callable[[], asyncio.Protocol],
        sock: socket,
        context: ssl.SSLContext,
        handshake_s: float,
        has_room: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._socket = sock
        self._context = context
        self._handshake_s = handshake_s
        self._has_room = has_room
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._listen()

    @property
    def pending(self) -> int:
        """Connections that are still in their handshake."""
        return len(self._shaking)

    def close(self) -> None:
        """Accept no more."""
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    async def shaken(self) -> None:
        """When nothing is in its handshake any more."""
        if self._shaking:
            await asyncio.wait(self._shaking)

    def abort(self) -> None:
        """Close what is still in its handshake."""
        for task in self._shaking:
            task.cancel()

    def _listen(self) -> None:
        self._resting = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor: what waits in the queue would wake the loop again and again
                self._loop.remove_reader(self._socket.fileno())
                self._resting = self._loop.call_later(_REST_S, self._listen)
                return
            if not self._has_room():
                sock.close()
                continue
            task = self._loop.create_task(self._shake(sock))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _shake(self, sock: socket) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # silence and nonsense, which anybody can send: nobody is to be told
            await self._loop.connect_accepted_socket(
                self._connection, sock, ssl=self._context, ssl_handshake_timeout=self._handshake_s
            )
