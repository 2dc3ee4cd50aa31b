"""Who calls the guarded site, and what each may do there: written down once more, so that nothing here
follows the code under test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIEW, QUERY, MANAGE = 1, 2, 3

SHARED, HIDDEN, OWN = "shared", "hidden", "own"
"""Endpoints: one with grants for several, one with none, one that a caller has made."""

TEAM = "team"
_BY_RIGHT = {"view": VIEW, "query": QUERY, "manage": MANAGE, "admin": MANAGE}


@dataclass(frozen=True)
class Who:
    """A caller. `levels` are what it is granted by name of endpoint; `fields` are the header lines that it
    sends, those of its token where None."""

    name: str
    known: bool = True
    rights: frozenset[str] = frozenset()
    levels: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    kind: str = "user_name"
    principal: str = ""
    fields: tuple[str, ...] | None = None
    expires: str = ""

    @property
    def token(self) -> str:
        """A made-up one, always the same."""
        return f"token-of-{self.name}-" + hashlib.sha256(self.name.encode()).hexdigest()[:24]

    @property
    def lines(self) -> tuple[str, ...]:
        """Its header lines."""
        return (f"Authorization: Bearer {self.token}",) if self.fields is None else self.fields

    def level(self, endpoint: str) -> int:
        """The most it may do with that endpoint; 0 = nothing, not even know of it."""
        return max([self.levels.get(endpoint, 0), *(_BY_RIGHT.get(right, 0) for right in self.rights)])

    def may(self, right: str) -> bool:
        """Whether its token gives that right."""
        return right in self.rights or "admin" in self.rights

    def declared(self) -> dict[str, Any]:
        """Its line under `servestate.access.tokens`."""
        line: dict[str, Any] = {self.kind: self.principal or f"{self.name}@example.com"}
        line["sha256"] = hashlib.sha256(self.token.encode()).hexdigest()
        line |= {"groups": list(self.groups)} if self.groups else {}
        line |= {"rights": sorted(self.rights)} if self.rights else {}
        return line | ({"expires": self.expires} if self.expires else {})


def _right(name: str) -> Who:
    return Who(f"right-{name}", rights=frozenset({name}))


STRANGERS = (
    Who("nobody", known=False, fields=()),
    Who("malformed", known=False, fields=("Authorization: Bearer",)),
    Who("basic", known=False, fields=("Authorization: Basic dXNlcjpwYXNz",)),
    Who("unknown", known=False),
    Who("twice", known=False, fields=("Authorization: Bearer a", "Authorization: Bearer b")),
    Who("expired", known=False, expires="2001-09-09T01:46:40Z"),
    Who("revoked", known=False),
)
"""Whom nobody lets in. The expired one is declared; the revoked one was, for a while."""

ADMIN = Who("admin", rights=frozenset({"admin"}))
MAKER = Who("maker", rights=frozenset({"create"}), levels={OWN: MANAGE})
VIEWER = Who("viewer", levels={SHARED: VIEW})
ASKER = Who("asker", levels={SHARED: QUERY})
KEEPER = Who("keeper", levels={SHARED: MANAGE})
MEMBER = Who("member", groups=(TEAM,), levels={SHARED: QUERY})

KNOWN = (
    ADMIN,
    MAKER,
    VIEWER,
    ASKER,
    KEEPER,
    MEMBER,
    Who("ungranted"),
    Who("namesake", kind="service_principal_name", principal="keeper@example.com"),  # of a user
    Who("as-a-group", principal=TEAM),  # a user of a group's name
    *map(_right, ("view", "query", "manage", "create", "apply")),
)

GRANTS = [
    {"level": "CAN_VIEW", "user_name": "viewer@example.com"},
    {"level": "CAN_QUERY", "user_name": "asker@example.com"},
    {"level": "CAN_MANAGE", "user_name": "keeper@example.com"},
    {"level": "CAN_QUERY", "group_name": TEAM},
]
"""On SHARED."""


def declared(*more: Who) -> list[dict[str, Any]]:
    """`servestate.access.tokens` of the site."""
    expired = next(who for who in STRANGERS if who.name == "expired")
    return [who.declared() for who in (*KNOWN, expired, *more)]
