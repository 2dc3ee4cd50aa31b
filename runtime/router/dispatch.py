"""Which entity serves a request, and with which bytes: every decision before the first byte goes out."""

from __future__ import annotations

from servestate.runtime.router import body
from servestate.runtime.router.body import CUSTOM, Kind
from servestate.runtime.router.errors import NO_SUCH_RESOURCE, Refused, refused
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.routes import Invocation, OpenAICall
from servestate.runtime.router.routing import LiveEntity, LiveTable

Call = tuple[LiveEntity, Kind, bytes]
"""On whose behalf, which kind of body, and the body to send."""


def choose(table: LiveTable, route: Invocation | OpenAICall, raw: bytes, limits: Limits) -> Call:
    """The call that a request asks for. Raises Refused.

    A body that names no endpoint takes no turn of a split. One that its entity refuses does: entities of one
    endpoint may differ, and a turn that waited for a body to its liking would stop all the others.
    """
    document = body.parse(raw)
    served = ""
    if isinstance(route, OpenAICall):
        kind = route.kind
        if kind.name not in document:
            raise refused(f"the body needs {kind.name!r}")
        name = body.model_of(document)
        if "/" in name:
            name, _, served = name.partition("/")
    else:
        name, served = route.endpoint, route.entity
        kind = body.kind_of(document)
    endpoint = table.endpoints.get(name)
    if endpoint is None:
        raise _unknown(f"there is no endpoint {name!r}")
    if not served:
        entity = endpoint.entities[endpoint.split.pick()]
        return entity, kind, _for_entity(entity, kind, raw, document, limits)
    if served not in endpoint.by_name:
        raise _unknown(f"the endpoint {name!r} has no served entity {served!r}")
    entity = endpoint.by_name[served]
    sent = _for_entity(entity, kind, raw, document, limits)
    entity.counters.direct += 1
    return entity, kind, sent


def _for_entity(entity: LiveEntity, kind: Kind, raw: bytes, document: body.Document, limits: Limits) -> bytes:
    route = entity.route
    if route.fixed_path and len(raw) > limits.external_body_bytes:
        raise refused(f"a body to an external model is at most {limits.external_body_bytes} bytes")
    if route.task:
        body.check_task(kind, route.task, route.name)
    return body.rewrite(raw, document, "" if kind is CUSTOM else route.model)


def _unknown(message: str) -> Refused:
    return refused(message, NO_SUCH_RESOURCE, 404)
