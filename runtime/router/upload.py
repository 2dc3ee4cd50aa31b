"""The way of a large body to its upstream: piece by piece, no faster than that takes them.

The client is not read while there is no connection yet, and while that holds more than it should. What went
out is not held, so nothing of it can be sent a second time, elsewhere.
"""

from __future__ import annotations

from servestate.runtime.router.http.upstream import UpstreamConnection
from servestate.runtime.router.messages.passage import Passage
from servestate.runtime.router.parties import Client


class Upload:
    """One body. `done` once its last byte was given to the upstream, `full` while that takes no more, `sent`
    bytes went there."""

    __slots__ = ("_client", "_connection", "_ended", "_first", "_moved", "_passage", "done", "full", "sent")

    def __init__(self, passage: Passage, first: bytes, client: Client) -> None:
        self._passage = passage
        self._first = first
        self._client = client
        self._connection: UpstreamConnection | None = None
        self._ended = False  # all of it is here
        self._moved = 0.0  # when the last piece came
        self.done = self.full = False
        self.sent = 0

    @property
    def flows(self) -> bool:
        """Whether the next piece may come."""
        return self._connection is not None and not self.full

    def waits_for_client(self, since: float) -> bool:
        """Whether the rest of the body is to come, of which nothing came since that time."""
        return not self.done and not self.full and self._moved < since

    def open(self, connection: UpstreamConnection, now: float) -> bytes:
        """What stands behind the other fields of the request's head: its length and the beginning of the
        body. The rest follows by itself, once this is written."""
        first, self._first = self._first, b""
        assert first, "only once: it is not held any longer"
        self._connection = connection
        self._moved = now
        self.sent = len(first)
        self.done = self._ended
        connection.unsent = not self.done
        return b"\r\nContent-Length: %d\r\n\r\n%b" % (self._passage.length, first)

    def more(self, piece: bytes, now: float, *, last: bool) -> None:
        """Give on the next piece. Raises Refused where the body cannot go on."""
        self._moved = now
        made = self._passage.next(piece, last=last)
        connection = self._connection
        if connection is None:  # it was read before the client was held
            self._first += made
            self._ended = last
            return
        self.sent += len(made)
        self.done = last
        connection.unsent = not last
        connection.write(made)

    def fill(self, full: bool) -> None:
        """The connection has more than it should, or again less."""
        self.full = full
        if not self.done and self._connection is not None:
            self._client.hold(full)

    def drop(self) -> None:
        """The answer has come, or there will be none: what is still to come goes nowhere."""
        self._connection = None
