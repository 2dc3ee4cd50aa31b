"""Header hygiene: nothing passes, either way, that a table does not allow."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from servestate.planner.table import Backend, Credential, EntityRoute
from servestate.planner.table_file import decode, encode
from servestate.runtime.router.http import heads
from servestate.runtime.router.http.headers import TO_CLIENT
from tests.router import rig
from tests.router.corpus import names
from tests.router.rig import CHAT, ask, request, serving
from tests.router.upstreams import Upstream, answer, entity, says, table

# Hop-by-hop, spoofing, engine control, caller identity, framing twins.
NEVER_UP = names("""
Connection Keep-Alive Proxy-Authenticate Proxy-Authorization Proxy-Connection TE Trailer Upgrade
Authorization authorization AUTHORIZATION Cookie X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto
X-Forwarded-Port X-Forwarded-Prefix Forwarded X-Real-IP X-Client-IP True-Client-IP Via X-Request-Id
x-request-id X_Request_Id X-Request-ID-2 X-Data-Parallel-Rank X-Engine-Id api-key X-Api-Key
x-goog-api-key OpenAI-Organization OpenAI-Project anthropic-version x-servestate-entity
x-servestate-replica served-model-name Content_Length Transfer_Encoding Content-Encoding
Content-Type-Options Accept-Encoding Accept-Language Origin Referer Range If-None-Match Expect-CT
X-HTTP-Method-Override X-Original-URL X-Rewrite-URL Destination Front-End-Https X-Stainless-Lang
X-Stainless-Retry-Count Idempotency-Key Date Max-Forwards Pragma Cache-Control Priority
HTTP2-Settings Alt-Svc Early-Data X-Amzn-Trace-Id X-B3-TraceId b3 baggage Sec-Fetch-Mode DNT From
Warning Accept_Encoding User_Agent Host_ X-Host Server X-Powered-By Set-Cookie Location Refresh Link
""")

NEVER_DOWN = names("""
Connection Keep-Alive Proxy-Authenticate Proxy-Connection Trailer Upgrade Set-Cookie Location Server
Date Via X-Powered-By WWW-Authenticate Authorization Access-Control-Allow-Origin X-Request-Id
x-request-id served-model-name x-servestate-entity x-servestate-replica x-servestate-endpoint
x-should-retry servestate-retry X-Accel-Redirect X-Accel-Buffering X-Sendfile
Strict-Transport-Security Content_Type Content_Length Transfer_Encoding Alt-Svc Link Refresh
Clear-Site-Data X-Frame-Options Content-Disposition Vary ETag Age Expires Last-Modified
Accept-Ranges Content-Range Report-To NEL Server-Timing X-Runtime X-Engine-Key
anthropic-organization-id openai-organization cf-ray X-Envoy-Upstream X-Forwarded-For
X-Internal-Token Public-Key-Pins Proxy-Authorization TE X-Cache X-Served-By Sourcemap
""")

SENT = sorted(names("host content-type authorization x-org accept traceparent x-request-id content-length"))
OURS = set(
    names("""
served-model-name x-servestate-endpoint x-servestate-entity x-servestate-replica content-length x-request-id
x-servestate-config-version x-servestate-attempts x-servestate-queue-ms x-servestate-overhead-ms
""")
)
"""What the router itself says to clients."""
FRAMING = {b"host", b"content-length", b"transfer-encoding", b"connection"}
Leaks = Callable[[], Coroutine[object, object, list[str]]]


def test_the_lists_are_long_enough() -> None:
    assert len(NEVER_UP) + len(NEVER_DOWN) + len(PLACES) * len(ODD) >= 150


async def leaks_up() -> list[str]:
    """The names of fields that come from a caller and reach, or change, what an upstream gets."""
    credential = Credential("Authorization", "Bearer ", "{{secrets/s/k}}")
    found = []
    async with Upstream() as up:
        routes = table(entity("current", 100, up.url, credential=credential, headers=(("X-Org", "o"),)))
        environ = {"SERVESTATE_SECRET_S__K": "key"}
        keys = rig.keyring(good={"user_name": "ann", "rights": ["query"]})
        async with (
            serving(routes, environ=environ) as r,
            serving(routes, environ=environ, keyring=keys) as known,
        ):
            for name in NEVER_UP:
                value = {"TE": "trailers", "Connection": "x-a", "Upgrade": "h2c"}.get(name, "spoofed-value")
                fields = f"{name}: {value}\r\nx-a: hop\r\nAccept: a/b\r\ntraceparent: 00-1\r\n"
                # Who needs no token may not be a web page.
                at, own = (known, rig.bearer("good")) if name == "Origin" else (r, "")
                got = await ask(at, request(CHAT, fields=own + fields))
                assert got.status == 200, name
                sent = up.received[-1].fields
                ours = {"authorization": "Bearer key", "x-request-id": got.fields["x-request-id"]}
                kept = sorted(k for k, _ in sent) == SENT and ours.items() <= dict(sent).items()
                if b"spoofed-value" in up.received[-1].head or not kept:
                    found.append(name)
            assert len(up.received) == len(NEVER_UP)
    return found


async def leaks_down() -> list[str]:
    """The names of fields that come from an upstream and reach, or change, what a client gets."""
    allowed = OURS | {name.decode() for name in TO_CLIENT}
    found = []
    async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
        for name in NEVER_DOWN:
            up.script = says(answer(fields=f"{name}: spoofed-value\r\nopenai-model: m\r\n"))
            got = await ask(r, request())
            assert (got.status, got.fields["openai-model"]) == (200, "m"), name
            if b"spoofed-value" in got.head or not set(got.fields) <= allowed:
                found.append(name)
        assert len(up.received) == len(NEVER_DOWN)
    return found


@pytest.mark.parametrize("leaks", [leaks_up, leaks_down])
def test_nothing_forbidden_passes(leaks: Leaks) -> None:
    async def body() -> None:
        assert await leaks() == []

    rig.run(body())


@pytest.mark.parametrize(("leaks", "names"), [(leaks_up, NEVER_UP), (leaks_down, NEVER_DOWN)])
def test_the_check_notices_a_router_that_passes_what_it_does_not_know(
    leaks: Leaks, names: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a deny list in the place of the table, one that holds the framing alone, nearly all must pass."""

    def all_but_framing(
        fields: Iterable[tuple[bytes, bytes]], allowed: Mapping[bytes, bytes], named: set[bytes]
    ) -> bytes:
        return b"".join(b"%b: %b\r\n" % field for field in fields if field[0] not in FRAMING)

    monkeypatch.setattr(heads, "lines", all_but_framing)

    async def body() -> None:
        assert len(await leaks()) > 0.9 * len(names)

    rig.run(body())


def test_what_connection_names_goes_neither_way() -> None:
    async def body() -> None:
        hop = answer(
            fields="Connection: Cache-Control, openai-model\r\nCache-Control: x\r\nopenai-model: y\r\n"
        )
        async with Upstream(says(hop)) as up, serving(table(entity("current", 100, up.url))) as r:
            fields = "Connection: traceparent, Accept\r\ntraceparent: 1\r\nAccept: a/b\r\nUser-Agent: u\r\n"
            got = await ask(r, request(fields=fields))
            names = {name for name, _ in up.received[0].fields}
            assert "user-agent" in names
            assert not names & {"traceparent", "accept"}
            assert not got.fields.keys() & {"cache-control", "openai-model"}
            assert got.fields["content-type"] == "application/json"

    rig.run(body())


ODD = ("a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\0b")
CREDENTIAL = Credential("Authorization", "Bearer ", "{{secrets/s/k}}")
PLACES: dict[str, Callable[[EntityRoute, str], EntityRoute]] = {
    "entity": lambda route, odd: replace(route, name=odd),
    "header": lambda route, odd: replace(route, headers=(("X-Org", odd),)),
    "header name": lambda route, odd: replace(route, headers=((odd, "x"),)),
    "replica": lambda route, odd: replace(route, backends=(Backend(odd, "http://h"),)),
    "path": lambda route, odd: replace(route, backends=(Backend("a#0", f"http://h/{odd}"),)),
    "host": lambda route, odd: replace(route, backends=(Backend("a#0", f"http://h{odd}"),)),
    "credential": lambda route, odd: replace(route, credential=replace(CREDENTIAL, prefix=odd)),
    "credential's header": lambda route, odd: replace(route, credential=replace(CREDENTIAL, header=odd)),
}


def test_no_table_holds_what_would_split_a_header() -> None:
    """Where the router reads its table: whoever wrote it, what becomes part of a head is checked again."""
    for place, put in PLACES.items():
        for odd in ODD:
            text = encode(table(put(entity("a", 100, "http://h"), odd)))
            with pytest.raises(ValueError, match="endpoints"):
                pytest.fail(f"{place} {odd!r} was taken: {decode(text)}")
    assert decode(encode(table(entity("a", 100, "http://h")))).endpoints


def test_a_models_name_is_no_part_of_a_head() -> None:
    async def body() -> None:
        for odd in ODD:
            async with Upstream() as up, serving(table(entity("a", 100, up.url, model=odd))) as r:
                assert (await ask(r, request())).status == 200
                assert b"Evil" not in up.received[0].head
                assert json.loads(up.received[0].body)["model"] == odd

    rig.run(body())


def test_values_that_would_split_a_header_from_an_upstream_are_no_answer() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            for value in ("a\rb", "a\nb", "a\0b", "a\r\n b", "a\x7fb"):
                up.script = says(answer(fields=f"openai-model: {value}\r\n"))
                got = await ask(r, request())
                assert got.status == 500, value
                assert got.fields["servestate-retry"] == "unsafe"

    rig.run(body())
