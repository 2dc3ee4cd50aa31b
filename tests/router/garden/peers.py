"""The peers of the garden: what is run for each, and what is missing where it cannot be."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = HERE.parents[2] / ".venv-garden" / "bin" / "python"
"""An environment of `requirements/garden.txt`, which `make garden` sets up."""

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off; client_max_body_size 64m; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend front
  bind 127.0.0.1:{port}
  default_backend back
backend back
  server one 127.0.0.1:{behind}
"""


@dataclass(frozen=True)
class Peer:
    """A server, or a proxy before Node, which then tells what the proxy made of it."""

    name: str
    program: str
    """What must be there for it to run."""
    command: Callable[[Path, int, int], list[str]]
    """From a folder of its own, its port and the port behind it."""
    proxy: bool = False

    def missing(self) -> str:
        """Why it cannot be run, or ""."""
        for program in (self.program, *(("node",) if self.proxy else ())):
            if shutil.which(program) is None:
                return f"{self.name} needs {program}, which is not installed"
        return ""


def _python(name: str) -> Peer:
    return Peer(
        name, str(PYTHON), lambda _, port, __: [str(PYTHON), str(HERE / "server.py"), name, str(port)]
    )


def _nginx(folder: Path, port: int, behind: int) -> list[str]:
    path = folder / "nginx.conf"
    path.write_text(NGINX.format(folder=folder, port=port, behind=behind))
    return ["nginx", "-p", str(folder), "-c", str(path), "-e", "stderr"]


def _haproxy(folder: Path, port: int, behind: int) -> list[str]:
    path = folder / "haproxy.cfg"
    path.write_text(HAPROXY.format(port=port, behind=behind))
    return ["haproxy", "-db", "-q", "-f", str(path)]


def _node(_: Path, port: int, __: int) -> list[str]:
    return ["node", str(HERE / "server.js"), str(port)]


NODE = Peer("node", "node", _node)
PEERS = (
    Peer("nginx", "nginx", _nginx, proxy=True),
    Peer("haproxy", "haproxy", _haproxy, proxy=True),
    NODE,
    *map(
        _python,
        ("uvicorn-httptools", "uvicorn-h11", "gunicorn", "aiohttp", "hypercorn", "tornado", "waitress"),
    ),
)


@asynccontextmanager
async def running(peer: Peer, folder: Path) -> AsyncIterator[int]:
    """The port on which the peer answers."""
    if peer.proxy:
        async with running(NODE, folder) as behind, _process(peer, folder, behind) as port:
            yield port
    else:
        async with _process(peer, folder, 0) as port:
            yield port


@asynccontextmanager
async def _process(peer: Peer, folder: Path, behind: int) -> AsyncIterator[int]:
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        *peer.command(folder, port, behind), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listens(process, port)
        yield port
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def _listens(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, "the peer ended by itself"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
