"""Requests, and what the client in C says of them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.router.peer import Launch
from benchmarks.router.processes import LOAD_CORE, Pinned

CONNECTIONS = 32
_LOOK_EVERY_S = 0.1
WORDS = "the quick brown fox jumps over a lazy dog and tells a modest story "


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of `load.c`. Times of answers, or of chunks on their way, in microseconds; -1 where there was
    none. `lost` chunks were never seen between two that were; `ended` streams broke off or never began."""

    seconds: float
    cpu_s: float
    count: int
    failed: int
    reconnected: int
    chunks: int
    lost: int
    ended: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    why: str

    @property
    def per_second(self) -> float:
        """Answers or chunks a second."""
        return self.count / self.seconds

    @property
    def cpu_us(self) -> float:
        """Processor time of the target for each answer or chunk."""
        return self.cpu_s / self.count * 1e6 if self.count else float("nan")


class Client:
    """The built client, and the folder in which requests are laid down for it."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def requests(
        self,
        port: int,
        request: bytes,
        seconds: float,
        target: Pinned | None = None,
        *,
        connections: int = CONNECTIONS,
        rate: float = 0.0,
    ) -> Measured:
        """A closed loop, or `rate` requests a second. `target` is whose processor time counts."""
        return self._run("requests", port, connections, seconds, rate, request, target)

    def streams(
        self,
        port: int,
        request: bytes,
        seconds: float,
        target: Pinned | None,
        count: int,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Measured:
        """That many streams at a time; `meanwhile` is called again and again as long as they run."""
        return self._run("streams", port, count, seconds, 0.0, request, target, meanwhile)

    def _run(
        self,
        mode: str,
        port: int,
        count: int,
        seconds: float,
        rate: float,
        request: bytes,
        target: Pinned | None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Measured:
        path = self._folder / "request"
        path.write_bytes(request)
        numbers = (str(port), str(count), f"{seconds:g}", f"{rate:g}", str(path))
        pids = [str(pid) for pid in target.tree()] if target else []
        command = ["taskset", "-c", LOAD_CORE, str(self._program), mode, *numbers, *pids]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            while meanwhile is not None and process.poll() is None:
                meanwhile()
                time.sleep(_LOOK_EVERY_S)
            said = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"the load's client ended with {process.returncode}")
        return Measured(**json.loads(said))


def build(source: Path, into: Path) -> Path:
    """Compile one C file."""
    program = into / source.stem
    subprocess.run(["gcc", "-O2", "-pthread", "-o", str(program), str(source)], check=True)
    return program


def body_of(size: int, model: str, stream: bool = False, words: str = "") -> bytes:
    """A chat body of `size` bytes; `words` come first in its message."""
    value = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 64}
    if stream:
        value["stream"] = True
    room = max(size - len(_compact(value)), 0)
    content = words + (WORDS * (room // len(WORDS) + 1))[:room]
    return _compact({**value, "messages": [{"role": "user", "content": content}]})


def request_of(launch: Launch, body: bytes, fields: Sequence[str] = ()) -> bytes:
    """The request as it goes to a target that was launched so."""
    lines = (
        f"POST {launch.path} HTTP/1.1",
        "Host: bench",
        "Content-Type: application/json",
        *launch.fields,
        *fields,
    )
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
