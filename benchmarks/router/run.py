"""The router against nginx `proxy_pass`, interleaved on the same core, with CPU time per request and chunk.

Needs gcc, taskset, wrk and nginx. The target runs alone on core 0, the upstream and the client on core 1.
Ratios carry over to other machines, absolute figures do not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from servestate.planner.table import Backend, EndpointRoutes, EntityRoute, RoutingTable
from servestate.planner.table_file import encode

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "router.md"
TARGET_CORE, LOAD_CORE = "0", "1"
CONNECTIONS, STREAMS, CHUNKS_PER_S = 32, 200, 50
TARGET = "/v1/chat/completions"

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_body_buffer_size 64k; keepalive_requests 1000000000;
  upstream engines {{
    server 127.0.0.1:{first} weight=9; server 127.0.0.1:{second} weight=1;
    keepalive 256; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering {buffering};
    }}
  }}
}}
"""

ROUTER = """
import os, sys
from pathlib import Path
from servestate.providers.secrets import EnvSecrets
from servestate.runtime.router import RouterConfig, run
folder, port = Path(sys.argv[1]), int(sys.argv[2])
run(RouterConfig(folder / "table.json", folder / "control.sock", "127.0.0.1", port, EnvSecrets(os.environ)))
"""

LUA = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [=[{body}]=]\n'


@dataclass
class Target:
    """A proxy under test: its port, the process whose CPU time counts, and what was measured."""

    name: str
    port: int
    pid: int
    per_second: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """Time on the CPU; schedstat counts nanoseconds where stat samples ticks."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def rss_mib(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024


def start_bare(stack: ExitStack, ports: list[int]) -> Target:
    port = free_port()
    command = (sys.executable, str(HERE / "bare.py"), str(port), *map(str, ports))
    process = stack.enter_context(started(TARGET_CORE, *command))
    wait_for(port)
    return Target("bare", port, process.pid)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@contextmanager
def started(core: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_nginx(stack: ExitStack, folder: Path, ports: list[int]) -> Target:
    port = free_port()
    text = NGINX.format(folder=folder, first=ports[0], second=ports[1], port=port, buffering="off")
    (folder / "nginx.conf").write_text(text)
    process = stack.enter_context(started(TARGET_CORE, "nginx", "-c", str(folder / "nginx.conf")))
    wait_for(port)
    worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    return Target("nginx", port, int(worker))


def start_router(stack: ExitStack, folder: Path, ports: list[int]) -> Target:
    entities = tuple(
        EntityRoute(name, weight, "engine", "", False, (Backend(name, f"http://127.0.0.1:{port}"),))
        for name, weight, port in (("current", 90, ports[0]), ("challenger", 10, ports[1]))
    )
    (folder / "table.json").write_text(
        encode(RoutingTable(1, "bench", (EndpointRoutes("multi-model", 1, entities),)))
    )
    port = free_port()
    process = stack.enter_context(started(TARGET_CORE, sys.executable, "-c", ROUTER, str(folder), str(port)))
    wait_for(port)
    return Target("router", port, process.pid)


def body_of(size: int, stream: bool = False) -> str:
    words = "the quick brown fox jumps over a lazy dog and tells a modest story "
    value = {"model": "multi-model", "messages": [{"role": "user", "content": ""}], "max_tokens": 64}
    if stream:
        value["stream"] = True
    room = size - len(json.dumps(value, separators=(",", ":")))
    value["messages"] = [{"role": "user", "content": (words * (room // len(words) + 1))[: max(room, 0)]}]
    return json.dumps(value, separators=(",", ":"))


def wrk(folder: Path, port: int, body: str, connections: int, seconds: float) -> tuple[int, int]:
    """Requests answered and bytes read."""
    script = folder / "load.lua"
    script.write_text(LUA.replace("{body}", body))
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s"]
    command += ["-s", str(script), f"http://127.0.0.1:{port}{TARGET}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(out)
    found = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)(\w+) read", out)
    assert found is not None, out
    scale = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}[found[3]]
    return int(found[1]), int(float(found[2]) * scale)


def measure_requests(target: Target, label: str, folder: Path, body: str, seconds: float) -> None:
    before, began = target.cpu_seconds(), time.monotonic()
    done, _ = wrk(folder, target.port, body, CONNECTIONS, seconds)
    spent, lasted = target.cpu_seconds() - before, time.monotonic() - began
    target.per_second.setdefault(label, []).append(done / lasted)
    target.cpu_us.setdefault(label, []).append(spent / done * 1e6)


def measure_streams(target: Target, folder: Path, seconds: float) -> None:
    """CPU time while all streams run, over the chunks that the pace makes due."""
    script = folder / "stream.lua"
    script.write_text(LUA.replace("{body}", body_of(1024, stream=True)))
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{STREAMS}", f"-d{seconds + 2:g}s"]
    command += ["-s", str(script), f"http://127.0.0.1:{target.port}{TARGET}"]
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(1)
    before, began = target.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    spent, lasted = target.cpu_seconds() - before, time.monotonic() - began
    load.wait()
    target.cpu_us.setdefault("chunk", []).append(spent / (STREAMS * CHUNKS_PER_S * lasted) * 1e6)


def first_token_us(port: int, times: int) -> float:
    """Median time to the first content of a stream, a new connection each, request sent once connected."""
    body = body_of(1024, stream=True).encode()
    head = f"POST {TARGET} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    taken = []
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            began, seen = time.perf_counter(), b""
            sock.sendall(head.encode() + body)
            while b"data: " not in seen:
                seen += sock.recv(65536)
            taken.append((time.perf_counter() - began) * 1e6)
    return statistics.median(taken)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=25)
    options.add_argument("--seconds", type=float, default=1.0)
    options.add_argument("--only", choices=("small", "large", "chunk", "first"), default=None)
    options.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    chosen = options.parse_args()
    for tool in ("gcc", "taskset", "wrk", "nginx"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is needed")
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        subprocess.run(["gcc", "-O2", "-o", folder / "upstream", HERE / "upstream.c"], check=True)
        ports = [free_port(), free_port()]
        for port in ports:
            stack.enter_context(started(LOAD_CORE, str(folder / "upstream"), str(port)))
            wait_for(port)
        targets = [
            start_nginx(stack, folder, ports),
            start_router(stack, folder, ports),
            start_bare(stack, ports),
        ]
        report = measure(targets, folder, ports[0], chosen)
    print(report)
    if chosen.write:
        RESULTS.write_text(report)


def measure(targets: list[Target], folder: Path, direct: int, chosen: argparse.Namespace) -> str:
    wanted: Callable[[str], bool] = lambda name: chosen.only in (None, name)  # noqa: E731
    rss = {target.name: [target.rss_mib()] for target in targets}
    first: dict[str, list[float]] = {"direct": [], "nginx": [], "router": []}
    for target in targets:
        wrk(folder, target.port, body_of(1024), CONNECTIONS, 1)
    for _ in range(chosen.rounds):
        for target in targets:
            if wanted("small"):
                measure_requests(target, "1 KB", folder, body_of(1024), chosen.seconds)
            if wanted("large"):
                measure_requests(target, "32 KB", folder, body_of(32768), chosen.seconds)
            if wanted("chunk") and target.name != "bare":
                measure_streams(target, folder, chosen.seconds)
        if wanted("first"):
            first["direct"].append(first_token_us(direct, 200))
            for target in targets[:2]:
                first[target.name].append(first_token_us(target.port, 200))
    for target in targets:
        rss[target.name].append(target.rss_mib())
    return report_of(targets, first, rss, chosen)


def paired(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of measurements that were taken one right after the other: the speed of a
    shared machine changes from one second to the next by more than the two differ."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def report_of(
    targets: list[Target],
    first: dict[str, list[float]],
    rss: dict[str, list[float]],
    chosen: argparse.Namespace,
) -> str:
    nginx, router, bare = targets
    lines = [
        "# Router benchmark",
        "",
        f"Made by `python benchmarks/router/run.py --write`. Medians of {chosen.rounds} interleaved rounds",
        f"of {chosen.seconds:g} s, ratios paired in a round; load average at the end",
        f"{os.getloadavg()[0]:.1f}.",
        "Target alone on core 0 with one worker, upstream (C) and client (wrk) on core 1, all on loopback.",
        f"Two backends at 90/10, {CONNECTIONS} connections; {STREAMS} streams at {CHUNKS_PER_S} chunks/s,",
        "phases spread over 20 ms. The router rewrites `model`, checks the JSON and mints headers; nginx",
        "relays; bare is the least that a router of this design can do (`bare.py`: no checks at all).",
        "Only ratios carry over, to machines whose system calls cost the same.",
        "",
        "| figure | nginx | router | router's ratio | bar | bare | bare's ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, bar in (("1 KB", ">= 0.65"), ("32 KB", ">= 0.45")):
        if label in nginx.cpu_us:
            rates = [target.per_second[label] for target in (nginx, router, bare)]
            lines.append(row(f"{label} body, requests/s", rates, bar, inverse=True))
            costs = [target.cpu_us[label] for target in (nginx, router, bare)]
            lines.append(row(f"{label} body, CPU µs per request", costs, bar))
    if "chunk" in nginx.cpu_us:
        chunks = [target.cpu_us["chunk"] for target in (nginx, router)]
        lines.append(row("CPU µs per relayed chunk", chunks, "<= 1.15", inverse=True))
    if first["direct"]:
        direct = statistics.median(first["direct"])
        added = [[us - direct for us in first[name]] for name in ("nginx", "router")]
        name = f"added time to first token, µs (direct {direct:.0f})"
        lines.append(row(name, added, "< 1000 µs", inverse=True))
    for i, when in enumerate(("start", "end")):
        memory = [[rss[target.name][i]] for target in (nginx, router)]
        lines.append(row(f"RSS at {when}, MiB", memory, "< 60", inverse=True))
    return "\n".join(lines) + "\n"


def row(name: str, values: Sequence[Sequence[float]], bar: str, inverse: bool = False) -> str:
    """Medians of nginx, the router and where there is one the bare prototype, with their ratios: nginx over
    the other, or with `inverse` the other over nginx."""
    cells = [f"{statistics.median(values[0]):,.1f}"]
    for measured in values[1:]:
        pair = (measured, values[0]) if inverse else (values[0], measured)
        cells += [f"{statistics.median(measured):,.1f}", f"{paired(*pair):.2f}"]
    cells.insert(3, bar)
    return f"| {name} | {' | '.join([*cells, *[''] * (6 - len(cells))])} |"


if __name__ == "__main__":
    main()
