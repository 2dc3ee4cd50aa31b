"""An engine for tests: answers GET on 127.0.0.1 and misbehaves as its flags say. Standard library only."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress


def die(how: str) -> None:
    print(f"dying: {how}", flush=True)
    if how == "segfault":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(int(how))


def grow_tree(levels: int) -> None:
    """Children, each of which forks twice, leaves the session and ignores SIGTERM."""
    if levels and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(f"descendant {os.getpid()}", flush=True)
            grow_tree(levels - 1)
            while True:
                time.sleep(60)
        os._exit(0)


def bind(port: int, retry: bool) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(16)
            return listener
        except OSError as error:
            print(f"cannot bind: {error}", flush=True)
            if not retry:
                sys.exit(1)
            time.sleep(0.02)


def serve(listener: socket.socket, flags: argparse.Namespace) -> None:
    not_yet = flags.answers_503
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            path = connection.recv(4096).split(b" ")[1]
            status = b"503 Loading" if not_yet > 0 else b"200 OK"
            not_yet -= 1
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            if path == b"/die":
                die(flags.how)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--how", default="1")
    parser.add_argument("--die-at", choices=("start", "load", "never"), default="never")
    parser.add_argument("--say", default="")
    parser.add_argument("--print-env", default="")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--tree", type=int, default=0)
    parser.add_argument("--retry-bind", action="store_true")
    parser.add_argument("--never-bind", action="store_true")
    parser.add_argument("--answers-503", type=int, default=0)
    flags = parser.parse_args()
    print(flags.say or "tiny engine starts", flush=True)
    if flags.print_env:
        print(os.environ.get(flags.print_env), flush=True)
    if flags.die_at == "start":
        die(flags.how)
    if flags.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grow_tree(flags.tree)
    if flags.die_at == "load":
        time.sleep(0.1)
        die(flags.how)
    if flags.never_bind:
        signal.pause()
    serve(bind(flags.port, flags.retry_bind), flags)


main()
