"""Who may come in: callers by their tokens, from a file that is looked at again and again.

A file that is damaged or gone lets nobody in and shuts nobody out: the keyring that was read last stays in
use, and the report says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from servestate.planner.access import Caller, Level, level_of
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime.file_stamps import reason, stamp_after, stamp_of
from servestate.runtime.keyring import Keyring, read_keyring
from servestate.runtime.router.http.errors import PERMISSION_DENIED, UNAUTHENTICATED, refused, unknown
from servestate.runtime.router.routing import LiveEndpoint

_KNOWN_FOR_S: Final = 1.0
"""How long a token, once checked, is taken without another look: it may expire in the meantime."""
_KNOWN: Final = 4096
_KNOWN_BYTES: Final = 512  # a longer one is checked each time: what strangers send must not fill the memory


class Visitor:
    """A caller, and which endpoints of those that it has asked for lately it may query."""

    __slots__ = ("_may_query", "caller")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self._may_query: dict[LiveEndpoint, bool] = {}

    def may_view(self, endpoint: LiveEndpoint) -> bool:
        """Whether the caller may know of `endpoint`."""
        return level_of(self.caller, endpoint.grants) >= Level.CAN_VIEW

    def may_query(self, endpoint: LiveEndpoint) -> bool:
        """Whether the caller may send requests to `endpoint`."""
        may = self._may_query.get(endpoint)
        if may is None:
            may = level_of(self.caller, endpoint.grants) >= Level.CAN_QUERY
            self._may_query[endpoint] = may
        return may


class Access:
    """The keyring in use, why the newest one is not (`error`), and who was let in within the last second.

    Owned by the loop; `poll` is called by its sweep. Where `path` is None no token is ever asked for.
    `draft`, where there is such a file, is what will be at `path` once this router answers, and is begun
    with: one that is only trying to start changes nothing for one that runs by `path`. `exposed` says that
    others than this machine reach a listener: the keyring must then hold tokens, also later.
    """

    def __init__(self, path: Path | None, *, draft: Path | None = None, exposed: bool = False) -> None:
        """Raises InvalidInput SS610 where the file cannot be read, SS601 where it would let everybody in."""
        self._path = path
        self._exposed = exposed
        self._visitors: dict[bytes, Visitor] = {}
        self._forget_at = 0.0
        self.error: str | None = None
        if path is None:
            self.use(Keyring(os.urandom(32), {}))
        else:
            self._seen = stamp_of(path)
            self.use(_first(draft if draft is not None and draft.exists() else path))
        if exposed and self.open:
            raise _invalid(
                "SS601",
                "refusing to listen beyond this machine: no access tokens are declared",
                "listen on 127.0.0.1, ::1 or localhost, or declare tokens under servestate.access.tokens",
            )

    def use(self, keyring: Keyring) -> None:
        """Let in by `keyring` from now on, on connections that stand as well."""
        self.keyring = keyring
        self.open = keyring.open
        self._visitors.clear()

    def poll(self, now: float) -> None:
        """Look at the file; `now` is of any clock that never goes back."""
        if now >= self._forget_at:
            self._forget_at = now + _KNOWN_FOR_S
            self._visitors.clear()
        if self._path is None or (stamp := stamp_of(self._path)) == self._seen:
            return
        self._seen = stamp
        try:
            keyring = read_keyring(self._path)
            if self._exposed and keyring.open:
                raise ValueError("it holds no tokens, and others than this machine reach the router")
        except OSError as error:
            self._seen = stamp_after(error, stamp)
            self.error = reason(self._path, error)
        except ValueError as error:
            self.error = reason(self._path, error)
        else:
            self.error = None
            self.use(keyring)

    def visitor(self, authorization: bytes) -> Visitor:
        """Who sends that Authorization. Raises Refused (401), the same for a token that is missing,
        malformed, unknown or expired: a difference would tell which ones exist."""
        visitor = self._visitors.get(authorization)
        if visitor is not None:
            return visitor
        caller = self.keyring.find(_bearer(authorization), time.time())
        if caller is None:
            raise refused(
                "a valid access token is required: Authorization: Bearer TOKEN", UNAUTHENTICATED, 401
            )
        visitor = Visitor(caller)
        if len(authorization) <= _KNOWN_BYTES:
            if len(self._visitors) >= _KNOWN:
                self._visitors.clear()
            self._visitors[authorization] = visitor
        return visitor


def permit(endpoint: LiveEndpoint | None, name: str, visitor: Visitor | None) -> LiveEndpoint:
    """The endpoint of that name, for a visitor that may query it; None may query all. Raises Refused: 404
    where there is none, or the visitor may not know of it; 403 where it may do no more than see it."""
    if endpoint is not None and (visitor is None or visitor.may_query(endpoint)):
        return endpoint
    if endpoint is None or visitor is None or not visitor.may_view(endpoint):
        raise unknown(f"there is no endpoint {name!r}")
    raise refused(f"querying the endpoint {name!r} needs CAN_QUERY", PERMISSION_DENIED, 403)


def _bearer(authorization: bytes) -> bytes:
    """The token, empty if there is none."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else b""


def _first(path: Path) -> Keyring:
    try:
        return read_keyring(path)
    except (OSError, ValueError) as error:
        raise _invalid(
            "SS610",
            f"who may call cannot be read: {reason(path, error)}",
            "start with `servestate serve` or `servestate up`, which write the file",
        ) from None


def _invalid(code: str, what: str, fix: str) -> InvalidInput:
    return InvalidInput([Diagnostic(code, what, fix)])
