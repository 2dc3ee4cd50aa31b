"""Nothing answers that is in no row: neither a route that a framework brought along, nor a path that somebody
guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from servestate.planner.spec.site import Site
from servestate.runtime.api.app import application
from servestate.runtime.api.audit import AuditLog
from servestate.runtime.api.desk import Desk
from servestate.runtime.api.hands import Hands
from servestate.runtime.api.ledger import Ledger
from servestate.runtime.api.routes import BASE, ROWS
from servestate.runtime.api.site import SiteSource
from servestate.runtime.api.view import View
from servestate.runtime.keyring import keyring_of
from servestate.runtime.workspace import open_workspace
from tests.api.callers import ADMIN, Who
from tests.api.guarded import API, Guarded
from tests.api.wire import connected

NOBODY = Who("nobody", known=False, fields=())

OF_FRAMEWORKS = ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/swagger", "/swagger-ui.html"]
OF_FRAMEWORKS += ["/static/x.js", "/favicon.ico", "/robots.txt", "/debug", "/console", "/admin", "/login"]
OF_OTHERS = ["/", "/index.html", "/status", "/health", "/healthz/", "/ready", "/ping", "/version"]
OF_OTHERS += [
    "/config",
    "/config/update",
    "/key/generate",
    "/user/new",
    "/.env",
    "/.git/config",
    "/server-status",
]
OF_OTHERS += [
    "/v1",
    "/v1/",
    "/v1/files",
    "/v1/responses",
    "/load_lora_adapter",
    "/pause",
    "/tokenize",
    "/pooling",
]
OF_OTHERS += [
    "/invocations",
    "/score",
    "/api.sock",
    "/serving-endpoints",
    "/serving-endpoints/",
    "/api",
    "/api/",
]
OF_OTHERS += ["/.well-known/openid-configuration", "/oidc/v1/token", "/.well-known/", "/.well-known"]
BELOW_API = [
    "/api/2.0",
    "/api/2.0/",
    "/api/2.1/serving-endpoints",
    "/api/1.2/serving-endpoints",
    "/api/3.0/serving-endpoints",
    "/api/latest/serving-endpoints",
    "/api/2.0/serving-endpoint",
    "/api/2.0/Serving-Endpoints",
    "/api/2.0/SERVING-ENDPOINTS",
    "/api/2.0/serving_endpoints",
    "/api/2.0/serving-endpoints/shared/",
    "/api/2.0/serving-endpoints/shared/config/",
    "/api/2.0/serving-endpoints/shared/config",
    "/api/2.0/serving-endpoints/shared/tags",
    "/api/2.0/serving-endpoints/shared/permissions",
    "/api/2.0/serving-endpoints/shared/secrets",
    "/api/2.0/serving-endpoints/shared/served-models",
    "/api/2.0/serving-endpoints/shared/served-models/far",
    "/api/2.0/serving-endpoints/shared/served-models/far/logs/all",
    "/api/2.0/serving-endpoints/shared/invocations",
    "/api/2.0/serving-endpoints/shared:get/x",
    "/api/2.0/serving-endpoints/shared/metrics.json",
    "/api/2.0/serving-endpoints/get-model-optimization-info",
    "/api/2.0/serving-endpoints/get-model-optimization-info/a",
    "/api/2.0/permissions",
    "/api/2.0/permissions/serving-endpoints",
    "/api/2.0/permissions/serving-endpoints/",
    "/api/2.0/permissions/clusters/1",
    "/api/2.0/permissions/authorization/tokens",
    "/api/2.0/preview/scim/v2/Me",
    "/api/2.0/token/create",
    "/api/2.0/tokens",
    "/api/2.0/secrets/get",
    "/api/2.0/secrets/list",
    "/api/2.0/jobs/list",
    "/api/2.0/external-function",
    "/api/2.0/docs",
    "/api/docs",
    "/api/openapi.json",
    "/api/redoc",
    "/api/2.0/openapi.json",
    "/api/servestate",
    "/api/servestate/v1",
    "/api/servestate/v1/",
    "/api/servestate/v2/openapi.json",
    "/api/servestate/v1/openapi.yaml",
    "/api/servestate/v1/openapi.json/",
    "/api/servestate/v1/config",
    "/api/servestate/v1/exec",
    "/api/servestate/v1/debug",
    "/api/servestate/v1/tokens",
    "/api/servestate/v1/secrets",
    "/api/servestate/v1/shutdown",
    "/api/.well-known/databricks-config",
    "/api/status",
    "/api/metrics",
    "/api/2.0/serving-endpoints/pt",
    "/api/2.0/serving-endpoints/pt/config",
    "/api/2.0/serving-endpoints/pt/shared/tags",
]
CROOKED = [
    "//api/2.0/serving-endpoints",
    "/api//2.0/serving-endpoints",
    "/api/2.0//serving-endpoints",
    "/API/2.0/serving-endpoints",
    "/api/2.0/./serving-endpoints",
    "/api/2.0/x/../serving-endpoints",
    "/api/2.0/%2e%2e/2.0/serving-endpoints",
    "/api/2.0/%2e/serving-endpoints",
    "/api/2.0/serving-endpoints%2fshared",
    "/api/2.0/serving-endpoints/shared%2fconfig",
    "/api/2.0/serving-endpoints/%2e%2e/serving-endpoints",
    "/api/2.0/serving-endpoints/shared%00",
    "/api/2.0/serving-endpoints/shared%0d%0ax:y",
    "/api/2.0/serving-endpoints;x=y/shared",
    "/api\\2.0\\serving-endpoints",
    "/%61pi/2.0/serving-endpoints",
    "/api/2.0/serving-endpoints/%",
    "/api/2.0/serving-endpoints/%zz",
    "/api/2.0/serving-endpoints/%ff",
    "/api/2.0/serving-endpoints/%c0%ae%c0%ae/x",
    "/x/../api/2.0/serving-endpoints",
    "/v1/../api/2.0/serving-endpoints",
    "/serving-endpoints/../api/2.0/serving-endpoints",
]
GUESSES = OF_FRAMEWORKS + OF_OTHERS + BELOW_API + CROOKED


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk without endpoints."""
    workspace = open_workspace(tmp_path, Site())
    source = SiteSource(tmp_path, Site(), None, print)
    keyring = keyring_of(Site().access, workspace.secrets)
    ledger = Ledger(workspace.ledger_path)
    return Desk(source, View(workspace), ledger, Hands(source.workspace), keyring, lambda *_: None)


def test_every_route_has_a_row(desk: Desk, tmp_path: Path) -> None:
    app = application(desk, AuditLog(tmp_path / "audit.jsonl"))
    registered = set()
    for route in app.routes:
        assert isinstance(route, APIRoute), f"{route!r} is beside the table"
        registered |= {(verb, route.path) for verb in route.methods}
    declared = {(row.verb, row.path) for row in ROWS}
    assert len(declared) == len(ROWS)
    assert registered == declared | {(row.verb, f"{BASE}/") for row in ROWS if row.path == BASE}
    desk.stop()


def test_the_document_tells_of_every_row(guarded: Guarded) -> None:
    document = guarded.ask("GET", "/api/servestate/v1/openapi.json").json
    told = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert told == {(row.verb, row.path) for row in ROWS}


def test_guesses_reach_nothing(guarded: Guarded) -> None:
    rows = {(row.verb, row.path) for row in ROWS}
    found, refused = [], set()
    with connected(guarded.server.url) as connection:
        for path in GUESSES:
            for verb in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
                known = {(verb, path.replace("shared", "{name}")), (verb, path.replace("/pt", "/{name}"))}
                if known & rows:
                    continue
                for who in (ADMIN, NOBODY):
                    got = connection.ask(verb, path, b"", *who.lines)
                    relayed = path in BELOW_API and verb not in ("HEAD", "OPTIONS")
                    status = 401 if who is NOBODY and relayed else 404
                    if got.status != status and not (path in CROOKED and got.status == 400):
                        found.append(f"{verb} {path} by {who.name}: {got.status} {got.body[:80]!r}")
                    if who is NOBODY:
                        refused.add((got.status, got.body))
    assert found == []
    assert len(GUESSES) >= 100
    bodies = {body for _, body in refused if body}
    assert len(bodies) == 3, bodies  # 401, and 404 in the shape of either client


@pytest.mark.parametrize("verb", ["TRACE", "CONNECT", "PROPFIND", "get", "G3T", "PRI", "SOURCE"])
def test_odd_verbs_are_no_requests(guarded: Guarded, verb: str) -> None:
    for path in (API, f"{API}/shared", "/nothing"):
        for who in (ADMIN, NOBODY):
            assert guarded.ask(verb, path, who).status == 400


def test_the_socket_behind_the_router_is_no_way_in(guarded: Guarded) -> None:
    path = guarded.workspace.api_path
    assert path.stat().st_mode & 0o777 == 0o600
    with connected(path) as connection:
        for guess in (*OF_FRAMEWORKS, *OF_OTHERS, *BELOW_API):
            assert connection.ask("GET", guess).status == 401, guess
        assert connection.ask("GET", API, b"", *ADMIN.lines, *ADMIN.lines).status == 401
        assert connection.ask("GET", API, b"", *ADMIN.lines).status == 200
        for guess in OF_FRAMEWORKS:
            assert connection.ask("GET", guess, b"", *ADMIN.lines).status == 404, guess


def test_nobody_chooses_who_the_log_says_it_was(guarded: Guarded) -> None:
    fields = (
        "x-servestate-peer: 6.6.6.6:6",
        "x-request-id: chosen",
        "X-Forwarded-For: 6.6.6.6",
        "Forwarded: for=6",
    )
    path = f"{API}/shared/tags"
    got = guarded.ask("PATCH", path, ADMIN, b"[]", *fields)
    line = guarded.audit()[-1]
    assert (line["path"], line["status"], line["caller"]) == (path, 400, "admin@example.com")
    assert line["peer"].startswith("127.0.0.1:")
    assert line["request_id"] == got.headers["x-request-id"] != "chosen"
    text = json.dumps(guarded.audit()[-1])
    assert "6.6.6.6" not in text
