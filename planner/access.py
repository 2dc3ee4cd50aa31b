"""Who may do what: callers, the rights that a token gives, and the grants on single endpoints.

Levels are those of the serving API, each of which includes the ones below it: CAN_VIEW < CAN_QUERY <
CAN_MANAGE.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any


class Level(IntEnum):
    """What somebody may do with an endpoint. The names are the serving API's."""

    NONE = 0
    CAN_VIEW = 1
    CAN_QUERY = 2
    CAN_MANAGE = 3


class Right(StrEnum):
    """What a token gives beyond the grants on single endpoints."""

    VIEW = "view"  # every endpoint
    QUERY = "query"
    MANAGE = "manage"
    CREATE = "create"  # endpoints of one's own
    APPLY = "apply"  # plan and apply bundles, which name commands and images to run
    ADMIN = "admin"  # everything


class Kind(StrEnum):
    """What a principal is; the values are the field names of the permissions API."""

    USER = "user_name"
    GROUP = "group_name"
    SERVICE_PRINCIPAL = "service_principal_name"


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of an endpoint's access control list."""

    level: Level
    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. `token` tells one unmapped token from another where no principals are known; it is
    a digest, "" for a mapped caller."""

    name: str
    kind: Kind = Kind.USER
    groups: frozenset[str] = frozenset()
    rights: frozenset[Right] = frozenset()
    token: str = ""

    def may(self, right: Right) -> bool:
        """Whether the caller's token gives that right."""
        return right in self.rights or Right.ADMIN in self.rights


ANONYMOUS = "anonymous"
"""The name of every caller where no tokens are declared."""

_LEVELS = {
    Right.VIEW: Level.CAN_VIEW,
    Right.QUERY: Level.CAN_QUERY,
    Right.MANAGE: Level.CAN_MANAGE,
    Right.ADMIN: Level.CAN_MANAGE,
}


def level_of(caller: Caller, grants: Iterable[Grant]) -> Level:
    """The most that the caller may do with an endpoint of these grants."""
    of_token = (level for right, level in _LEVELS.items() if right in caller.rights)
    granted = (grant.level for grant in grants if _is_of(grant, caller))
    return max((*of_token, *granted), default=Level.NONE)


def _is_of(grant: Grant, caller: Caller) -> bool:
    if grant.kind is Kind.GROUP:
        return grant.name in caller.groups
    return grant.kind is caller.kind and grant.name == caller.name


def grants_in(block: str) -> tuple[Grant, ...]:
    """The grants of an endpoint's block, which is canonical JSON of its normal form."""
    if '"permissions"' not in block:  # most have none, and parsing costs
        return ()
    found: list[dict[str, Any]] = json.loads(block).get("permissions", [])
    return tuple(_grant(one) for one in found)


def _grant(written: dict[str, Any]) -> Grant:
    kind = next(kind for kind in Kind if written.get(kind))
    return Grant(Level[written["level"]], kind, written[kind])
