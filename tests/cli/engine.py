"""An engine for tests: HTTP on 127.0.0.1, started in milliseconds, misbehaving as its flags say.

    python3 -I -S engine.py PORT LABEL [flags]

It answers every GET with 200 and every POST with a chat completion that says LABEL. While it lives it holds a
lock named after the revision it serves; a second one of that revision finds the lock taken and says so in
`doubles.log`, the record that no revision ever ran twice at once.
"""

import argparse
import fcntl
import json
import os
import signal
import socket
import sys


def claim_revision() -> None:
    """Hold the lock of this revision until this process ends."""
    revision = os.environ["SERVESTATE_ADDRESS"].partition("#")[0]
    fd = os.open(f"alive.{revision.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open("doubles.log", "a") as log:
            log.write(f"{os.environ['SERVESTATE_ADDRESS']}\n")


def answer(flags: argparse.Namespace, method: str) -> bytes:
    if flags.garbage:
        return b"\x00\xff garbage, not HTTP\r\n\r\n"
    if flags.gate and not os.path.exists(flags.gate):
        return b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    if method == "GET":
        return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    message = {"role": "assistant", "content": f"{flags.label} says hello"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    body = json.dumps({"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


def read_request(connection: socket.socket) -> str:
    """The method of one request, all of which has been read."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return "GET"
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].partition(b":")[2]) - len(body) if lengths else 0
    while missing > 0:
        missing -= len(connection.recv(65536)) or missing
    return head.split(b" ")[0].decode()


def serve(flags: argparse.Namespace) -> None:
    listener = socket.create_server(("127.0.0.1", flags.port), backlog=64)
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(answer(flags, read_request(connection)))
            except OSError:
                continue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("label")
    parser.add_argument("--die", action="store_true", help="exit with 7 at once, after a line of output")
    parser.add_argument("--deaf", action="store_true", help="never listen")
    parser.add_argument("--deaf-to-term", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--garbage", action="store_true", help="answer what is not HTTP")
    parser.add_argument("--gate", help="not ready before this file exists")
    flags = parser.parse_args()
    print(f"engine {flags.label} starts", flush=True)
    if flags.die:
        print("the weights are broken", flush=True)
        sys.exit(7)
    claim_revision()
    if flags.deaf_to_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if flags.deaf:
        signal.pause()
    serve(flags)


main()
