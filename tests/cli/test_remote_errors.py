"""What stands between a client and its server, in one line each."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.runtime.remote import server_at
from tests.cli.harness import ONE, Site
from tests.cli.snapshots import check
from tests.ports import free_port


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("127.0.0.1:8081", "no URL of http or https"),
        ("ftp://127.0.0.1:8081", "no URL of http or https"),
        ("http://", "no URL of http or https"),
        ("http://127.0.0.1:99999", "no URL"),
        ("http://a b/", "no URL of http or https"),
        ("http://me:secret@127.0.0.1:8081", "more than a host"),
        ("http://127.0.0.1:8081/?a=b", "more than a host"),
    ],
)
def test_no_url_of_a_server(url: str, why: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        server_at(url, "", insecure=False)
    assert str(refused.value).startswith("SS611 ")
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "insecure", "fine"),
    [
        ("http://models.example:8081", False, False),
        ("http://models.example:8081", True, True),
        ("https://models.example", False, True),
        ("http://127.0.0.1:8081", False, True),
        ("http://localhost:8081/behind/a/proxy/", False, True),
        ("http://[::1]:8081", False, True),
        ("http://127.0.0.1.models.example", False, False),
    ],
)
def test_where_a_token_may_go(url: str, insecure: bool, fine: bool) -> None:
    if not fine:
        with pytest.raises(InvalidInput, match="SS611"):
            server_at(url, "hidden", insecure=insecure)
    else:
        assert server_at(url, "hidden", insecure=insecure).url == url.rstrip("/")
    assert "hidden" not in repr(server_at(url, "hidden", insecure=True))


def test_a_token_does_not_cross_a_network_in_the_clear(site: Site) -> None:
    site.configure(ONE)
    check(
        site.run("plan", "--server", "http://models.example:8081", SERVESTATE_TOKEN="hidden"),
        site.folder,
        "remote/in_the_clear",
    )


def test_nobody_there(site: Site) -> None:
    site.configure(ONE)
    check(
        site.run("apply", "--auto-approve", "--server", f"http://127.0.0.1:{free_port()}"),
        site.folder,
        "remote/nobody",
    )


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """Somebody who answers the first request with that."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # what is left unread would reset the connection
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def _http(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("somebody_else", _http("200 OK", b"<html>hello</html>")),
        ("no_such_path", _http("404 Not Found", b'{"error_code": "ENDPOINT_NOT_FOUND", "message": "no"}')),
        ("another_version", _http("200 OK", b'{"plan": "{}", "settled": true, "warnings": []}')),
        ("not_now", _http("502 Bad Gateway", b"<html>nginx</html>")),
        ("hangs_up", b""),
    ],
)
def test_somebody_else_there(site: Site, name: str, reply: bytes) -> None:
    site.configure(ONE)
    with answering(reply) as port:
        check(site.run("plan", "--server", f"http://127.0.0.1:{port}"), site.folder, f"remote/{name}")


@pytest.mark.slow
def test_no_tls_there(site: Site) -> None:
    site.configure(ONE)
    with answering(_http("400 Bad Request", b"")) as port:
        result = site.run("plan", "--server", f"https://127.0.0.1:{port}")
    assert result.code == 1
    assert result.err.startswith(f"SS613 no TLS with https://127.0.0.1:{port}: ")
