"""Who calls: bearer tokens to callers, and the file that the router learns them from.

A token is never kept: what is kept is the HMAC of its SHA-256 under a key of this site, so neither the file
nor the memory of a process that shows it gives anybody a token. Looking one up means computing its HMAC,
which takes the same time whichever tokens there are.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servestate.planner.access import ANONYMOUS, Caller, Kind, Right
from servestate.planner.engine_keys import SCOPE
from servestate.planner.spec.site import Access, AccessToken
from servestate.providers.secrets import Secrets, fill
from servestate.runtime.table_file import write_durably

FORMAT_VERSION = 1
OPEN_RIGHTS = frozenset({Right.VIEW, Right.QUERY, Right.MANAGE, Right.CREATE})
"""Of everybody, where no tokens are declared. Not to apply: bundles name commands to run, and whoever has an
account on this machine could then run any as the user who serves."""

_LABEL = "access-tokens"
"""What the key is derived for: a key of its own for each purpose."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A caller, until `expires` (seconds since the epoch; None: for ever)."""

    caller: Caller
    expires: float | None


@dataclass(frozen=True, slots=True)
class Keyring:
    """All tokens of a site, by the HMAC of each. `open` where none are declared: everybody may do everything.
    `hosts` are the further names that the management listener is called by."""

    key: bytes = field(repr=False)
    entries: Mapping[str, Entry]
    hosts: frozenset[str] = frozenset()

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return not self.entries

    def find(self, token: bytes, now: float) -> Caller | None:
        """Who carries that token; None for one that is unknown or has expired. Where none is asked for,
        everybody is the same caller, but for the token that came along, if any."""
        digest = self._digest(hashlib.sha256(token).hexdigest())
        if self.open:
            return Caller(ANONYMOUS, rights=OPEN_RIGHTS, token=digest if token else "")
        entry = self.entries.get(digest)
        if entry is None or (entry.expires is not None and entry.expires <= now):
            return None
        return entry.caller

    def _digest(self, sha256: str) -> str:
        return hmac.new(self.key, sha256.encode(), hashlib.sha256).hexdigest()


def keyring_of(access: Access, secrets: Secrets) -> Keyring:
    """The keyring of a site. Raises PermanentError where the secret of a token, or the site's key, cannot be
    had."""
    key = bytes.fromhex(secrets.get(SCOPE, _LABEL).reveal())
    bare = Keyring(key, {})
    entries = {bare._digest(_sha256(token, secrets)): _entry(token) for token in access.tokens}
    return Keyring(key, entries, frozenset(host.lower() for host in access.hosts))


def _sha256(token: AccessToken, secrets: Secrets) -> str:
    if token.sha256:
        return token.sha256
    return hashlib.sha256(fill(token.secret, secrets).reveal().encode()).hexdigest()


def _entry(token: AccessToken) -> Entry:
    kind = Kind.USER if token.user_name else Kind.SERVICE_PRINCIPAL
    name = token.user_name or token.service_principal_name
    caller = Caller(name, kind, frozenset(token.groups), frozenset(token.rights))
    return Entry(caller, token.expires_at)


def write_keyring(path: Path, keyring: Keyring) -> None:
    """Replace the file, which only this user can read. Raises OSError."""
    entries = [_to_json(digest, entry) for digest, entry in sorted(keyring.entries.items())]
    body = {"format_version": FORMAT_VERSION, "key": keyring.key.hex(), "entries": entries}
    write_durably(path, json.dumps({**body, "hosts": sorted(keyring.hosts)}), mode=0o600)


def read_keyring(path: Path) -> Keyring:
    """The keyring in the file. Raises OSError, and ValueError for what is no whole one: nobody may be let in
    because of a torn file."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{path} is of another version")
        entries = dict(_from_json(one) for one in found["entries"])
        return Keyring(bytes.fromhex(found["key"]), entries, frozenset(found["hosts"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def _to_json(digest: str, entry: Entry) -> dict[str, Any]:
    caller = entry.caller
    return {
        "digest": digest,
        "name": caller.name,
        "kind": str(caller.kind),
        "groups": sorted(caller.groups),
        "rights": sorted(caller.rights),
        "expires": entry.expires,
    }


def _from_json(one: Mapping[str, Any]) -> tuple[str, Entry]:
    rights = frozenset(Right(right) for right in one["rights"])
    caller = Caller(one["name"], Kind(one["kind"]), frozenset(one["groups"]), rights)
    return one["digest"], Entry(caller, one["expires"])
