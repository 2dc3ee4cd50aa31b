"""T84: somebody else answers on the port of an engine that ended."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from servestate.providers import health
from servestate.providers.protocol import Failed, Ready

pytestmark = pytest.mark.slow


class Thief(BaseHTTPRequestHandler):
    """Says 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.mark.parametrize("act", ["kill", "remove"])
def test_a_thief_of_the_port_never_makes_it_ready(place, tiny, settle, act):
    async def go():
        provider, spec = place.provider(), place.spec(tiny)
        launched = await provider.launch(spec, place.marks())
        assert await settle(provider, launched.handle, spec) == Ready()
        one = place.only()
        one.kill() if act == "kill" else one.remove(force=True)
        thief = ThreadingHTTPServer(("127.0.0.1", urlsplit(launched.url).port), Thief)
        threading.Thread(target=thief.serve_forever).start()
        try:
            assert isinstance(await provider.probe(launched.handle, spec), Failed)
        finally:
            thief.shutdown()
            thief.server_close()

    asyncio.run(go())


def test_a_thief_that_answers_in_the_midst_of_a_probe_is_found_out(place, tiny, settle, monkeypatch):
    """The engine ends after the first look, and the answer comes from somebody else."""

    async def go():
        provider, spec = place.provider(), place.spec(tiny)
        launched = await provider.launch(spec, place.marks())
        assert await settle(provider, launched.handle, spec) == Ready()

        async def stolen(url):
            place.only().kill()
            return ""

        monkeypatch.setattr(health, "ask", stolen)
        assert isinstance(await provider.probe(launched.handle, spec), Failed)

    asyncio.run(go())
