"""Whom an exchange deals with besides upstreams: the connection that its request came by, and the router."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from servestate.runtime.router.guards.threads import GuardThreads
from servestate.runtime.router.http.errors import Failure, Shape
from servestate.runtime.router.http.heads import BODILESS
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.quota.budget import Budget

if TYPE_CHECKING:
    from servestate.runtime.router.access import Access
    from servestate.runtime.router.client import ClientConnection
    from servestate.runtime.router.records.books import Books
    from servestate.runtime.router.routing import LiveTable


class Client:
    """What an exchange needs of the connection that the request came by. A class, not a protocol: compiled,
    the methods of what is known only by a protocol are looked up by name.

    `deadline` is when the exchange wants its `expire` to be called, on the loop's clock. `moves_s`, where it
    is not 0, puts it off to so many seconds after the next sweep: to ask for the time would take as long as
    much of what is done for a piece of a stream. `keep_alive` says whether the connection stays after this
    answer; never for HTTP/1.0. `write` sends bytes.
    """

    __slots__ = ("deadline", "keep_alive", "moves_s", "write")

    deadline: float
    moves_s: float
    keep_alive: bool
    write: Callable[[bytes], None]

    @property
    def http10(self) -> bool:
        """The client knows no chunks: the close delimits."""
        raise NotImplementedError

    @property
    def shape(self) -> Shape:
        """In which the client reads errors."""
        raise NotImplementedError

    def finished(self, now: float) -> None:
        """The answer is whole, `now` on the loop's clock."""
        raise NotImplementedError

    def fail(self, failure: Failure, answer_fields: bytes, request_id: bytes) -> None:
        """Answer with an error; nothing was written before."""
        raise NotImplementedError

    def hold(self, held: bool) -> None:
        """Whether the rest of a body that goes on as it comes is left unread for now."""
        raise NotImplementedError

    def cut(self, final: bytes) -> None:
        """Send `final`, then end the connection so that the answer cannot be taken for whole."""
        raise NotImplementedError


class Desk:
    """What all requests of a router share: what they are decided by, who counts them, who is connected.

    `inflight` requests have begun and not ended, those that wait for a guard among them. `stopping`: every
    answer says that its connection closes. `emptied` is called once nobody is connected any more. Owned by
    the loop.
    """

    __slots__ = (
        "access",
        "books",
        "budget",
        "clients",
        "emptied",
        "guards",
        "inflight",
        "limits",
        "stopping",
        "table",
    )

    def __init__(
        self,
        access: Access,
        limits: Limits,
        books: Books,
        table: LiveTable,
        emptied: Callable[[], None],
    ) -> None:
        self.access = access
        self.limits = limits
        self.books = books
        self.table = table
        self.emptied = emptied
        self.guards = GuardThreads()
        self.budget = Budget(max(limits.buffered_bytes, limits.body_bytes))
        self.clients: set[ClientConnection] = set()
        self.inflight = 0
        self.stopping = False

    def left(self, client: ClientConnection) -> None:
        """The client's socket is closed."""
        self.clients.discard(client)
        if self.stopping and not self.clients:
            self.emptied()


def framing_of(status: int, length: int | None, client: Client) -> tuple[bytes, bool]:
    """The end of an answer's head, which says where its body ends, and whether that is told by chunks. A body
    of unknown length comes in chunks, to a client that knows them, else the close delimits it."""
    close = b"" if client.keep_alive else b"\r\nConnection: close"
    if length is not None:
        return (close if status in BODILESS else b"\r\nContent-Length: %d%b" % (length, close)), False
    if client.http10:
        return close, False
    return b"\r\nTransfer-Encoding: chunked" + close, True
