"""Real clients through the router: the OpenAI SDK, httpx, and an upstream that speaks TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import openai
import pytest

from servestate.runtime.router.http import upstream
from tests.router import rig
from tests.router.rig import ask, request, serving
from tests.router.upstreams import Received, Upstream, answer, chunk, entity, says, sse_head, table

COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "engine-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
MESSAGES = [{"role": "user", "content": "hi"}]


def event(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    value = {**COMPLETION, "object": "chat.completion.chunk", "choices": [choice]}
    return chunk(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")


def client_of(r: rig.Rig, surface: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="x", base_url=f"{r.router.url}/{surface}", max_retries=0)


@pytest.mark.parametrize("surface", ["v1", "serving-endpoints"])
def test_openai(surface: str) -> None:
    async def body() -> None:
        async with (
            Upstream(says(answer(json.dumps(COMPLETION).encode()))) as up,
            serving(table(entity("a", 100, up.url))) as r,
            client_of(r, surface) as client,
        ):
            done = await client.chat.completions.create(model="chat-ep", messages=MESSAGES)
            assert done.choices[0].message.content == "hi"
            assert [m.id async for m in client.models.list()] == ["chat-ep", "chat-ep/a"]
            with pytest.raises(openai.NotFoundError, match="no endpoint 'nope'"):
                await client.chat.completions.create(model="nope", messages=MESSAGES)
            up.script = says(answer(b'{"error":{"message":"slow down"}}', "429 x", "Retry-After: 3\r\n"))
            with pytest.raises(openai.RateLimitError, match="slow down"):
                await client.chat.completions.create(model="chat-ep", messages=MESSAGES)

    rig.run(body())


@pytest.mark.parametrize("surface", ["v1", "serving-endpoints"])
def test_openai_streams_whole_and_broken(surface: str) -> None:
    async def whole(received: Received, writer: asyncio.StreamWriter) -> None:
        end = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        writer.write(sse_head() + event("a\u2028") + chunk(b": ping\n\n") + event("b") + end)

    async def broken(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sse_head() + event("a"))
        await writer.drain()
        writer.close()

    async def said(client: openai.AsyncOpenAI, text: list[str]) -> None:
        stream = await client.chat.completions.create(model="chat-ep", messages=MESSAGES, stream=True)
        async for part in stream:
            text.append(part.choices[0].delta.content or "")  # noqa: PERF401 - kept when the stream breaks

    async def body() -> None:
        async with (
            Upstream(whole) as up,
            serving(table(entity("a", 100, up.url))) as r,
            client_of(r, surface) as client,
        ):
            text: list[str] = []
            await said(client, text)
            assert text == ["a\u2028", "b"]
            up.script, text = broken, []
            with pytest.raises(openai.APIError, match="in the middle of its answer"):
                await said(client, text)
            assert text == ["a"]

    rig.run(body())


def test_httpx_sees_cut_answers() -> None:
    async def cut(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"x" * 100)[:-1])
        await writer.drain()
        writer.close()

    async def body() -> None:
        async with (
            Upstream(cut) as up,
            serving(table(entity("a", 100, up.url))) as r,
            httpx.AsyncClient() as c,
        ):
            with pytest.raises(httpx.RemoteProtocolError):
                await c.post(f"{r.router.url}/v1/chat/completions", json={"model": "chat-ep", "messages": []})

    rig.run(body())


def certificate(folder: Path) -> tuple[Path, Path]:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key", "-out", folder / "cert"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert", folder / "key"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command for a certificate")
def test_https_upstreams_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
        writer.write(answer(b"secret", fields="Connection: close\r\n"))
        await writer.drain()
        writer.close()

    async def body() -> None:
        cert, key = certificate(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with serving(
            table(entity("a", 100, f"https://localhost:{port}/v1/chat", fixed_path=True))
        ) as r:
            got = await ask(r, request())
            assert (got.status, got.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
            monkeypatch.setattr(upstream, "_tls_context", lambda: ssl.create_default_context(cafile=cert))
            got = await ask(r, request())
            assert (got.status, got.body) == (200, b"secret")
            assert r.inflight() == 0
        server.close()

    rig.run(body())
