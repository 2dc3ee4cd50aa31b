"""The application: the table of routes put behind authentication, bounds, error bodies and the audit log.

Every request is authenticated before anything else is looked at, unknown paths included. What nothing here
expects ends as INTERNAL_ERROR, with its traceback on standard error and not in the answer.
"""

from __future__ import annotations

import json
import secrets as random
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from servestate.planner.access import Caller, Level, Right, grants_in, level_of
from servestate.planner.diagnostics import InvalidInput
from servestate.planner.version import VERSION
from servestate.providers.protocol import PermanentError, TransientError
from servestate.runtime.api.audit import AuditLog
from servestate.runtime.api.call import Call, Need, Refusal, Row, Text, denied, invalid, unavailable
from servestate.runtime.api.desk import Desk, findings, no_endpoint
from servestate.runtime.api.routes import BASE, ROWS
from servestate.runtime.api.shapes import Error
from servestate.runtime.api.wording import said
from servestate.runtime.store.protocol import StoreError

DEEPEST = 64
"""Levels of lists and objects in a body: well above any shape, and below what recursion can bear."""

_LEVELS = {Need.VIEW: Level.CAN_VIEW, Need.QUERY: Level.CAN_QUERY, Need.MANAGE: Level.CAN_MANAGE}
_RIGHTS = {Need.CREATE: Right.CREATE, Need.APPLY: Right.APPLY}
_BEARER = "bearer "
# In the router's words: whoever is refused does not learn which of the two has looked.
_UNKNOWN = Refusal(401, "UNAUTHENTICATED", "a valid access token is required: Authorization: Bearer TOKEN")
_NO_PATH = Refusal(404, "ENDPOINT_NOT_FOUND", "there is no such path or verb")
_NOBODY = Caller("")
_REFUSED = {
    400: "The request cannot be carried out",
    401: "No token, or one that is not known",
    403: "The caller may not",
    404: "There is no such thing",
    409: "Something else is in the way",
    503: "Not now",
}


def application(desk: Desk, audit: AuditLog) -> FastAPI:
    """The whole API."""
    app = FastAPI(title="servestate", version=VERSION, openapi_url=None, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    for row in ROWS:
        app.add_api_route(
            row.path,
            _endpoint(desk, row, audit),
            methods=[row.verb],
            summary=row.summary,
            response_model=None,
            responses=_answers(row),
            openapi_extra=_described(row),
            operation_id=f"{row.verb} {row.path}",
        )
        if row.path == BASE:
            app.add_api_route(
                f"{row.path}/", _endpoint(desk, row, audit), methods=[row.verb], include_in_schema=False
            )

    async def nothing_there(request: Request, error: Exception) -> Response:
        """Any path and verb that is in no row; whoever is not known does not learn even that."""
        caller = _caller(desk, request)
        refusal = _NO_PATH if caller is not None else _UNKNOWN
        _log(audit, desk, caller or _NOBODY, request, refusal.status, refusal.code, _id(request))
        return _refused(refusal, _id(request))

    app.add_exception_handler(HTTPException, nothing_there)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's documented way
    desk.document = app.openapi
    return app


def _answers(row: Row) -> dict[int | str, dict[str, Any]]:
    """What the document says of the answers."""
    good: dict[str, Any] = {"content": {"text/plain": {}}} if row.gives is None else {"model": row.gives}
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": text} for status, text in _REFUSED.items()
    }
    return {200: good, **refusals}


Endpoint = Callable[[Request], Awaitable[Response]]


def _endpoint(desk: Desk, row: Row, audit: AuditLog) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        id = _id(request)
        caller = _NOBODY
        refusal: Refusal | None = None
        answer = Response()
        try:
            caller = _authenticated(desk, row, request)
            _authorise(desk, row, caller, request)
            body = await _body(request, row.largest)
            call = Call(caller, _peer(request), id, request.path_params, request.query_params, body)
            answer = _answer(await row.handler(desk, call), id)
        except Refusal as error:
            refusal = error
        except InvalidInput as error:
            refusal = findings(error)
        except (StoreError, TransientError, PermanentError) as error:
            refusal = unavailable(said(str(error)), 2)
        except ClientDisconnect:
            refusal = invalid("the request broke off")
        except Exception:
            traceback.print_exc()
            refusal = Refusal(500, "INTERNAL_ERROR", "servestate has failed; its log says how")
        status, code = (200, "") if refusal is None else (refusal.status, refusal.code)
        if row.verb != "GET" or status in (401, 403):
            _log(audit, desk, caller, request, status, code, id)
        return answer if refusal is None else _refused(refusal, id)

    return endpoint


def _authenticated(desk: Desk, row: Row, request: Request) -> Caller:
    if row.need is Need.NOTHING:
        return _NOBODY
    caller = _caller(desk, request)
    if caller is None:
        raise _UNKNOWN
    return caller


def _caller(desk: Desk, request: Request) -> Caller | None:
    """Who calls; None where the token is missing, given twice or not known."""
    given = request.headers.getlist("authorization")
    if desk.keyring.open and not given:
        return desk.keyring.find(b"", time.time())
    if len(given) != 1 or given[0][: len(_BEARER)].lower() != _BEARER:
        return None
    return desk.keyring.find(given[0][len(_BEARER) :].strip().encode("latin-1"), time.time())


def _authorise(desk: Desk, row: Row, caller: Caller, request: Request) -> None:
    """Raises Refusal where the caller may not."""
    if right := _RIGHTS.get(row.need):
        if not caller.may(right):
            raise denied(f"this needs a token with the right {str(right)!r}")
        return
    wanted = _LEVELS.get(row.need)
    if wanted is None:
        return
    asked = request.path_params.get("name") or request.path_params.get("id", "")
    name = request.path_params.get("name") or desk.view.name_of(asked) or ""
    record, update = desk.view.state().endpoints.get(name), desk.ledger.get(name)
    level = desk.level(caller, record)
    if record is None and update is not None:  # its maker waits for the lock of somebody else
        level = level_of(caller, grants_in(json.dumps(update.block)))
    if (record is None and update is None) or level is Level.NONE:
        raise no_endpoint(asked)  # the very words of the request: an id tells no name
    if level < wanted:
        raise denied(f"this needs {wanted.name} on {name!r}")


async def _body(request: Request, largest: int) -> Any:
    """The parsed body, None for none. Raises Refusal."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > largest:
        raise _too_large(largest)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise _too_large(largest)
        parts.append(part)
    raw = b"".join(parts)
    if not raw.strip():
        return None
    try:
        value = orjson.loads(raw)
    except ValueError as error:
        raise invalid(f"the body is not valid JSON: {error}") from None
    if _is_deeper(value, DEEPEST):
        raise invalid(f"the body is nested deeper than {DEEPEST} levels")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie in each other over more levels than that."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(below, levels - 1) for below in value)


def _too_large(largest: int) -> Refusal:
    return invalid(f"the body is larger than {largest} bytes")


def _answer(value: Any, id: str) -> Response:
    if isinstance(value, Text):
        return Response(value.content, media_type=value.media_type, headers={"x-request-id": id})
    return Response(orjson.dumps(value), media_type="application/json", headers={"x-request-id": id})


def _refused(refusal: Refusal, id: str) -> Response:
    headers = {"x-request-id": id}
    if refusal.retry_after:
        headers["retry-after"] = str(min(max(refusal.retry_after, 1), 120))
    body = {"error_code": refusal.code, "message": said(refusal.message), **refusal.more}
    return Response(orjson.dumps(body), refusal.status, headers, "application/json")


def _peer(request: Request) -> str:
    """Where the request came from, as the router says; it alone reaches this socket."""
    return request.headers.get("x-servestate-peer", "local")


def _id(request: Request) -> str:
    found = request.scope.setdefault(
        "servestate.id", request.headers.get("x-request-id") or random.token_hex(8)
    )
    return str(found)


def _log(
    audit: AuditLog, desk: Desk, caller: Caller, request: Request, status: int, code: str, id: str
) -> None:
    try:
        audit.write(caller.name, _peer(request), request.method, request.url.path, status, code, id)
    except OSError as error:
        desk.tell("audit log", f"cannot be written: {error}")


# The document.


def _described(row: Row) -> dict[str, Any]:
    """What FastAPI cannot read off a handler: parameters and body."""
    names = [part[1:-1] for part in row.path.split("/") if part.startswith("{")]
    text = {"type": "string"}
    found: dict[str, Any] = {
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": text} for name in names),
            *({"name": name, "in": "query", "required": False, "schema": text} for name in row.query),
        ]
    }
    if row.takes is not None:
        schema = {"$ref": f"#/components/schemas/{row.takes.__name__}-Input"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    taken = {row.takes for row in ROWS if row.takes is not None}
    names, schemas = models_json_schema(
        [(model, "validation") for model in sorted(taken, key=lambda m: m.__name__)],
        ref_template="#/components/schemas/{model}-Part",
    )
    components = document["components"]["schemas"]
    for name, schema in schemas.get("$defs", {}).items():
        components[f"{name}-Part"] = schema
    for (model, _), reference in names.items():
        components[f"{model.__name__}-Input"] = reference
    return document
