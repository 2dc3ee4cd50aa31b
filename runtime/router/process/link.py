"""What the router's parent and one of its workers tell each other: an order at first, then lines of JSON.

It is also what each knows the other's life by: a process that dies, however that comes, closes its end.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from servestate.runtime.router.process.listen import Sockets
from servestate.runtime.router.process.server import RouterConfig

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told. `number` is its own in the shared memory; `link`, `memory`, `router` and
    `management` are descriptors that it inherits."""

    config: RouterConfig
    parent: int
    number: int
    link: int
    memory: int
    router: tuple[int, ...]
    management: tuple[int, ...]

    def encode(self) -> bytes:
        """As the worker reads it. Holds no secret's value."""
        return pickle.dumps(self)

    @property
    def inherited(self) -> tuple[int, ...]:
        """All descriptors."""
        return (self.link, self.memory, *self.router, *self.management)

    def sockets(self) -> Sockets:
        """Those to answer on."""
        return Sockets(_sockets(self.router), _sockets(self.management))


def _sockets(descriptors: Sequence[int]) -> tuple[socket.socket, ...]:
    return tuple(socket.socket(fileno=fd) for fd in descriptors)


def decode_order(text: bytes) -> Order:
    """The order that was encoded, by our parent, on a pipe that only the two of us have."""
    order: Order = pickle.loads(text)  # noqa: S301
    return order


class Link(asyncio.Protocol):
    """One end. `heard` is called with each message, `lost` once when the other end is closed."""

    def __init__(self, heard: Callable[[Message], None], lost: Callable[[], None]) -> None:
        self._heard = heard
        self._lost = lost
        self._pieces: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = b"".join((*self._pieces, line))
            self._pieces.clear()
            self._heard(orjson.loads(whole))
        if rest:
            self._pieces.append(rest)

    def tell(self, **message: Any) -> None:
        """Send a message; nobody hears it where the other end is closed."""
        if not self._transport.is_closing():  # a turn before it is told that it is lost, uvloop's would raise
            self._transport.write(orjson.dumps(message) + b"\n")

    def close(self) -> None:
        """Close this end, once what was told is on its way."""
        self._transport.close()


async def open_link(sock: socket.socket, heard: Callable[[Message], None], lost: Callable[[], None]) -> Link:
    """The end that `sock` is."""
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(lambda: Link(heard, lost), sock=sock)
    return link
