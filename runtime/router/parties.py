"""Whom an exchange deals with besides upstreams: the connection that its request came by, and the router."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from servestate.runtime.router.guards.threads import GuardThreads
from servestate.runtime.router.http.errors import Failure, Shape
from servestate.runtime.router.http.heads import BODILESS
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.records.record import Books


class Client(Protocol):
    """What an exchange needs of the connection that the request came by."""

    deadline: float
    """When the exchange wants `Exchange.expire` to be called, on the loop's clock."""

    write: Callable[[bytes], None]
    """Send bytes."""

    @property
    def http10(self) -> bool:
        """The client knows no chunks: the close delimits."""

    @property
    def shape(self) -> Shape:
        """In which the client reads errors."""

    keep_alive: bool
    """Whether the connection stays after this answer; never for HTTP/1.0."""

    def finished(self, now: float) -> None:
        """The answer is whole, `now` on the loop's clock."""

    def fail(self, failure: Failure, answer_fields: bytes, request_id: bytes) -> None:
        """Answer with an error; nothing was written before."""

    def cut(self, final: bytes) -> None:
        """Send `final`, then end the connection so that the answer cannot be taken for whole."""


class Desk(Protocol):
    """What all exchanges share."""

    limits: Limits
    inflight: int
    """How many have begun and not ended."""

    guards: GuardThreads
    """Where guards look at answers."""

    @property
    def books(self) -> Books:
        """Who keeps what became of them."""


def framing_of(status: int, length: int | None, client: Client) -> tuple[bytes, bool]:
    """The end of an answer's head, which says where its body ends, and whether that is told by chunks. A body
    of unknown length comes in chunks, to a client that knows them, else the close delimits it."""
    close = b"" if client.keep_alive else b"\r\nConnection: close"
    if length is not None:
        return (close if status in BODILESS else b"\r\nContent-Length: %d%b" % (length, close)), False
    if client.http10:
        return close, False
    return b"\r\nTransfer-Encoding: chunked" + close, True
