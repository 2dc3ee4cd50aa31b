"""The router is the allow-list in front of the engine: whatever is not listed reaches nobody."""

from __future__ import annotations

import asyncio

import pytest

from servestate.runtime.router import client
from servestate.runtime.router.http.errors import Shape
from servestate.runtime.router.routes import (
    HealthCheck,
    Invocation,
    ModelList,
    NotFound,
    OpenAICall,
    resolve,
    resolve_with_management,
)
from tests.router import rig
from tests.router.corpus import names
from tests.router.rig import CHAT, read_answer, serving
from tests.router.upstreams import Upstream, entity, table

FORBIDDEN = names("""
/pause /resume /is_paused /abort_requests /update_weights /update_weights_from_disk
/init_weight_transfer_engine /finish_weight_update /get_world_size /sleep /wake_up /is_sleeping
/collective_rpc /reset_prefix_cache /reset_mm_cache /reset_encoder_cache /server_info
/scale_elastic_ep /is_scaling_elastic_ep /start_profile /stop_profile /tokenize /detokenize
/tokenizer_info /pooling /classify /score /rerank /generate /inference/v1/generate /invocations
/ping /health /live /ready /load /metrics /version /docs /redoc /openapi.json /v1/load_lora_adapter
/v1/unload_lora_adapter /v1/responses /v1/messages /v1/score /v1/rerank /v1/audio/transcriptions
/v1/audio/translations /v1/images/generations /v1/files /v1/models/x /v1 /v2/rerank /slots
/slots/0?action=erase /props /infill /lora-adapters /apply-template /completion /embedding /api/chat
/api/generate /api/pull /api/delete /debug/pprof /flush_cache /get_weights_by_name
/set_internal_state /release_memory_occupation /resume_memory_occupation /v1/chat /v1/completions/x
/ /.well-known/x
""")
"""Of engines: administration, development, other tasks, and what says too much."""
PATH = "/v1/chat/completions"


def spellings() -> list[str]:
    """Forbidden paths, plain and dressed up, and allowed ones that must not match when dressed up."""
    found = list(FORBIDDEN)
    for path in FORBIDDEN:
        bare = path.lstrip("/")
        found += [f"/v1/../{bare}", f"/v1/%2e%2e/{bare}", f"/v1/..%2f{bare}", f"//{bare}", f"/v1//{bare}"]
        found += [
            f"/%2f{bare}",
            f"/v1/chat/completions/../../../{bare}",
            f"/./{bare}",
            f"/{bare}/",
            f"/{bare};x",
            f"/{bare}%00",
            f"/{bare}?x=/v1/chat/completions",
            f"/v1/chat/completions%3f/../../{bare}",
            f"/v1/chat/completions%23/{bare}",
            f"/serving-endpoints/chat-ep/served-models/current/..%2f..%2f..%2f{bare}",
            f"/serving-endpoints/chat-ep/invocations/../../../{bare}",
            f"/%c0%ae%c0%ae/{bare}",
            f"/v1%5c..%5c{bare}",
            "/" + "".join(f"%{byte:02x}" for byte in bare.encode()),
            "/" + "".join(f"%25{byte:02x}" for byte in bare.encode()),
            "/" + bare.upper(),
        ]
    for odd in (
        "%00",
        "%0d%0a",
        ";x=y",
        "%3b",
        "%5c..",
        "\\..",
        "%2500",
        "%c0%af",
        "%ff",
        "%",
        "%2",
        "%zz",
        "/",
    ):
        found += [PATH + odd, f"/v1{odd}/chat/completions", f"/serving-endpoints/chat-ep{odd}/invocations"]
    found += [PATH.upper(), "/V1/chat/completions", "/v1/chat%2fcompletions", "/v1/chat/completions%20"]
    found += [
        "/v1/./chat/completions",
        "/v1/chat/./completions",
        "/v1/chat//completions",
        "/v1/%2e/chat/completions",
    ]
    found += [
        "/serving-endpoints/../invocations",
        "/serving-endpoints/%2e/invocations",
        "/serving-endpoints//invocations",
    ]
    found += [
        "/serving-endpoints/chat-ep/served-models/current",
        "/serving-endpoints/chat-ep",
        "/v1/chat-ep/invocations",
    ]
    found += ["/serving-endpoints/chat-ep/served-models//invocations", "/serving-endpoints/a%2fb/invocations"]
    return list(dict.fromkeys(found))


def test_a_thousand_spellings_reach_nobody() -> None:
    async def body() -> None:
        paths = spellings()
        assert len(paths) >= 1000
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            for path in paths:
                for method in ("POST", "GET"):
                    got = await rig.ask(r, rig.request(CHAT, path, method=method))
                    assert got.status in (400, 404), (method, path)
            absolute = b"POST http://127.0.0.1/pause HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
            assert (await rig.ask(r, absolute)).status == 400
            assert up.connections == 0

    rig.run(body())


def test_the_check_notices_a_router_that_passes_paths_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With whatever follows the root taken for a query, forbidden paths do reach the upstream."""
    monkeypatch.setattr(client, "resolve", lambda method, target: Invocation("chat-ep"))

    async def body() -> None:
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            for path in FORBIDDEN:
                assert (await rig.ask(r, rig.request(CHAT, path))).status == 200
            assert len(up.received) == len(FORBIDDEN)

    rig.run(body())


def test_what_is_listed_is_found_also_when_encoded() -> None:
    assert resolve(b"POST", b"/serving-endpoints/a/invocations") == Invocation("a")
    assert resolve(b"POST", b"/serving-endpoints/a%2db/invocations?x=/") == Invocation("a-b")
    assert resolve(b"POST", b"/serving-endpoints/a/served-models/b/invocations") == Invocation("a", "b")
    assert resolve(b"POST", b"/serving-endpoints/chat/invocations") == Invocation("chat")
    for surface, shape in ((b"/v1", Shape.OPENAI), (b"/serving-endpoints", Shape.SERVING)):
        assert resolve(b"GET", surface + b"/models") == ModelList(shape)
        for name in (b"chat/completions", b"completions", b"embeddings"):
            found = resolve(b"POST", surface + b"/" + name)
            assert isinstance(found, OpenAICall)
            assert found.shape is shape
            assert isinstance(resolve(b"GET", surface + b"/" + name), NotFound)


def test_the_health_path_is_that_one_and_no_other() -> None:
    assert resolve(b"GET", b"/healthz") == resolve(b"GET", b"/healthz?x=/") == HealthCheck()
    assert resolve_with_management(b"GET", b"/healthz") == HealthCheck()
    for method in (b"POST", b"PUT", b"DELETE"):
        assert isinstance(resolve(method, b"/healthz"), NotFound)
    for path in (
        b"/healthz/",
        b"/healthz/x",
        b"//healthz",
        b"/Healthz",
        b"/health%7a",
        b"/v1/healthz",
        b"/health",
    ):
        assert isinstance(resolve(b"GET", path), NotFound), path


def test_unknown_names_are_404_in_the_clients_shape() -> None:
    async def body() -> None:
        async with Upstream() as up, serving(table(entity("current", 100, up.url))) as r:
            got = await rig.ask(r, rig.request(b'{"model":"nope","messages":[]}'))
            assert (got.status, got.json()["error"]["code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
            for path in ("nope/invocations", "chat-ep/served-models/nope/invocations"):
                got = await rig.ask(r, rig.request(CHAT, f"/serving-endpoints/{path}"))
                assert (got.status, got.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
            got = await rig.ask(r, rig.request(CHAT, "/nope"))
            assert (got.status, got.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
            assert up.received == []

    rig.run(body())


def test_a_large_body_for_nobody_is_not_read() -> None:
    async def body() -> None:
        async with serving(table(entity("current", 100))) as r:
            reader, writer = await r.connect()
            writer.write(b"POST /nope HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\nxxx")
            got = await asyncio.wait_for(read_answer(reader), 2)
            assert (got.status, got.closed) == (404, True)
            writer.close()

    rig.run(body())
