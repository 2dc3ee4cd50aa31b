"""What a page in the operator's browser can send to the loopback management port: nothing of it has an
effect, although the site asks for no token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.api.wire import Answer, Connection, connected
from tests.clients.harness import Server, endpoint, external, ok, serving

API = "/api/2.0/serving-endpoints"
CREATE = json.dumps(endpoint("planted", external("far", "http://127.0.0.1:1"))).encode()
CHAT = b'{"messages": [{"role": "user", "content": "x"}]}'
FORM = b"name=planted&config=x"
REFUSED = (403, "PERMISSION_DENIED")


@dataclass(frozen=True)
class Attack:
    """A request as a browser sends it. `host` None: the listener's own."""

    verb: str
    path: str
    body: bytes = b""
    fields: tuple[str, ...] = ()
    host: str | None = None


EFFECTS = [
    ("POST", API, CREATE),
    ("POST", f"{API}/", CREATE),
    ("DELETE", f"{API}/victim", b""),
    ("PUT", f"{API}/victim/config", b'{"served_entities": []}'),
    ("PATCH", f"{API}/victim/tags", b'{"add_tags": [{"key": "planted"}]}'),
    ("PUT", f"{API}/victim/ai-gateway", b"{}"),
    ("PUT", f"{API}/victim/rate-limits", b'{"rate_limits": []}'),
    ("PATCH", f"{API}/victim/notifications", b'{"email_notifications": {}}'),
    ("POST", f"{API}/victim/cancel-update", b""),
    ("POST", "/serving-endpoints/victim/invocations", CHAT),
    ("POST", "/v1/chat/completions", CHAT),
]
"""All that has an effect, or costs something."""

READS = [("GET", API, b""), ("GET", f"{API}/victim", b""), ("GET", "/api/servestate/v1/openapi.json", b"")]
READS += [("GET", "/.well-known/databricks-config", b""), ("GET", "/v1/models", b""), ("HEAD", API, b"")]

REBOUND = ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "localhost.evil.example"]
REBOUND += ["a.localhost:{port}", "localhost.:{port}", "0.0.0.0:{port}", "127.1:{port}", "2130706433:{port}"]
REBOUND += [
    "0x7f000001:{port}",
    "017700000001:{port}",
    "127.0.0.2:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "[::]:{port}",
]

SIMPLE = [
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
]
ORIGINS = [
    "https://evil.example",
    "null",
    "http://127.0.0.1:{port}",
    "http://localhost:{port}",
    "file://",
    "",
]
SITES = ["cross-site", "same-site", "CROSS-SITE", "sideways"]


def attacks(port: int) -> Iterator[Attack]:
    """All of them."""
    for verb, path, body in EFFECTS:
        yield Attack(verb, path, body, ("Origin: https://evil.example", "Content-Type: application/json"))
        yield Attack(verb, path, body, ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"))
        yield Attack(verb, path, body, host=f"evil.example:{port}")
    for verb, path, body in READS:
        yield Attack(verb, path, body, ("Origin: https://evil.example",))
        yield Attack(verb, path, body, ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: image"))
        yield Attack(verb, path, body, host=f"evil.example:{port}")
    for host in REBOUND:
        yield Attack("POST", API, CREATE, host=host.format(port=port))
        yield Attack("GET", API, host=host.format(port=port))
    for origin in ORIGINS:
        yield Attack("POST", API, CREATE, (f"Origin: {origin.format(port=port)}",))
        for kind in SIMPLE:
            fields = (f"Origin: {origin.format(port=port)}", f"Content-Type: {kind}")
            yield Attack("POST", API, CREATE if kind.startswith("text") else FORM, fields)
    for site in SITES:
        yield Attack("DELETE", f"{API}/victim", b"", (f"Sec-Fetch-Site: {site}",))
        yield Attack("POST", API, CREATE, (f"Sec-Fetch-Site: {site}", "Content-Type: text/plain"))
    for path in (API, f"{API}/victim", "/v1/chat/completions", "/nothing"):
        for verb in ("POST", "PUT", "PATCH", "DELETE"):
            asks = (f"Access-Control-Request-Method: {verb}", "Access-Control-Request-Private-Network: true")
            yield Attack("OPTIONS", path, b"", ("Origin: https://evil.example", *asks))
    yield Attack("POST", API, CREATE, ("Origin: https://evil.example", "X-HTTP-Method-Override: DELETE"))
    yield Attack("POST", f"{API}?_method=DELETE", CREATE, ("Origin: https://evil.example",))
    yield Attack("POST", API, CREATE, ("Origin: https://evil.example", "Upgrade: websocket"))
    yield Attack("GET", API, b"", ("Origin: https://evil.example", "X-Forwarded-Host: 127.0.0.1"))
    yield Attack("GET", API, b"", (f"X-Forwarded-Host: 127.0.0.1:{port}",), "evil.example")


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A site without tokens, where nothing but these rules stands between a page and the API."""
    blocks = (endpoint("victim", external("far", "http://127.0.0.1:1")),)
    with serving(tmp_path_factory.mktemp("open"), blocks) as server:
        yield server


def sent(connection: Connection, attack: Attack) -> Answer:
    """The answer to it."""
    return connection.ask(attack.verb, attack.path, attack.body, *attack.fields, host=attack.host)


def written(site: Server) -> tuple[int, list[bytes]]:
    """What any effect would change: the serial, the ledger, and the audit log of writes."""
    folder = site.site.folder / ".servestate"
    paths: list[Path] = [*folder.glob("api.db*"), *folder.glob("audit.jsonl*"), folder / "table.json"]
    return site.site.state().serial, [p.read_bytes() for p in sorted(paths) if not p.name.endswith("-shm")]


def test_no_page_has_an_effect(open_site: Server) -> None:
    ok(open_site.call("PATCH", "/victim/tags", {"add_tags": [{"key": "kept"}]}))  # so that there is a log
    before = written(open_site)
    found, count = [], 0
    port = int(open_site.url.rpartition(":")[2])
    for attack in attacks(port):
        count += 1
        with connected(open_site.url) as connection:
            got = sent(connection, attack)
        refused = got.status == 403 if attack.verb == "HEAD" else (got.status, error_code(got)) == REFUSED
        if not refused and not (got.status == 400 and "Upgrade: websocket" in attack.fields):
            found.append(f"{attack}: {got.status} {got.body[:100]!r}")
        if any(name.startswith("access-control-") for name in got.headers):
            found.append(f"{attack}: {got.headers}")
    assert found == []
    assert count >= 60
    assert written(open_site) == before
    assert open_site.names() == {"victim"}


def error_code(got: Answer) -> str:
    """The code, in either shape of body; "" where it is no refusal."""
    found = got.json
    return str(found.get("error_code") or found.get("error", {}).get("code", ""))


def test_the_same_requests_by_a_program_are_taken(open_site: Server) -> None:
    """What makes the difference is what browsers say; without it the attacks would all have worked."""
    with connected(open_site.url) as connection:
        for verb, path, body in (*EFFECTS, *READS):
            if verb == "DELETE" or "chat" in path or "invocations" in path:
                continue
            assert sent(connection, Attack(verb, path, body)).status not in (401, 403), path
        for kind in SIMPLE:
            got = sent(connection, Attack("POST", API, CREATE, (f"Content-Type: {kind}",)))
            assert (got.status, got.code) == (409, "RESOURCE_ALREADY_EXISTS")
        own = ("Sec-Fetch-Site: same-origin", "Referer: http://evil.example/")
        assert sent(connection, Attack("GET", API, b"", own)).status == 200
    ok(open_site.call("DELETE", "/planted"))
