"""What a browser can be talked into sending to the management listener has no effect, whatever the verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from servestate.runtime.router.http import browser
from servestate.runtime.router.http.browser import own_names
from tests.router import rig
from tests.router.rig import CHAT, Rig, ask, request, serving
from tests.router.upstreams import Upstream, entity, table

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
TARGETS = ["/api/2.0/serving-endpoints", "/api/2.0/serving-endpoints/x", "/.well-known/databricks-config"]
TARGETS += ["/v1/models", "/v1/chat/completions", "/serving-endpoints/chat-ep/invocations", "/nowhere"]
EVIL_HOSTS = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "localhost."]
EVIL_HOSTS += [
    "127.0.0.2",
    "0.0.0.0",
    "[::]",
    "[::2]:80",
    "[0:0:0:0:0:0:0:1]",
    "2130706433",
    "127.1",
    "LOCALHOST_",
]
FOREIGN = ["Origin: null\r\n", "Origin: http://127.0.0.1:8081\r\n", "origin:\r\n", "ORIGIN: http://evil\r\n"]
FOREIGN += ["Sec-Fetch-Site: cross-site\r\n", "Sec-Fetch-Site: same-site\r\n", "Sec-Fetch-Site:\r\n"]
FOREIGN += ["Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n", "Connection: origin\r\nOrigin: x\r\n"]
GOOD_HOSTS = [
    "127.0.0.1",
    "127.0.0.1:1",
    "localhost:99999",
    "LocalHost",
    "[::1]",
    "[::1]:8081",
    "Models.Example:443",
]
GOOD = ["", "Sec-Fetch-Site: none\r\n", "Sec-Fetch-Site: Same-Origin\r\n", "Referer: http://evil/\r\n"]
KEYS = rig.keyring("models.example")


async def attack(r: Rig) -> list[str]:
    """Which requests were not refused as they should be."""
    wrong = []
    for method in METHODS:
        for target in TARGETS:
            for host in EVIL_HOSTS if target == TARGETS[0] else EVIL_HOSTS[:2]:
                got = await ask(r, request(CHAT, target, "", method, host), r.management_port)
                if (got.status, got.closed) != (403, True):
                    wrong.append(f"{method} {target} {host}: {got.status}")
            for fields in FOREIGN if target == TARGETS[0] else FOREIGN[:2]:
                fields += "Content-Type: text/plain\r\n"
                got = await ask(r, request(CHAT, target, fields, method), r.management_port)
                if (got.status, got.closed) != (403, True):
                    wrong.append(f"{method} {target} {fields}: {got.status}")
    return wrong


def test_no_web_page_gets_through(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        async with (
            Upstream(path=path) as api,
            Upstream() as up,
            serving(table(entity("a", 100, up.url)), api=path, keyring=KEYS) as r,
        ):
            assert await attack(r) == []
            got = await ask(r, request(CHAT, fields=FOREIGN[0]), r.management_port)
            assert got.json()["error_code"] == "PERMISSION_DENIED"
            assert (api.connections, up.connections) == (0, 0)

    rig.run(body())


def test_who_calls_the_listener_by_its_names_gets_through(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "api.sock"
        async with (
            Upstream(path=path),
            Upstream() as up,
            serving(table(entity("a", 100, up.url)), api=path, keyring=KEYS) as r,
        ):
            for host in GOOD_HOSTS:
                for fields in GOOD:
                    for target in ("/v1/chat/completions", TARGETS[0]):
                        got = await ask(r, request(CHAT, target, fields, host=host), r.management_port)
                        assert got.status == 200, (host, fields, target)

    rig.run(body())


def test_no_web_page_asks_models_where_nobody_needs_a_token() -> None:
    """A page may send any text as text/plain without asking first, or be of a name that leads here."""

    async def body() -> None:
        async with Upstream() as up, serving(table(entity("a", 100, up.url))) as r:
            for target in ("/v1/chat/completions", "/serving-endpoints/chat-ep/invocations"):
                for fields in FOREIGN:
                    fields += "Content-Type: text/plain\r\n"
                    got = await ask(r, request(CHAT, target, fields))
                    assert got.status == 403, (target, fields)
                for fields in GOOD:
                    assert (await ask(r, request(CHAT, target, fields))).status == 200
            large = request(CHAT + b" " * 200_000, fields=FOREIGN[0]).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            assert (await ask(r, large)).status == 403, "before any of it is read"
            assert len(up.received) == 2 * len(GOOD)
        keys = rig.keyring(good={"user_name": "ann", "rights": ["query"]})
        async with Upstream() as up, serving(table(entity("a", 100, up.url)), keyring=keys) as r:
            got = await ask(r, request(CHAT, fields=FOREIGN[0] + rig.bearer("good")))
            assert got.status == 200  # a page that has a token was given it

    rig.run(body())


def test_an_early_refusal_comes_before_the_body(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(table(entity("a", 100)), api=tmp_path / "api.sock") as r:
            reader, writer = await r.connect(r.management_port)
            writer.write(b"PUT /api/x HTTP/1.1\r\nHost: evil\r\nContent-Length: 10\r\n\r\n")
            got = await rig.bounded(rig.read_answer(reader), 2)
            assert (got.status, got.closed) == (403, True)
            writer.close()

    rig.run(body())


def test_names_change_with_the_keyring() -> None:
    async def body() -> None:
        async with serving(table(entity("a", 100)), api=Path("/nonexistent/api.sock"), keyring=KEYS) as r:
            models = request(b"", "/v1/models", method="GET", host="new.example")
            assert (await ask(r, models, r.management_port)).status == 403
            r.let_in(rig.keyring("NEW.example"))
            await rig.until(lambda: "new.example" in r.router.desk.access.keyring.hosts)
            assert (await ask(r, models, r.management_port)).status == 200

    rig.run(body())


def test_the_listener_is_called_by_its_own_host_unless_that_means_all() -> None:
    assert own_names("Models.Internal") == {"127.0.0.1", "localhost", "::1", "models.internal"}
    assert "10.1.2.3" in own_names("10.1.2.3")
    for every in ("0.0.0.0", "::"):
        assert own_names(every) == {"127.0.0.1", "localhost", "::1"}


def test_the_check_notices_a_router_without_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "check", lambda *_: None)

    async def body() -> None:
        path = tmp_path / "api.sock"
        async with Upstream(path=path) as api, serving(table(entity("a", 100)), api=path) as r:
            wrong = await attack(r)
            assert len(wrong) == len(METHODS) * (len(EVIL_HOSTS) + len(FOREIGN) + 4 * (len(TARGETS) - 1))
            assert len(api.received) > 100

    rig.run(body())
