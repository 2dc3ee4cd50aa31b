"""A request as the handlers see it, what they answer with, and how they refuse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from servestate.planner.access import Caller

if TYPE_CHECKING:
    from pydantic import BaseModel

    from servestate.runtime.api.desk import Desk


class Need(Enum):
    """What a caller must be allowed for a route. The endpoint is the one that the path names, by name or by
    id; of one that the caller may not even see, the answer is that there is none."""

    NOTHING = "nothing"  # not even a token
    TOKEN = "token"  # noqa: S105  # a known caller; lists show each what it may see
    VIEW = "CAN_VIEW"
    QUERY = "CAN_QUERY"
    MANAGE = "CAN_MANAGE"
    CREATE = "create"
    APPLY = "apply"


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `body` is the parsed JSON, None where there is none; `peer` is the address that it came
    from, `id` what the answer and the audit log call it."""

    caller: Caller
    peer: str
    id: str
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None

    def object(self) -> dict[str, Any]:
        """The body, which must be a JSON object; an absent one is empty. Raises Refusal."""
        if self.body is None:
            return {}
        if not isinstance(self.body, dict):
            raise invalid("the body must be a JSON object")
        return self.body


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is not JSON."""

    content: str
    media_type: str = "text/plain; charset=utf-8"


Handler = Callable[["Desk", Call], Awaitable[Any]]
"""Answers with JSON values, or with a Text. Raises Refusal."""


@dataclass(frozen=True, slots=True)
class Row:
    """One route: verb, path, who may call it, what answers, and its line in the OpenAPI document. `takes` and
    `gives` are the shapes of body and answer, None where there is none or it is text; `query` names query
    parameters. `largest` bounds the body in bytes."""

    verb: str
    path: str
    need: Need
    handler: Handler
    summary: str
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    largest: int = 1 << 20


class Refusal(Exception):
    """The request ends here: an HTTP status, an error code of the serving API and a message. `retry_after` is
    in whole seconds, 0 for no such header. `more` stands beside code and message; the calls of the serving
    API itself have nothing there, since its clients take a further field for something else."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        retry_after: int = 0,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.more = more
        super().__init__(message)


def invalid(message: str) -> Refusal:
    """The request cannot be carried out as it stands."""
    return Refusal(400, "INVALID_PARAMETER_VALUE", message)


def absent(message: str) -> Refusal:
    """What it is about is not there."""
    return Refusal(404, "RESOURCE_DOES_NOT_EXIST", message)


def exists(message: str) -> Refusal:
    """The name is taken."""
    return Refusal(409, "RESOURCE_ALREADY_EXISTS", message)


def conflict(message: str) -> Refusal:
    """Something else is under way."""
    return Refusal(409, "RESOURCE_CONFLICT", message)


def denied(message: str) -> Refusal:
    """The caller may not."""
    return Refusal(403, "PERMISSION_DENIED", message)


def unavailable(message: str, retry_after: int = 1) -> Refusal:
    """Not now; the same request may succeed later."""
    return Refusal(503, "TEMPORARILY_UNAVAILABLE", message, retry_after)
