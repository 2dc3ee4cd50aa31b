"""An engine for tests: the OpenAI paths and a custom model's, on 127.0.0.1, without a model.

    python3 -I -S engine.py PORT LABEL [--gate FILE] [--die]

What it says is a function of what it is asked, so a test knows the answer: text comes back behind LABEL, a
vector is made of a text's length, a custom model adds up its rows. `received` in an answer is the body as it
arrived. Some prompts make it misbehave: see `Prompt`.
"""

import argparse
import base64
import json
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]

SEPARATED = "before\u2028after\u2029the\u0085end"
"""Text with the three line separators that are no line feed."""


class Prompt:
    """What misbehaves. Any other prompt is answered."""

    FAIL = "fail with "  # followed by an HTTP status
    BREAK_OFF = "break off"  # a stream ends after its first event, without saying so
    DAWDLE = "dawdle"  # a stream sends comments and waits between its events
    SEPARATE = "separate"  # the answer is SEPARATED
    WAIT = "wait "  # followed by seconds before the answer begins


def prompt_of(body: Body) -> str:
    """The text that is asked, whatever the shape of the body."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    text = body.get("prompt", body.get("input", ""))
    return text if isinstance(text, str) else str(text[0])


def said(label: str, body: Body) -> str:
    """The text of an answer."""
    prompt = prompt_of(body)
    return SEPARATED if prompt == Prompt.SEPARATE else f"{label}: {prompt}"


def usage_of(body: Body, text: str) -> dict[str, int]:
    """Tokens are words here."""
    asked, answered = len(prompt_of(body).split()), len(text.split())
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
    }


def completion(label: str, path: str, body: Body) -> Body:
    """A whole answer of the chat or the completions path."""
    text = said(label, body)
    chat = path.endswith("/chat/completions")
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "cmpl-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1700000000,
        "model": body.get("model", ""),
        "choices": [{"index": 0, **content, "finish_reason": "stop"}],
        "usage": usage_of(body, text),
        "received": body,
    }


def events(label: str, path: str, body: Body) -> Iterator[Body]:
    """The answer in parts, a word each; last the usage, if it was asked for."""
    whole = completion(label, path, body)
    chat = path.endswith("/chat/completions")
    base = {k: whole[k] for k in ("id", "created", "model")}
    base["object"] = "chat.completion.chunk" if chat else "text_completion"
    text = said(label, body)
    words = [text] if prompt_of(body) == Prompt.SEPARATE else text.split()
    for index, word in enumerate(words):
        part = word if index == 0 else f" {word}"
        content = {"delta": {"content": part}} if chat else {"text": part}
        finish = "stop" if index == len(words) - 1 else None
        yield {**base, "choices": [{"index": 0, **content, "finish_reason": finish}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**base, "choices": [], "usage": whole["usage"]}


def embeddings(body: Body) -> Body:
    """A vector of three numbers for every text, as floats or in base64."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [
        {"object": "embedding", "index": i, "embedding": encoded(text, body)} for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": body.get("model", ""), "data": data, "usage": usage, "received": body}


def encoded(text: str, body: Body) -> object:
    """A vector as `encoding_format` wants it."""
    vector = [float(len(text)), 0.5, -1.0]
    if body.get("encoding_format") != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def predictions(body: Body) -> Body:
    """The sum of every row."""
    if "dataframe_split" in body:
        rows = body["dataframe_split"]["data"]
    elif "dataframe_records" in body:
        rows = [list(record.values()) for record in body["dataframe_records"]]
    elif "instances" in body:
        rows = [list(one.values()) if isinstance(one, dict) else one for one in body["instances"]]
    else:
        columns = body["inputs"]
        rows = list(zip(*columns.values(), strict=True)) if isinstance(columns, dict) else columns
    return {"predictions": [sum(row) for row in rows]}


def whole_answer(label: str, path: str, body: Body) -> Body | None:
    """What a path answers; None where there is none."""
    if path.endswith("/completions"):
        return completion(label, path, body)
    if path.endswith("/embeddings"):
        return embeddings(body)
    if path.endswith("/invocations"):
        return predictions(body)
    return None


class Handler(BaseHTTPRequestHandler):
    """One connection. `server` is an Engine."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a head and its body in one packet, so nothing waits for an acknowledgement

    def log_message(self, *args: object) -> None:
        return  # `logs` is read by tests

    def do_GET(self) -> None:
        gate = self.server.gate
        self.answer(503 if gate and not os.path.exists(gate) else 200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.note(self.path, self.headers, body)
        status = self.server.status_for(body)
        if status != 200:
            self.answer(status, {"error": {"message": f"the engine answers {status}"}})
        elif body.get("stream"):
            self.stream(body)
        else:
            found = whole_answer(self.server.label, self.path, body)
            self.answer(404 if found is None else 200, found or {})

    def answer(self, status: int, value: Body) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        if status in (429, 503):
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(content)

    def stream(self, body: Body) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        prompt = prompt_of(body)
        for event in events(self.server.label, self.path, body):
            self.send_chunk(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")
            if prompt == Prompt.BREAK_OFF:
                self.close_connection = True
                return
            if prompt == Prompt.DAWDLE:
                self.send_chunk(": still here\n\n")
                time.sleep(0.2)
        self.send_chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def send_chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


class Engine(ThreadingHTTPServer):
    """A server on 127.0.0.1. `gate` is a file without which it is not ready; "" = none."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, label: str, gate: str = "") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.label = label
        self.gate = gate

    def note(self, path: str, headers: Mapping[str, str], body: Body) -> None:
        """Every POST comes by here."""

    def status_for(self, body: Body) -> int:
        """The status of the answer to `body`."""
        prompt = prompt_of(body)
        if prompt.startswith(Prompt.WAIT):
            time.sleep(float(prompt[len(Prompt.WAIT) :]))
        return int(prompt[len(Prompt.FAIL) :]) if prompt.startswith(Prompt.FAIL) else 200

    def handle_error(self, request: object, client_address: object) -> None:
        """The other side is gone: not worth a word."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("label")
    parser.add_argument("--gate", default="", help="not ready before this file exists")
    parser.add_argument("--die", action="store_true", help="exit with 7 at once, after a line of output")
    flags = parser.parse_args()
    print(f"engine {flags.label} starts", flush=True)
    if flags.die:
        print("the weights are broken", flush=True)
        sys.exit(7)
    Engine(flags.port, flags.label, flags.gate).serve_forever()


if __name__ == "__main__":
    main()
