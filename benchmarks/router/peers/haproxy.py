"""HAProxy as an HTTP proxy."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.router.peer import Launch, Place

# Without http-no-delay it holds back the chunks of a stream, by 105 ms in a trial.
CONFIG = """
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend web
  bind 127.0.0.1:{port} backlog 4096
  default_backend engines
backend engines
  server first 127.0.0.1:{first} weight 90
  server second 127.0.0.1:{second} weight 10
"""


class HAProxy:
    """Weighted round robin 90:10, `option http-no-delay`, every idle connection reused, no log."""

    name = "HAProxy"
    about = "relays"

    def program(self, installed: Path) -> Path | None:
        found = shutil.which("haproxy")
        return Path(found) if found else None

    def launch(self, place: Place) -> Launch:
        first, second = place.engines
        text = CONFIG.format(port=place.port, first=first, second=second)
        return Launch(("haproxy", "-db", "-f", place.write("haproxy.cfg", text)))
