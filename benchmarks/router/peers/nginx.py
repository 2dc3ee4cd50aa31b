"""nginx `proxy_pass`: the yardstick."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.router.peer import Launch, Place

CONFIG = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_body_buffer_size 64k; keepalive_requests 1000000000;
  upstream engines {{
    server 127.0.0.1:{first} weight=9; server 127.0.0.1:{second} weight=1;
    keepalive 256; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


class Nginx:
    """Weighted split 9:1, keep-alive on both sides, no buffering of answers, no access log."""

    name = "nginx"
    about = "relays"

    def program(self, installed: Path) -> Path | None:
        found = shutil.which("nginx")
        return Path(found) if found else None

    def launch(self, place: Place) -> Launch:
        first, second = place.engines
        text = CONFIG.format(folder=place.folder, port=place.port, first=first, second=second)
        return Launch(("nginx", "-c", place.write("nginx.conf", text)))
