"""What the router answers when it cannot pass an answer on: codes, statuses and the two shapes of body.

Statuses and codes follow the serving API's error table: its SDK chooses the exception by `error_code`,
MLflow recomputes the status from it, the OpenAI client goes by the status and reads `message`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import orjson

INVALID: Final = "INVALID_PARAMETER_VALUE"
BAD_REQUEST: Final = "BAD_REQUEST"
NO_SUCH_RESOURCE: Final = "RESOURCE_DOES_NOT_EXIST"
NO_SUCH_PATH: Final = "ENDPOINT_NOT_FOUND"
LIMITED: Final = "REQUEST_LIMIT_EXCEEDED"
UNAVAILABLE: Final = "TEMPORARILY_UNAVAILABLE"
TOO_SLOW: Final = "DEADLINE_EXCEEDED"
BROKEN: Final = "INTERNAL_ERROR"
UNAUTHENTICATED: Final = "UNAUTHENTICATED"
PERMISSION_DENIED: Final = "PERMISSION_DENIED"

_OPENAI_TYPES: Final = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}

_UPSTREAM: dict[int, tuple[int, str]] = {
    400: (400, INVALID),
    401: (401, UNAUTHENTICATED),
    403: (403, PERMISSION_DENIED),
    404: (404, NO_SUCH_RESOURCE),
    405: (404, NO_SUCH_PATH),
    408: (504, TOO_SLOW),
    409: (409, "RESOURCE_CONFLICT"),
    413: (400, INVALID),
    415: (400, INVALID),
    422: (400, INVALID),
    429: (429, LIMITED),
    501: (501, "NOT_IMPLEMENTED"),
    503: (503, UNAVAILABLE),
    504: (504, TOO_SLOW),
}
"""Upstream status -> what goes out. Any other 4xx is BAD_REQUEST, the rest a broken engine reply."""

# The databricks SDK repeats a call whose message holds one of these, whatever its status.
NEVER_SAID: Final = (
    "unexpected error",
    "please try again later or try a faster operation",
    "rpc token bucket limit has been exceeded",
    "clusternotreadyexception",
    "unknown worker environment",
    "there is no worker environment with id",
    "does not have any associated worker environments",
    "unknownworkerenvironmentexception",
)
_MESSAGE_CHARACTERS: Final = 2000


class Shape(Enum):
    """Which client will read the error."""

    SERVING = "serving"
    """`{"error_code", "message"}`; a top-level `error` would replace the message in the databricks SDK."""
    OPENAI = "openai"


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer of the router's own. `retry_after` in whole seconds, 0 = no header. `unsafe` says that the
    request may have run, so no client should repeat it by itself. `fields` are further header lines,
    `asked` the pause in seconds that the upstream itself asked for."""

    status: int
    code: str
    message: str
    retry_after: int = 0
    unsafe: bool = False
    fields: bytes = b""
    asked: int = 0


class Refused(Exception):
    """The request ends here with `failure`. `close` when the connection cannot be trusted any further."""

    def __init__(self, failure: Failure, *, close: bool = False) -> None:
        self.failure = failure
        self.close = close
        super().__init__(failure.message)


def refused(message: str, code: str = INVALID, status: int = 400, *, close: bool = False) -> Refused:
    """A client error."""
    return Refused(Failure(status, code, message), close=close)


def unknown(message: str) -> Refused:
    """What is named is not there, or not for this caller to know of."""
    return refused(message, NO_SUCH_RESOURCE, 404)


def unavailable(message: str, retry_after: int = 1) -> Failure:
    """Nothing ran; the client may repeat it."""
    return Failure(503, UNAVAILABLE, message, retry_after)


def lost(message: str) -> Failure:
    """The request was sent and no whole answer came: it may have run."""
    return Failure(504, TOO_SLOW, message, unsafe=True)


def broken(message: str) -> Failure:
    """The upstream's reply is not one that can be passed on; the request may have run."""
    return Failure(500, BROKEN, message, unsafe=True)


def body(failure: Failure, shape: Shape) -> bytes:
    """The JSON body of `failure` for the client that `shape` names."""
    if shape is Shape.SERVING:
        return orjson.dumps({"error_code": failure.code, "message": failure.message})
    return orjson.dumps({"error": _openai_error(failure), "error_code": failure.code})


def event(failure: Failure) -> bytes:
    """The one server-sent event that says a stream broke off."""
    return b"data: " + orjson.dumps({"error": _openai_error(failure)}) + b"\n\n"


def fields(failure: Failure) -> bytes:
    """The header lines that belong to `failure`, beside those of its body."""
    lines = failure.fields
    if failure.status == 401:
        lines += b"WWW-Authenticate: Bearer\r\n"
    if failure.retry_after:
        lines += b"Retry-After: %d\r\n" % failure.retry_after
    if failure.unsafe:
        lines += b"servestate-retry: unsafe\r\nx-should-retry: false\r\n"
    return lines


def from_upstream(status: int, content: bytes, retry_after: int) -> Failure:
    """An upstream's error answer as one of ours, with its own words where they can be found.
    `retry_after` 0: the upstream named none."""
    other = (400, BAD_REQUEST) if 400 <= status < 500 else (500, BROKEN)
    status_out, code = _UPSTREAM.get(status, other)
    message = _said(content) or f"the model's server answered {status}"
    if status_out not in (429, 503):
        return Failure(status_out, code, message)
    return Failure(status_out, code, message, min(max(retry_after, 1), 120), asked=retry_after)


def in_stream(payload: bytes) -> Failure | None:
    """The error that a stream begins with, as engines send one that they noticed after their 200; None where
    it begins with something else."""
    line = payload.lstrip(b"\r\n").partition(b"\n")[0]
    if not line.startswith((b'data: {"error"', b'data:{"error"')):
        return None
    try:
        error = orjson.loads(line[5:])["error"]
    except ValueError:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if type(code) is int and 400 <= code < 600 else 500
    return from_upstream(status, line[5:], 0)


def _openai_error(failure: Failure) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(failure.status) or (
        "invalid_request_error" if failure.status < 500 else "server_error"
    )
    code = "rate_limit_exceeded" if failure.status == 429 else failure.code
    return {"message": failure.message, "type": kind, "param": None, "code": code}


def _said(content: bytes) -> str:
    """The message in an engine's error body: `error.message`, `message` or `detail`; else ""."""
    try:
        value: Any = orjson.loads(content)
    except ValueError:
        return ""
    if isinstance(value, dict) and isinstance(value.get("error"), (dict, str)):
        value = value["error"]
    if isinstance(value, dict):
        value = value.get("message") or value.get("detail")
        value = value if isinstance(value, str) or value is None else orjson.dumps(value).decode()
    if not isinstance(value, str) or any(phrase in value.lower() for phrase in NEVER_SAID):
        return ""
    return value[:_MESSAGE_CHARACTERS]
