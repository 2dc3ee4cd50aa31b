"""Requests as bytes, for what no client library would send, and the answers to them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 where the connection was closed without a word."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code, "" where the body has none."""
        found = self.json if self.body[:1] == b"{" else {}
        return str(found.get("error_code", ""))


SILENCE = Answer(0, {}, b"")


class Connection:
    """One connection to a listener, or to the unix socket at a path; dialled again after it was closed."""

    def __init__(self, where: str | Path) -> None:
        self._where = where
        self.host = "servestate" if isinstance(where, Path) else urlsplit(where).netloc
        self._socket: socket.socket | None = None

    def ask(
        self,
        verb: str,
        target: str,
        body: bytes = b"",
        *fields: str,
        token: str = "",
        host: str | None = None,
    ) -> Answer:
        """A whole request, well framed, with these header lines besides."""
        lines = [f"{verb} {target} HTTP/1.1", f"Host: {self.host if host is None else host}"]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, *fields, "", ""])
        return self.send(head.encode("latin-1") + body, verb)

    def send(self, raw: bytes, verb: str = "GET") -> Answer:
        """These very bytes, and the one answer to them."""
        self.push(raw)
        assert self._socket is not None
        response = HTTPResponse(self._socket, method=verb)
        try:
            response.begin()
            body = response.read()
        except (OSError, HTTPException):
            self.close()
            return SILENCE
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return Answer(response.status, headers, body)

    def push(self, raw: bytes) -> None:
        """These very bytes, whatever comes of them."""
        if self._socket is None:
            self._socket = self._dial()
        with suppress(OSError):  # refused before all of it was read; the answer says so
            self._socket.sendall(raw)

    def _dial(self) -> socket.socket:
        if isinstance(self._where, Path):
            dialled = socket.socket(socket.AF_UNIX)
            dialled.settimeout(30)
            dialled.connect(str(self._where))
            return dialled
        where = urlsplit(self._where)
        return socket.create_connection((str(where.hostname), int(where.port or 80)), timeout=30)

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@contextmanager
def connected(where: str | Path) -> Iterator[Connection]:
    """A connection for as long as the block runs."""
    connection = Connection(where)
    try:
        yield connection
    finally:
        connection.close()
