"""One request to the management API and back: the answer is passed on as it is, errors too, as it comes.

| event                               | nothing sent to the client yet                       | after |
| ----------------------------------- | ---------------------------------------------------- | ----- |
| no connection                       | 503                                                  | -     |
| a socket that had been idle is lost | a fresh one, once; only what may be repeated used it | cut   |
| lost or late                        | 504, not safe to repeat; 503 to what may be repeated | cut   |
| not HTTP, surplus bytes             | 500, not safe to repeat                              | cut   |
| client gone                         | cancelled                                            | cancelled |
"""

from __future__ import annotations

import asyncio

from servestate.runtime.router.http import errors, upstream
from servestate.runtime.router.http.chunked import encode
from servestate.runtime.router.http.errors import Failure
from servestate.runtime.router.http.heads import STATUS_LINES, AnswerHead, RequestHead
from servestate.runtime.router.http.upstream import Origin, UpstreamConnection
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.parties import Client, framing_of


def request_bytes(head: RequestHead, body: bytes, peer: bytes, request_id: bytes) -> bytes:
    """The request as the API gets it. `peer` is who sent it, as IP:PORT; of the caller's own fields only
    those of the table go along, so none can pass for that one."""
    return (
        b"%b %b HTTP/1.1\r\nHost: servestate\r\n%bx-servestate-peer: %b\r\nx-request-id: %b\r\n"
        b"Content-Length: %d\r\n\r\n%b"
        % (head.method, head.target, head.api_fields, peer, request_id, len(body), body)
    )


class Relay(upstream.Exchange):
    """From the request, which is whole, to the last byte of the answer. The client's side is that of
    `proxy.Exchange`, the other that of `upstream.Exchange`."""

    __slots__ = (
        "_begun",
        "_chunked",
        "_client",
        "_dialling",
        "_ended",
        "_limits",
        "_loop",
        "_origin",
        "_repeatable",
        "_request",
        "_request_id",
        "_reused",
        "_upstream",
    )

    def __init__(
        self,
        client: Client,
        origin: Origin,
        request: bytes,
        request_id: bytes,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._client = client
        self._origin = origin
        self._request = request
        self._request_id = request_id
        self._limits = limits
        self._loop = loop
        self._repeatable = request.startswith(b"GET ")
        self._upstream: UpstreamConnection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._reused = self._begun = self._ended = self._chunked = False

    def start(self) -> None:
        """Send the request. One that must not run twice gets a fresh connection: an idle one may be closing,
        and then nobody could say whether it was read."""
        now = self._loop.time()
        self._client.deadline = now + self._limits.management_s
        connection = self._origin.take(now) if self._repeatable else None
        if connection is not None:
            self._reused = True
            self._send(connection)
        else:
            self._dialling = self._origin.dial(self, self._loop)

    # From the client.

    @property
    def begun(self) -> bool:
        """Whether the head of the answer is on its way."""
        return self._begun

    def abandon(self) -> None:
        """The client is gone."""
        self._ended = True
        self._drop_upstream()

    def pause(self) -> None:
        """The client reads slower than the API writes."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._upstream is not None:
            self._upstream.resume()
            self._progress()

    def expire(self) -> None:
        """The client's `deadline` has passed."""
        self._fail(errors.lost(f"no answer of the management API for {self._limits.management_s:g} s"))

    # From the upstream.

    def connected(self, connection: UpstreamConnection) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._send(connection)

    def failed_to_connect(self, why: str) -> None:
        """See `upstream.Exchange`."""
        self._dialling = None
        self._fail(errors.unavailable("the management API is not running"))

    def answered(self, head: AnswerHead, length: int | None, payload: bytes, complete: bool) -> None:
        """See `upstream.Exchange`."""
        if complete:
            self._upstream = None
        begin = b"" if self._begun else self._begin(head, length)
        if self._chunked:
            payload = encode(payload, complete)
        if begin or payload:
            self._client.write(begin + payload)
        if complete:
            self._ended = True
            self._client.finished(self._loop.time())
        else:
            self._progress()

    def relayed(self, chunk: bytes) -> bool:
        """See `upstream.Exchange`."""
        if not self._chunked:
            return False
        self._client.write(chunk)
        self._progress()
        return True

    def lost(self, why: str, *, bad: bool) -> None:
        """See `upstream.Exchange`."""
        self._upstream = None
        if self._reused and not self._begun and not bad:
            self._reused = False
            self._dialling = self._origin.dial(self, self._loop)
        elif bad:
            self._fail(errors.broken(why))
        elif self._repeatable:
            self._fail(errors.unavailable("the management API ended before it answered"))
        else:
            self._fail(errors.lost("the management API ended before it answered"))

    def _send(self, connection: UpstreamConnection) -> None:
        self._upstream = connection
        connection.send(self, self._request)

    def _begin(self, head: AnswerHead, length: int | None) -> bytes:
        """The head of the answer."""
        self._begun = True
        more = b"Retry-After: %d\r\n" % head.retry_after if head.retry_after else b""
        if head.status == 401:
            more += b"WWW-Authenticate: Bearer\r\n"
        status = STATUS_LINES.get(head.status) or b"HTTP/1.1 %d \r\n" % head.status
        framing, self._chunked = framing_of(head.status, length, self._client)
        return b"%b%b%bx-request-id: %b%b\r\n\r\n" % (status, head.fields, more, self._request_id, framing)

    def _progress(self) -> None:
        self._client.deadline = self._loop.time() + self._limits.management_s

    def _fail(self, failure: Failure) -> None:
        if self._ended:
            return
        self._ended = True
        self._drop_upstream()
        if self._begun:
            self._client.cut(b"")
        else:
            self._client.fail(failure, b"", self._request_id)

    def _drop_upstream(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.cancel()
            self._upstream = None
