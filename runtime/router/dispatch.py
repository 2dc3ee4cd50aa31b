"""Which entity serves a request, and with which bytes: every decision before the first byte goes out.

A request is asked for in two steps, since a guard may have to look at it in between: `ask` says who wants
what, `choose` counts it against the limits and gives it its entity.
"""

from __future__ import annotations

import time
from typing import Final

from servestate.planner.access import Caller, Level, level_of
from servestate.runtime.router.access import Access, Visitor, permit
from servestate.runtime.router.http import errors
from servestate.runtime.router.http.errors import (
    LIMITED,
    PERMISSION_DENIED,
    Failure,
    Refused,
    refused,
    unknown,
)
from servestate.runtime.router.http.heads import RequestHead
from servestate.runtime.router.limits import Limits
from servestate.runtime.router.messages import body, parameters, tokens
from servestate.runtime.router.messages.body import CHAT, COMPLETION, CUSTOM, Document, Kind
from servestate.runtime.router.messages.passage import Passage
from servestate.runtime.router.parties import Desk
from servestate.runtime.router.quota.mutex import Uncountable
from servestate.runtime.router.quota.rates import UNCOUNTABLE, Admission, Denied, Rates
from servestate.runtime.router.routes import Invocation, OpenAICall, Route, ToManagement
from servestate.runtime.router.routing import LiveEndpoint, LiveEntity, list_of_models

monotonic: Final = time.monotonic

_NEEDED: Final = body.OURS | parameters.CHECKED | {"model"}
_ENTITY_FIELD: Final = b"x-servestate-entity"


class Call:
    """What a request asks for, and once it was let in, who serves it.

    Asked for: of `endpoint` the served entity `served` ("" = by the split), in the body `raw`, which means
    `document`. `visitor` is None where no tokens are declared.

    Decided: `entity` and the `body` that it gets; `how` it was found (`split` or `direct`). `measured`:
    usage is wanted of the answer, and `hides_usage` that the caller did not ask for the event that tells it.
    `kept` is the body as it is written down, if this one is: as it came, but for `extra_params` and what a
    guard masked. `admission` stands where limits hold.

    `passage`: of the body only the beginning is here, `body` is no more either, and `document` what that says
    in whole.
    """

    __slots__ = (
        "admission",
        "body",
        "caller",
        "document",
        "endpoint",
        "entity",
        "head",
        "hides_usage",
        "how",
        "kept",
        "kind",
        "measured",
        "passage",
        "prompt",
        "raw",
        "served",
        "visitor",
    )

    entity: LiveEntity
    body: bytes
    how: str

    def __init__(
        self,
        endpoint: LiveEndpoint,
        served: str,
        kind: Kind,
        raw: bytes,
        document: Document,
        head: RequestHead,
        visitor: Visitor | None,
        passage: Passage | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.served = served
        self.kind = kind
        self.raw = raw
        self.document = document
        self.head = head
        self.visitor = visitor
        self.passage = passage
        self.caller: Caller | None = None if visitor is None else visitor.caller
        self.admission: Admission | None = None
        self.prompt: int | None = None  # tokens of it, once they are estimated
        self.measured = self.hides_usage = False
        self.kept: bytes | None = None

    def body_for(self, entity: LiveEntity, limits: Limits) -> bytes:
        """The body as `entity` gets it. Raises Refused where it does not take one of this kind."""
        if self.passage is not None:
            return self._beginning_for(entity, limits, self.passage)
        if entity.external and len(self.raw) > limits.external_body_bytes:
            raise _too_large(limits)
        kind = self.kind
        if entity.task:
            body.check_task(kind, entity.task, entity.name)
        return body.rewrite(self.raw, self.document, "" if kind is CUSTOM else entity.model)

    def _beginning_for(self, entity: LiveEntity, limits: Limits, passage: Passage) -> bytes:
        kind = self.kind
        if entity.task:
            body.check_task(kind, entity.task, entity.name)
        if entity.external and passage.length > limits.external_body_bytes:
            raise _too_large(limits)
        return passage.first("" if kind is CUSTOM else entity.model)

    def prompt_tokens(self) -> int:
        """Tokens of the prompt, estimated."""
        if self.prompt is None:
            self.prompt = tokens.prompt_estimate(self.kind, self.document)
        return self.prompt

    def let_go(self) -> None:
        """Hold no more of the body: its answer has begun, so it is sent nowhere else, and may take hours."""
        if self.measured:
            self.prompt_tokens()
        self.raw = self.body = b""
        self.document = {}

    def prefix(self) -> bytes:
        """The beginning of the prompt."""
        return tokens.prefix_of(self.kind, self.document)


def _too_large(limits: Limits) -> Refused:
    return refused(f"a body to an external model is at most {limits.external_body_bytes} bytes")


def check_head(desk: Desk, route: Route, head: RequestHead) -> None:
    """All that can be refused before the body was read. Raises Refused."""
    access = desk.access
    if isinstance(route, ToManagement):
        if not access.open:  # the API checks again, but strangers shall not send it large bodies
            access.visitor(head.authorization)
        return
    visitor = _visitor(access, head)
    if isinstance(route, Invocation):
        permit(desk.table.endpoints.get(route.endpoint), route.endpoint, visitor)


def check_metrics(desk: Desk, head: RequestHead) -> None:
    """Raises Refused for a caller who may not see every endpoint: the metrics name them all."""
    access = desk.access
    if not access.open and level_of(access.visitor(head.authorization).caller, ()) < Level.CAN_VIEW:
        raise refused("metrics need a token that may view every endpoint", PERMISSION_DENIED, 403)


def _visitor(access: Access, head: RequestHead) -> Visitor | None:
    """Who asks, None where nobody needs a token, but then it must not be a web page. Raises Refused."""
    if not access.open:
        return access.visitor(head.authorization)
    if head.foreign:
        raise refused("requests of web pages are not taken without access tokens", PERMISSION_DENIED, 403)
    return None


def ask(desk: Desk, route: Invocation | OpenAICall, head: RequestHead, raw: bytes) -> Call:
    """What a whole request asks for. Raises Refused."""
    access = desk.access
    visitor = _visitor(access, head)
    if isinstance(route, OpenAICall):
        kind = route.kind
        document = body.parse(raw)
        if kind.name not in document:
            raise refused(f"the body needs {kind.name!r}")
        endpoint, served = _named(desk, document, visitor)
    else:
        served = route.entity
        endpoint = permit(desk.table.endpoints.get(route.endpoint), route.endpoint, visitor)
        raw, document, kind = _invocation(raw)
    served = _served(endpoint, served, head)
    return Call(endpoint, served, kind, raw, document, head, visitor)


def ask_early(
    desk: Desk, route: Invocation | OpenAICall, head: RequestHead, beginning: bytes, length: int
) -> Call | None:
    """What a request asks for of whose body, of that `length`, only the `beginning` is here; None where it
    takes the whole to know, or to serve it. Raises Refused."""
    visitor = _visitor(desk.access, head)
    served = ""
    if isinstance(route, Invocation):
        served = route.entity
        endpoint = permit(desk.table.endpoints.get(route.endpoint), route.endpoint, visitor)
        if not endpoint.passes:
            return None
    try:
        passage = Passage(beginning, length)
    except Refused:  # the whole of it will be judged by a parser, and refused in its words
        return None
    document = passage.document
    if passage.breaks_off in _NEEDED:
        return None
    if isinstance(route, OpenAICall):
        kind = route.kind
        if "model" not in document or kind.name not in passage.keys:
            return None
        endpoint, served = _named(desk, document, visitor)
        if not endpoint.passes:
            return None
    else:
        if len(passage.keys & body.DECIDING) != 1 or parameters.EXTRA in passage.keys:
            return None
        kind = body.kind_of(passage.keys)
        parameters.check(kind, document)
        passage.kind = kind
    served = _served(endpoint, served, head)
    return Call(endpoint, served, kind, b"", document, head, visitor, passage)


def _named(desk: Desk, document: Document, visitor: Visitor | None) -> tuple[LiveEndpoint, str]:
    """The endpoint that a body names, and the served entity, if it names one. Raises Refused."""
    name, served = body.model_of(document), ""
    if "/" in name:
        name, _, served = name.partition("/")
    endpoint = desk.table.endpoints.get(name)
    if endpoint is None or visitor is not None:  # looked at here first: most often all is well
        endpoint = permit(endpoint, name, visitor)
    return endpoint, served


def _served(endpoint: LiveEndpoint, served: str, head: RequestHead) -> str:
    """Which served entity the request names, "" if none. Raises Refused."""
    if endpoint.named_by_header and not served:
        served = head.field(_ENTITY_FIELD).decode("latin-1")
    if served and served not in endpoint.by_name:
        raise unknown(f"the endpoint {endpoint.name!r} has no served entity {served!r}")
    return served


def choose(desk: Desk, call: Call) -> None:
    """Count the call against the limits and decide who serves it. Raises Refused.

    A body that names no endpoint, or that comes too often, takes no turn of a split. One that its entity
    refuses does: entities of one endpoint may differ, and a turn that waited for a body to its liking would
    stop all the others.
    """
    endpoint = call.endpoint
    if endpoint.rates is not None:
        call.admission = _admit(endpoint.rates, call, desk.access)
    try:
        if call.served:
            call.entity = endpoint.by_name[call.served]
            call.how = "direct"
        else:
            split = endpoint.split
            call.entity = endpoint.entities[split.pick(_key(call, desk.access) if split.wants_key else "")]
            call.how = "split"
        if endpoint.measures or endpoint.sampled is not None:
            _prepare_records(call)
        call.body = call.body_for(call.entity, desk.limits)
    except BaseException as error:
        # Whatever it was: a place that is never given back would be one fewer for ever.
        if call.admission is not None:
            call.admission.ended(0, monotonic())
        if isinstance(error, Uncountable):
            raise _uncountable() from None
        raise


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
    kind = body.kind_of(document.keys())
    parameters.check(kind, document)
    return raw, document, kind


def _prepare_records(call: Call) -> None:
    """What is to be known of the request afterwards."""
    endpoint = call.endpoint
    if endpoint.sampled is not None and next(endpoint.sampled):
        call.kept = call.raw
    call.measured = endpoint.measures
    streams = call.document.get("stream") is True and call.kind in (CHAT, COMPLETION)
    if call.measured and streams and not tokens.asks_usage(call.document):
        call.raw, call.document = tokens.asking_usage(call.raw, call.document)
        call.hides_usage = True


def _key(call: Call, access: Access) -> str:
    """What a sticky split goes by, "" where the request has none. Where no tokens are declared, whoever sends
    the same token is the same caller, as for limits."""
    sticky = call.endpoint.traffic.sticky
    assert sticky is not None, "only a sticky split wants a key"
    match sticky.source:
        case "header":
            return call.head.field(sticky.name.lower().encode("latin-1")).decode("latin-1")
        case "body":
            value = call.document.get(sticky.name)
            if value is None or isinstance(value, str):
                return value or ""
            return body.written(value).decode()
        case _:
            caller = call.caller or access.visitor(call.head.authorization).caller
            return f"{caller.kind}:{caller.name}" if call.caller is not None else caller.token


def _admit(rates: Rates, call: Call, access: Access) -> Admission:
    wanted = tokens.reservation(call.kind, call.document) if rates.counts_tokens else 0
    caller = call.caller or access.visitor(call.head.authorization).caller
    # The loop's own clock stands still while it works, by as much as calls would come too early.
    verdict = rates.admit(caller, wanted, monotonic())
    if not isinstance(verdict, Denied):
        return verdict
    if verdict.limit == UNCOUNTABLE:
        raise _uncountable()
    what = f"the limit of the endpoint is reached: {verdict.limit}"
    if verdict.never:
        what = f"the request may use more tokens than the limit gives in a minute: {verdict.limit}"
    raise Refused(Failure(429, LIMITED, what, verdict.wait_s, fields=verdict.fields))


def _uncountable() -> Refused:
    """What cannot be counted is not let in: else limits and splits would be those of nobody."""
    return Refused(errors.unavailable("the counts that the workers share cannot be had"))
