"""An engine for tests that dies on demand, in the way that it is told.

    python3 -I -S mortal.py PORT NAME

It answers every request with a chat completion. The file `NAME.dies` beside it says how it ends, once: `exit
CODE`, `segfault` or `signal NUMBER`. The file `NAME.dies-at-start` says the same for every start, and while
`NAME.gate` is there it is not ready.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, name = int(sys.argv[1]), sys.argv[2]


def told(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def die(how):
    for number in range(1, 31):
        print(f"line {number} of {name}", flush=True)
    what, _, value = how.partition(" ")
    if what == "segfault":
        ctypes.string_at(0)
    if what == "signal":
        os.kill(os.getpid(), int(value))
        signal.pause()
    os._exit(int(value))


def await_doom():
    while True:
        if how := told(f"{name}.dies"):
            os.unlink(f"{name}.dies")
            die(how)
        time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    def reply(self, body):
        self.send_response(503 if os.path.exists(f"{name}.gate") else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(b"{}")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        message = {"role": "assistant", "content": f"{name} says hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.reply(json.dumps({"object": "chat.completion", "model": "m", "choices": [choice]}).encode())

    def log_message(self, *arguments):
        pass


print(f"{name} starts", flush=True)
if how := told(f"{name}.dies-at-start"):
    die(how)
threading.Thread(target=await_doom, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
