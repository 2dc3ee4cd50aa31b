"""Whether a port is answered by our own engine, whether it says that it is ready, and whether it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servestate.providers import proc
from servestate.providers.engines.engine import FirstRequest

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 2.0

FIRST_ANSWER_S = 60.0
"""How long one token may take: the first one after a start compiles and warms up."""

SHOWN = 200
"""Characters of an answer that is not the one hoped for."""


def strangers(port: int, shim_pid: int) -> set[int]:
    """The listening sockets of 127.0.0.1:`port` that no process below the shim holds."""
    listening = proc.listeners(port)
    if not listening:
        return set()
    ours: set[int] = set()
    for pid in proc.descendants([shim_pid], proc.processes()):
        ours |= proc.sockets(pid)
    return listening - ours


async def ask(url: str) -> str:
    """GET the URL: "" when it answers 200, else in a few words what it does instead."""
    import httpx  # here: `servestate plan` probes nothing and must start fast

    try:
        async with _client(TIMEOUT_S) as client:
            answer = await client.get(url)
    except httpx.HTTPError as error:
        return f"no answer yet ({type(error).__name__})"
    return "" if answer.status_code == 200 else f"answers {answer.status_code}"


async def ask_first(origin: str, request: FirstRequest, key: str) -> str:
    """Send the first request: "" when it is really answered, else in a few words what happens instead."""
    import httpx

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with _client(FIRST_ANSWER_S) as client:
            answer = await client.post(f"{origin}{request.path}", json=request.body, headers=headers)
        found = answer.json() if answer.status_code == 200 else None
    except httpx.HTTPError as error:
        return f"no first answer yet ({type(error).__name__})"
    except ValueError:
        return "its first answer is not JSON"
    if found is None:
        return f"its first answer is {answer.status_code}: {answer.text[:SHOWN]}"
    real = isinstance(found, dict) and found.get(request.answer)
    return "" if real else f'its first answer has no "{request.answer}"'


def _client(timeout_s: float) -> httpx.AsyncClient:
    import ssl

    import httpx

    # No proxy from the environment, no certificate store: this only ever talks plain HTTP to our own engine.
    transport = httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), trust_env=False)
    return httpx.AsyncClient(transport=transport, timeout=timeout_s)
