"""Which entity serves a request, and with which bytes: every decision before the first byte goes out."""

from __future__ import annotations

import time
from typing import Protocol

from servestate.runtime.router import body, parameters
from servestate.runtime.router.access import Access, Visitor, permit
from servestate.runtime.router.body import CUSTOM, Document, Kind
from servestate.runtime.router.errors import LIMITED, Failure, Refused, refused, unknown
from servestate.runtime.router.heads import RequestHead
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.rates import Denied, Rates
from servestate.runtime.router.routes import Invocation, OpenAICall, Route, ToManagement
from servestate.runtime.router.routing import LiveEntity, LiveTable, list_of_models

Call = tuple[LiveEntity, Kind, bytes]
"""On whose behalf, which kind of body, and the body to send."""


class Desk(Protocol):
    """What requests are decided by: the table in use, and who may come in."""

    table: LiveTable
    access: Access
    limits: Limits


def check_head(desk: Desk, route: Route, head: RequestHead) -> None:
    """All that can be refused before the body was read. Raises Refused."""
    access = desk.access
    if isinstance(route, ToManagement):
        if not access.open:  # the API checks again, but strangers shall not send it large bodies
            access.visitor(head.authorization)
        return
    visitor = None if access.open else access.visitor(head.authorization)
    if isinstance(route, Invocation):
        permit(desk.table.endpoints.get(route.endpoint), route.endpoint, visitor)


def choose(desk: Desk, route: Invocation | OpenAICall, head: RequestHead, raw: bytes) -> Call:
    """The call that a request asks for. Raises Refused.

    A body that names no endpoint, or that comes too often, takes no turn of a split. One that its entity
    refuses does: entities of one endpoint may differ, and a turn that waited for a body to its liking would
    stop all the others.
    """
    access = desk.access
    visitor = None if access.open else access.visitor(head.authorization)
    served = ""
    if isinstance(route, OpenAICall):
        kind = route.kind
        document = body.parse(raw)
        if kind.name not in document:
            raise refused(f"the body needs {kind.name!r}")
        name = body.model_of(document)
        if "/" in name:
            name, _, served = name.partition("/")
        endpoint = desk.table.endpoints.get(name)
        if endpoint is None or visitor is not None:  # looked at here first: most often all is well
            endpoint = permit(endpoint, name, visitor)
    else:
        served = route.entity
        endpoint = permit(desk.table.endpoints.get(route.endpoint), route.endpoint, visitor)
        raw, document, kind = _invocation(raw)
    if served and served not in endpoint.by_name:
        raise unknown(f"the endpoint {endpoint.name!r} has no served entity {served!r}")
    if endpoint.rates is not None:
        _count(endpoint.rates, visitor or access.visitor(head.authorization))
    if not served:
        entity = endpoint.entities[endpoint.split.pick()]
        return entity, kind, _for_entity(entity, kind, raw, document, desk.limits)
    entity = endpoint.by_name[served]
    sent = _for_entity(entity, kind, raw, document, desk.limits)
    entity.counters.direct += 1
    return entity, kind, sent


def models(desk: Desk, head: RequestHead) -> bytes:
    """The body of the list of models that the caller may query. Raises Refused."""
    if desk.access.open:
        return desk.table.models
    visitor = desk.access.visitor(head.authorization)
    return list_of_models(e for e in desk.table.endpoints.values() if visitor.may_query(e))


def _invocation(raw: bytes) -> tuple[bytes, Document, Kind]:
    document = body.parse(raw)
    if parameters.EXTRA in document:
        raw, document = parameters.merged(raw, document)
    kind = body.kind_of(document)
    parameters.check(kind, document)
    return raw, document, kind


def _count(rates: Rates, visitor: Visitor) -> None:
    # The loop's own clock stands still while it works, by as much as calls would come too early.
    admitted = rates.admit(visitor.caller, 0, time.monotonic())
    if isinstance(admitted, Denied):
        what = "more calls a minute than the rate limits of the endpoint allow"
        raise Refused(Failure(429, LIMITED, what, admitted.wait_s))


def _for_entity(entity: LiveEntity, kind: Kind, raw: bytes, document: Document, limits: Limits) -> bytes:
    route = entity.route
    if route.fixed_path and len(raw) > limits.external_body_bytes:
        raise refused(f"a body to an external model is at most {limits.external_body_bytes} bytes")
    if route.task:
        body.check_task(kind, route.task, route.name)
    return body.rewrite(raw, document, "" if kind is CUSTOM else route.model)
