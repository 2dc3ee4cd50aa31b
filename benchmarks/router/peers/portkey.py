"""The open gateway of Portkey."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.router.peer import Launch, Place, executable


class Portkey:
    """Load balancing 0.9:0.1 by a config in each request's header, without its console."""

    name = "Portkey"
    about = "parses and writes the body anew, weighted random split"

    def program(self, installed: Path) -> Path | None:
        package = installed / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
        return executable(package / "build" / "start-server.js") if shutil.which("node") else None

    def launch(self, place: Place) -> Launch:
        command = ("node", str(self.program(place.installed)), f"--port={place.port}", "--headless")
        config = {
            "strategy": {"mode": "loadbalance"},
            "targets": [_target(place.url(0), 0.9), _target(place.url(1), 0.1)],
        }
        header = f"x-portkey-config: {json.dumps(config, separators=(',', ':'))}"
        return Launch(command, {"NODE_ENV": "production"}, fields=(header,))


def _target(url: str, weight: float) -> dict[str, object]:
    return {"provider": "openai", "api_key": "none", "custom_host": f"{url}/v1", "weight": weight}
