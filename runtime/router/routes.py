"""What a request's method and target ask for. Only what is listed here exists; all else is not found.

A path is split first and each segment decoded once, so an encoded slash can never become a separator, and
names hold so few characters that dot segments, `;`, `\\` or NUL match nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from servestate.runtime.router.body import CHAT, COMPLETION, EMBEDDING, Kind
from servestate.runtime.router.errors import Shape

_NAME = re.compile(rb"(?!\.{1,2}$)[A-Za-z0-9_.\-]{1,128}")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_OPENAI = {("chat", "completions"): CHAT, ("completions",): COMPLETION, ("embeddings",): EMBEDDING}
_SURFACES = {"v1": Shape.OPENAI, "serving-endpoints": Shape.SERVING}


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
class NotFound:
    """No such path or verb. `shape` is still that of the client most likely to read the answer."""

    shape: Shape


Route = Invocation | OpenAICall | ModelList | NotFound


@lru_cache(maxsize=1024)
def resolve(method: bytes, target: bytes) -> Route:
    """The route of `target`, whose query string means nothing here."""
    segments = _segments(target.partition(b"?")[0])
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
        segment = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), raw)
        if not _NAME.fullmatch(segment):
            return []
        segments.append(segment.decode("ascii"))
    return segments
