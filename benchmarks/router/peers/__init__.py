"""The targets of the benchmark, a file for each or for a family."""

from __future__ import annotations

from benchmarks.router.peer import Peer
from benchmarks.router.peers.bare import Bare
from benchmarks.router.peers.envoy import Envoy
from benchmarks.router.peers.haproxy import HAProxy
from benchmarks.router.peers.litellm import LiteLLM
from benchmarks.router.peers.nginx import Nginx
from benchmarks.router.peers.portkey import Portkey
from benchmarks.router.peers.rust_routers import SglangRouter, Smg, VllmRouter
from benchmarks.router.peers.servestate import Servestate
from benchmarks.router.peers.traefik import Traefik

OURS, COMPILED, YARDSTICK, BARE = "servestate", "servestate compiled", Nginx.name, Bare.name

PEERS: tuple[Peer, ...] = (
    Nginx(),
    Servestate(compiled=True),
    Servestate(),
    Servestate(tokens=True),
    Bare(),
    HAProxy(),
    Envoy(),
    Traefik(),
    VllmRouter(),
    SglangRouter(),
    Smg(),
    Portkey(),
    LiteLLM(),
)
"""In the order of the table."""

LLM_ROUTERS = ("vllm-router", "sglang-router", "smg", "Portkey", "LiteLLM")
