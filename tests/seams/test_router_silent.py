"""A router that is there and does not answer is not a router that is not there."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from servestate.providers.protocol import TransientError
from servestate.runtime.router_link import ControlSocket, router_status
from tests.cli.harness import ONE, Site, bundle, local, until
from tests.ports import free_port


@pytest.fixture
def routed(site: Site) -> tuple[Site, int]:
    """A site with an endpoint and a router; its pid."""
    site.write(bundle(ONE, listen=f"127.0.0.1:{free_port()}"))
    site.apply()
    router = site.start("serve")
    until((site.folder / ".servestate" / "router.sock").exists, "the router is up")
    return site, router.pid


@pytest.mark.slow
def test_nothing_is_stopped_while_a_paused_router_may_still_route_to_it(routed: tuple[Site, int]) -> None:
    site, router = routed
    before = {str(address) for address in site.state().instances}
    listen = (site.folder / "endpoints.yaml").read_text().split("listen: ")[1].split("\n")[0]
    site.write(bundle({"solo": {"only": local("2")}}, listen=listen))
    os.kill(router, signal.SIGSTOP)
    try:
        ended = site.run("apply", "--auto-approve")
        assert ended.code == 4, (ended.out, ended.err)
        assert "SS609" in ended.err, ended.err
        assert "does not answer" in ended.err, ended.err
        assert before < {str(address) for address in site.state().instances}
        assert "does not answer" in site.run("status").ok().out
    finally:
        os.kill(router, signal.SIGCONT)
    site.apply()
    assert not before & {str(address) for address in site.state().instances}


async def _half_an_answer(path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 \r\n\r\n{"table_ver')
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(TransientError, match="does not answer"):
            await router_status(path)


def test_half_an_answer_is_no_answer(tmp_path: Path) -> None:
    asyncio.run(_half_an_answer(tmp_path / "s"))


def test_no_router_is_nothing_to_wait_for(tmp_path: Path) -> None:
    asyncio.run(ControlSocket(tmp_path / "s").adopted(7))
