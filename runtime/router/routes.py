"""What a request's method and target ask for. Only what is listed here exists; all else is not found.

A path is split first and each segment decoded once, so an encoded slash can never become a separator, and
names hold so few characters that dot segments, `;`, `\\` or NUL match nothing. Paths of the management API
are only checked to mean the same to everybody: which of them exist, the API knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from servestate.runtime.router.http.errors import Shape
from servestate.runtime.router.messages.body import CHAT, COMPLETION, EMBEDDING, Kind

_NAME: Final = re.compile(rb"(?!\.{1,2}$)[A-Za-z0-9_.\-]{1,128}")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_OPENAI: Final = {("chat", "completions"): CHAT, ("completions",): COMPLETION, ("embeddings",): EMBEDDING}
_DISCOVERY: Final = b"/.well-known/databricks-config"
_METRICS: Final = b"/metrics"
_HEALTH: Final = b"/healthz"
_API_METHODS: Final = frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"})
_API_SEGMENT: Final = re.compile(rb"(?!\.{1,2}$)[A-Za-z0-9_.\-~@+:=, ]{1,256}")
_SURFACES: Final = {"v1": Shape.OPENAI, "serving-endpoints": Shape.SERVING}


@dataclass(frozen=True, slots=True)
class Invocation:
    """A query of an endpoint by path. `entity` "" = by the split."""

    endpoint: str
    entity: str = ""
    shape: Shape = Shape.SERVING


@dataclass(frozen=True, slots=True)
class OpenAICall:
    """A query of the endpoint that the body's `model` names."""

    kind: Kind
    shape: Shape


@dataclass(frozen=True, slots=True)
class ModelList:
    """The list of endpoints and entities, as models."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Whether requests are served, for load balancers: anybody may ask."""

    shape: Shape = Shape.SERVING


@dataclass(frozen=True, slots=True)
class ToManagement:
    """A request to the management API."""

    shape: Shape = Shape.SERVING


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """What all workers have counted, as Prometheus reads it."""

    shape: Shape = Shape.SERVING


@dataclass(frozen=True, slots=True)
class NotFound:
    """No such path or verb. `shape` is still that of the client most likely to read the answer."""

    shape: Shape


Route = Invocation | OpenAICall | ModelList | HealthCheck | ToManagement | MetricsPage | NotFound


@lru_cache(maxsize=1024)
def resolve(method: bytes, target: bytes) -> Route:
    """The route of `target`, whose query string means nothing here."""
    path = target.partition(b"?")[0]
    if method == b"GET" and path == _HEALTH:
        return HealthCheck()
    segments = _segments(path)
    shape = Shape.OPENAI if target.startswith(b"/v1/") else Shape.SERVING
    if not segments or segments[0] not in _SURFACES:
        return NotFound(shape)
    shape = _SURFACES[segments[0]]
    rest = tuple(segments[1:])
    if method == b"GET":
        return ModelList(shape) if rest == ("models",) else NotFound(shape)
    if method == b"POST":
        if rest in _OPENAI:
            return OpenAICall(_OPENAI[rest], shape)
        if shape is Shape.SERVING:
            return _invocation(rest)
    return NotFound(shape)


@lru_cache(maxsize=1024)
def resolve_with_management(method: bytes, target: bytes) -> Route:
    """As `resolve`, on the listener that the management API answers on as well."""
    path = target.partition(b"?")[0]
    if (method == b"GET" and path == _DISCOVERY) or (method in _API_METHODS and _is_of_api(path)):
        return ToManagement()
    if method == b"GET" and path == _METRICS:
        return MetricsPage()
    return resolve(method, target)


def _is_of_api(path: bytes) -> bool:
    """Whether `path` is below /api, and read alike by whoever decodes it. It may end in a slash."""
    root, *segments = path.removeprefix(b"/").split(b"/")
    if segments[-1:] == [b""]:
        segments.pop()
    return root == b"api" and bool(segments) and all(map(_API_SEGMENT.fullmatch, map(_decoded, segments)))


def _invocation(rest: tuple[str, ...]) -> Route:
    match rest:
        case (endpoint, "invocations"):
            return Invocation(endpoint)
        case (endpoint, "served-models", entity, "invocations"):
            return Invocation(endpoint, entity)
    return NotFound(Shape.SERVING)


def _segments(path: bytes) -> list[str]:
    """The decoded segments of `path`, or none if any of them could be no name."""
    segments = []
    for raw in path.split(b"/")[1:]:
        segment = _decoded(raw)
        if not _NAME.fullmatch(segment):
            return []
        segments.append(segment.decode("ascii"))
    return segments


def _decoded(segment: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), segment)
