"""What the serving REST API costs: reading one of 1,000 endpoints, listing them, and many who poll.

    .venv/bin/python -m benchmarks.api [--rounds 15] [--seconds 4] [--write]

`servestate serve` with 1,000 external endpoints, all of it (router, API, controller) on core 0; the upstream,
the load and the pollers on core 1. Requests go through the management listener, over connections that are
kept, from a bare socket and from `requests`, as the databricks SDK sends them.

Polling: the data plane under a steady load (wrk, so many requests a second that the router takes about a
quarter of its core), alone and beside 200 waiters, each of which asks for one endpoint and then sleeps. As
the SDK sleeps: 1 s, 2 s, up to 10 s, and a random part of a second; and harsher, 1 s each time. The windows
alternate, ratios are of neighbours. A pair of windows in which others had more than a tenth of the machine is
measured again (--quiet). Needs gcc, taskset, chrt and wrk.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml
from benchmarks.router.run import HERE, body_of, free_port, started, wait_for

SERVESTATE = str(Path(sys.executable).with_name("servestate"))
RESULTS = Path(__file__).parent / "results" / "api.md"
SERVED_CORE, LOAD_CORE = "0", "1"
ENDPOINTS, POLLERS = 1000, 200
GETS, LISTS = 3000, 60
CONNECTIONS, PAUSE_MS = 32, 2
"""How wrk paces itself: so many connections, each of which waits so long between its requests."""

CALM_S = 0.5
TRIES = 4
"""How often a pair is measured that others disturb, before it is taken as it is."""

GET_BAR_MS, LIST_BAR_MS, POLL_BAR = 5.0, 150.0, 1.10
API = "/api/2.0/serving-endpoints"

LUA = (
    'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [=[{body}]=]\n'
    "function delay() return {pause} end\n"
)

POLL = """
import asyncio, random, sys
port, count, longest = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

async def waiter(number):
    await asyncio.sleep(random.random() * longest)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /api/2.0/serving-endpoints/e{number:04} HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n"
    attempt = random.randint(1, longest)
    while True:
        writer.write(request.encode())
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
        await reader.readexactly(length)
        await asyncio.sleep(attempt + (random.random() if longest > 1 else 0))
        attempt = attempt % longest + 1

async def main():
    await asyncio.gather(*(waiter(number) for number in range(count)))

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A site that is served. `api` and `router` are the processes whose time on the CPU counts."""

    router_port: int
    management_port: int
    router: int
    api: int


@contextmanager
def serving(folder: Path, upstream: int) -> Iterator[Served]:
    """1,000 external endpoints, applied and served on core 0."""
    router, management = free_port(), free_port()
    blocks = {f"e{number:04}": _endpoint(f"e{number:04}", upstream) for number in range(ENDPOINTS)}
    site = {
        "router": {"listen": f"127.0.0.1:{router}"},
        "management": {"listen": f"127.0.0.1:{management}"},
    }
    document = {"servestate": site, "resources": {"model_serving_endpoints": blocks}}
    (folder / "endpoints.yaml").write_text(yaml.safe_dump(document))
    subprocess.run([SERVESTATE, "apply", "--auto-approve"], cwd=folder, check=True, capture_output=True)
    command = ("sh", "-c", f"cd {folder} && exec {SERVESTATE} serve 2>serve.log")
    with started(SERVED_CORE, *command) as process:
        wait_for(router)
        _wait_for_api(management)
        yield Served(router, management, process.pid, _child(process.pid, "runtime.api.process"))


def _endpoint(name: str, upstream: int) -> dict[str, object]:
    config = {"custom_provider_url": f"http://127.0.0.1:{upstream}/v1/chat/completions"}
    model = {"provider": "custom", "name": "m", "task": "llm/v1/chat", "custom_provider_config": config}
    entity = {"name": "only", "external_model": model}
    tags = [{"key": "team", "value": "search"}]
    return {"name": name, "tags": tags, "config": {"served_entities": [entity]}}


def _wait_for_api(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if requests.get(f"http://127.0.0.1:{port}{API}/e0000", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass  # it is not there yet
        if time.monotonic() > deadline:
            raise SystemExit("the API does not answer")
        time.sleep(0.05)


def _child(pid: int, what: str) -> int:
    """The child of that process whose command line holds `what`."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    for child in (int(word) for file in children for word in file.read_text().split()):
        if what in Path(f"/proc/{child}/cmdline").read_text():
            return child
    raise SystemExit(f"{pid} has no child {what}")


def cpu_seconds(pid: int) -> float:
    """Time on the CPU of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def others_seconds() -> float:
    """Time that processes which are not ours have spent on the CPU, up to a constant."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, interrupts, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft) / ticks - _ours(ticks)


def _ours(ticks: int) -> float:
    """Time of this process and all that it has started, those that have ended included."""
    found: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(folder.name)] = int(fields[1]), sum(map(int, fields[11:15])) / ticks
    family = {os.getpid()}
    while more := {pid for pid, (parent, _) in found.items() if parent in family} - family:
        family |= more
    return sum(found[pid][1] for pid in family)


# Reading.


@dataclass(frozen=True, slots=True)
class Reading:
    """How long each of many requests took, in ms, and what one cost the API, in ms of CPU."""

    taken: list[float]
    cpu: float

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.taken, n=100)[98]


def read(served: Served, get: Callable[[str], int], paths: list[str]) -> Reading:
    """Ask for each of the paths, one after the other."""
    before, taken = cpu_seconds(served.api), []
    for path in paths:
        began = time.perf_counter()
        status = get(path)
        taken.append((time.perf_counter() - began) * 1000)
        if status != 200:
            raise SystemExit(f"{path} was answered with {status}")
    return Reading(taken, (cpu_seconds(served.api) - before) * 1000 / len(paths))


def clients(served: Served, stack: ExitStack) -> dict[str, Callable[[str], int]]:
    """What asks, by name; each keeps its one connection."""
    bare = http.client.HTTPConnection("127.0.0.1", served.management_port)
    stack.callback(bare.close)
    session = stack.enter_context(requests.Session())

    def by_socket(path: str) -> int:
        bare.request("GET", path)
        answer = bare.getresponse()
        answer.read()
        return answer.status

    def by_requests(path: str) -> int:
        return session.get(f"http://127.0.0.1:{served.management_port}{path}", timeout=30).status_code

    return {"http.client": by_socket, "requests": by_requests}


def reading_table(served: Served, rounds: int) -> Iterator[str]:
    """The table of single readers."""
    ones = [f"{API}/e{number * 7919 % ENDPOINTS:04}" for number in range(GETS)]
    lists = [API] * LISTS
    yield "| one client | median ms | p99 ms | bar | API's CPU ms | p99 of the rounds |"
    yield "| --- | ---: | ---: | ---: | ---: | --- |"
    with ExitStack() as stack:
        asking = clients(served, stack)
        found: dict[tuple[str, str], list[Reading]] = {}
        for _ in range(rounds):
            for client, get in asking.items():
                for what, paths in (("one endpoint", ones), ("the whole list", lists)):
                    found.setdefault((what, client), []).append(read(served, get, paths))
    for (what, client), readings in sorted(found.items()):
        bar = f"< {GET_BAR_MS:g}" if what == "one endpoint" else f"< {LIST_BAR_MS:g}"
        median = statistics.median(statistics.median(r.taken) for r in readings)
        p99s = sorted(r.p99 for r in readings)
        cpu = statistics.median(r.cpu for r in readings)
        spread = ", ".join(f"{p99:.1f}" for p99 in p99s)
        yield (
            f"| {what}, {client} | {median:.2f} | {statistics.median(p99s):.2f} | {bar} | {cpu:.2f} "
            f"| {spread} |"
        )


# Polling.


@dataclass(frozen=True, slots=True)
class Window:
    """The data plane in one window: p99 and median in ms, requests a second, and the shares of the core that
    router and API took."""

    p99: float
    p50: float
    per_second: float
    router: float
    api: float


def window(served: Served, folder: Path, seconds: float) -> Window:
    """Steady load for so long."""
    script = folder / "paced.lua"
    script.write_text(LUA.replace("{body}", body_of(1024)).replace("{pause}", str(PAUSE_MS)))
    url = f"http://127.0.0.1:{served.router_port}/serving-endpoints/e0000/invocations"
    command = ["taskset", "-c", LOAD_CORE, "wrk", "--latency", "-t1", f"-c{CONNECTIONS}"]
    before, began = (cpu_seconds(served.router), cpu_seconds(served.api)), time.monotonic()
    done = subprocess.run(
        [*command, f"-d{seconds:g}s", "-s", str(script), url], capture_output=True, text=True, check=True
    ).stdout
    lasted = time.monotonic() - began
    if "Non-2xx" in done or "Socket errors" in done:
        raise SystemExit(done)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    assert rate is not None, done
    router, api = cpu_seconds(served.router) - before[0], cpu_seconds(served.api) - before[1]
    return Window(_percentile(done, 99), _percentile(done, 50), float(rate[1]), router / lasted, api / lasted)


def _percentile(said: str, which: int) -> float:
    """What wrk says of it, in ms."""
    found = re.search(rf"^\s+{which}%\s+([\d.]+)(us|ms|s)$", said, re.MULTILINE)
    assert found is not None, said
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


@contextmanager
def polled(served: Served, longest: int) -> Iterator[subprocess.Popen[bytes]]:
    """200 waiters that sleep up to so many seconds, once all of them have asked for the first time."""
    arguments = (str(served.management_port), str(POLLERS), str(longest))
    # SCHED_IDLE: they share a core with the load, whose times must not be theirs.
    with started(LOAD_CORE, "chrt", "-i", "0", sys.executable, "-c", POLL, *arguments) as process:
        time.sleep(longest + 1)
        if process.poll() is not None:
            raise SystemExit("the waiters have failed")
        yield process


def pair(
    served: Served, folder: Path, seconds: float, poll: subprocess.Popen[bytes], quiet: float
) -> tuple[Window, Window]:
    """A window alone and the next one beside those who poll, on a machine that is quiet."""
    for _ in range(TRIES):
        before, began = others_seconds(), time.monotonic()
        poll.send_signal(signal.SIGSTOP)
        time.sleep(CALM_S)
        alone = window(served, folder, seconds)
        poll.send_signal(signal.SIGCONT)
        time.sleep(CALM_S)  # all that have become due meanwhile ask at once
        beside = window(served, folder, seconds)
        share = (others_seconds() - before) / (time.monotonic() - began) / (os.cpu_count() or 1)
        if share <= quiet:
            break
        print(f"others had {share:.0%} of the machine", file=sys.stderr)
    return alone, beside


def polling_table(served: Served, folder: Path, rounds: int, seconds: float, quiet: float) -> Iterator[str]:
    """The table of the data plane beside those who poll."""
    yield "| data plane beside 200 who poll | p99 alone, ms | beside, ms | ratio | bar | p50 ratio | rounds |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    window(served, folder, seconds)
    shares = []
    for name, longest in (("each every 1 s to 10 s", 10), ("each every 1 s", 1)):
        with polled(served, longest) as poll:
            pairs = [pair(served, folder, seconds, poll, quiet) for _ in range(rounds)]
        alone, beside = (statistics.median(pair[i].p99 for pair in pairs) for i in (0, 1))
        ratios = sorted(b.p99 / a.p99 for a, b in pairs)
        middle = statistics.median(b.p50 / a.p50 for a, b in pairs)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, middle half {_middle_half(ratios)}"
        yield (
            f"| {name} | {alone:.2f} | {beside:.2f} | {statistics.median(ratios):.2f} | <= {POLL_BAR:.2f} "
            f"| {middle:.2f} | {spread} |"
        )
        shares.append(
            f"{name}: {statistics.median(b.per_second for _, b in pairs):,.0f} requests/s, the router takes "
            f"{statistics.median(b.router for _, b in pairs):.0%} of the core, "
            f"the API {statistics.median(b.api for _, b in pairs):.1%}."
        )
    yield ""
    yield from shares


def _middle_half(ordered: list[float]) -> str:
    low, _, high = statistics.quantiles(ordered, n=4)
    return f"{low:.2f} to {high:.2f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--only", choices=("reading", "polling"), default=None)
    options.add_argument("--quiet", type=float, default=0.1, help="share of the machine that others may take")
    options.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    chosen = options.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        subprocess.run(["gcc", "-O2", "-o", folder / "upstream", HERE / "upstream.c"], check=True)
        upstream = free_port()
        stack.enter_context(started(LOAD_CORE, str(folder / "upstream"), str(upstream)))
        wait_for(upstream)
        served = stack.enter_context(serving(folder, upstream))
        lines = list(report(served, folder, chosen))
    text = "\n".join(lines) + "\n"
    print(text)
    if chosen.write:
        RESULTS.write_text(text)


def report(served: Served, folder: Path, chosen: argparse.Namespace) -> Iterator[str]:
    yield "# What the serving REST API costs"
    yield ""
    yield f"Made by `python -m benchmarks.api --rounds {chosen.rounds} --seconds {chosen.seconds:g} --write`."
    yield f"{ENDPOINTS} external endpoints; everything that `servestate serve` runs is on core 0, upstream,"
    yield "load and pollers are on core 1. Medians of alternating rounds, ratios of neighbours."
    yield ""
    if chosen.only != "polling":
        yield from reading_table(served, min(chosen.rounds, 5))
        yield ""
    if chosen.only != "reading":
        yield from polling_table(served, folder, chosen.rounds, chosen.seconds, chosen.quiet)
        yield ""
    yield f"Load average at the end {os.getloadavg()[0]:.1f}."


if __name__ == "__main__":
    main()
