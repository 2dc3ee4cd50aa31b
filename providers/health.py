"""Whether a port is answered by our own engine, and whether it says that it is ready."""

from __future__ import annotations

from servestate.providers import proc

TIMEOUT_S = 2.0


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
    import ssl  # here, and httpx too: `servestate plan` probes nothing and must start fast

    import httpx

    # No proxy from the environment, no certificate store: this only ever talks plain HTTP to loopback.
    transport = httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), trust_env=False)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S) as client:
            answer = await client.get(url)
    except httpx.HTTPError as error:
        return f"no answer yet ({type(error).__name__})"
    return "" if answer.status_code == 200 else f"answers {answer.status_code}"
