"""`router.listen` with port 0: only the running router knows where it answers."""

from __future__ import annotations

import re
import signal

from tests.cli.harness import ONE, Site

ANY_PORT = "127.0.0.1:0"


def test_query_asks_the_running_router(site: Site) -> None:
    site.configure(ONE, listen=ANY_PORT)
    up = site.watch("up", "--auto-approve")
    up.wait_for("servestate: routing on http://")
    (found,) = re.findall(r"base_url=http://127\.0\.0\.1:(\d+)/v1", up.seen)
    assert found != "0"
    assert f"curl -s http://127.0.0.1:{found}/serving-endpoints/solo" in up.seen
    assert site.run("query", "solo", "hello").ok().out == "1 says hello\n"
    up.process.send_signal(signal.SIGINT)
    up.end()
    assert "no router answers at http://127.0.0.1:0" in site.run("query", "solo", "hello").err
