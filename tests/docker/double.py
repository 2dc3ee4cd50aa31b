"""An engine's double in a container: the OpenAI paths of an inference server, with faults on request.

Python's standard library only; it keeps everything in memory. As vLLM does, it asks for the key on /v1 only:
/health and the development path /pause are open to whoever reaches the port.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

WORDS: Final = ("one", "two", "three")
"""What every completion says."""
VECTOR: Final = (0.25, -0.5, 1.0)
"""Every embedding."""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="double", allow_abbrev=False)
    flags.add_argument("--host", default="0.0.0.0")
    flags.add_argument("--port", type=int, default=8000)
    flags.add_argument("--model", default="double", help="the name it answers to")
    flags.add_argument("--api-key-file", type=Path, help="/v1 asks for the key in this file")
    flags.add_argument("--ready-after", type=float, default=0, metavar="S", help="503 on /health until then")
    flags.add_argument("--exit-after", type=float, metavar="S", help="ends with --exit-code then")
    flags.add_argument("--exit-code", type=int, default=0)
    flags.add_argument("--oom", action="store_true", help="takes memory until it is killed")
    flags.add_argument("--ignore-sigterm", action="store_true")
    flags.add_argument("--log", nargs="+", default=(), metavar="LINE", help="printed to stderr at the start")
    return flags


class Server(ThreadingHTTPServer):
    """The flags, and whether it was paused."""

    daemon_threads = True

    def __init__(self, flags: argparse.Namespace) -> None:
        super().__init__((flags.host, flags.port), Handler)
        self.model: str = flags.model
        self.key: str | None = flags.api_key_file.read_text().strip() if flags.api_key_file else None
        self.ready_at: float = time.monotonic() + flags.ready_after
        self.paused = False


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path == "/health":
            ready = time.monotonic() >= self.server.ready_at
            self._reply(200 if ready else 503, {"status": "ok" if ready else "loading"})
        elif not self._allowed():
            self._reply(401, _error("the key is wrong or missing"))
        elif self.path == "/v1/models":
            self._reply(200, {"object": "list", "data": [{"id": self.server.model, "object": "model"}]})
        else:
            self._reply(404, _error(f"no such path: {self.path}"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path in ("/pause", "/resume"):
            self.server.paused = self.path == "/pause"
            self._reply(200, {"paused": self.server.paused})
        elif not self._allowed():
            self._reply(401, _error("the key is wrong or missing"))
        elif self.server.paused:
            self._reply(503, _error("paused"))
        elif self.path == "/v1/embeddings":
            self._reply(200, _embeddings(self.server.model, json.loads(body)["input"]))
        elif self.path in ("/v1/completions", "/v1/chat/completions"):
            self._complete(json.loads(body), chat="chat" in self.path)
        else:
            self._reply(404, _error(f"no such path: {self.path}"))

    def log_message(self, format: str, *args: Any) -> None:
        """No line for a request: what is in the log is what --log asked for."""

    def _allowed(self) -> bool:
        given = self.headers.get("authorization", "")
        return self.server.key is None or hmac.compare_digest(given, f"Bearer {self.server.key}")

    def _complete(self, asked: dict[str, Any], chat: bool) -> None:
        if not asked.get("stream"):
            self._reply(200, _completion(self.server.model, chat))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in _events(self.server.model, chat):
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def _reply(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def _embeddings(model: str, asked: str | list[str]) -> dict[str, Any]:
    count = 1 if isinstance(asked, str) else len(asked)
    data = [{"object": "embedding", "index": i, "embedding": VECTOR} for i in range(count)]
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def _completion(model: str, chat: bool) -> dict[str, Any]:
    text = " ".join(WORDS)
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 1, "completion_tokens": len(WORDS), "total_tokens": 1 + len(WORDS)}
    choices = [{"index": 0, "finish_reason": "stop", **choice}]
    return {"id": "double", "object": _kind(chat), "model": model, "choices": choices, "usage": usage}


def _events(model: str, chat: bool) -> Iterator[str]:
    for position, word in enumerate(WORDS, 1):
        finish = "stop" if position == len(WORDS) else None
        text = word if position == len(WORDS) else f"{word} "
        part = {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": finish, **part}
        kind = f"{_kind(chat)}.chunk" if chat else _kind(chat)
        yield json.dumps({"id": "double", "object": kind, "model": model, "choices": [choice]})
    yield "[DONE]"


def _kind(chat: bool) -> str:
    return "chat.completion" if chat else "text_completion"


def _swell() -> None:
    held = []
    while True:
        held.append(b"x" * (16 << 20))


def main(argv: list[str]) -> int:
    flags = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if flags.ignore_sigterm else lambda *_: os._exit(0))
    for line in flags.log:
        print(line, file=sys.stderr, flush=True)
    if flags.exit_after is not None:
        threading.Timer(flags.exit_after, os._exit, (flags.exit_code,)).start()
    if flags.oom:
        _swell()
    with Server(flags) as server:
        print(f"listening on {flags.host}:{flags.port}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
