"""Where the time of one request goes, in our router.

    python -m benchmarks.router.profile [--seconds 3] [--traffic small|large|chunk] [--workers N] [--tokens]
                                       [--compiled]

Counts first: instructions and cycles, in user space and in the kernel, beside nginx and the bare prototype
(`perf stat`), and system calls (`strace -c`). Instructions in user space hardly change with what else the
machine does, so two versions can be compared by them on a machine that is not quiet. Then samples: by library
(`perf record`) and by function of ours (py-spy, which `peers.sh py-spy` installs). A tool that is missing
leaves its table out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.router.lineup import Bench, Target, bench, installed_in
from benchmarks.router.load import Measured
from benchmarks.router.peers.bare import Bare
from benchmarks.router.peers.nginx import Nginx
from benchmarks.router.peers.servestate import Servestate

STREAMS = 200
_EVENTS = ("instructions:u", "instructions:k", "cycles:u", "cycles:k")
_SAMPLES_PER_S = 400
_ROWS = 45


@dataclass(frozen=True, slots=True)
class Traffic:
    """A kind of load, measured for so many seconds; what is counted is one `unit` of it."""

    name: str
    unit: str
    run: Callable[[Bench, Target, float], Measured]


def _small(on: Bench, target: Target, seconds: float) -> Measured:
    return on.client.requests(target.port, target.request(1024), seconds, target.process)


def _large(on: Bench, target: Target, seconds: float) -> Measured:
    return on.client.requests(target.port, target.request(32768), seconds, target.process)


def _chunk(on: Bench, target: Target, seconds: float) -> Measured:
    return on.client.streams(target.port, target.request(1024, stream=True), seconds, target.process, STREAMS)


TRAFFIC = (
    Traffic("small", "request with a body of 1 KB", _small),
    Traffic("large", "request with a body of 32 KB", _large),
    Traffic("chunk", f"chunk of one of {STREAMS} streams", _chunk),
)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--traffic", choices=[traffic.name for traffic in TRAFFIC])
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--tokens", action="store_true", help="limit tokens too")
    options.add_argument("--compiled", action="store_true", help="as `peers.sh compiled` has made it")
    chosen = options.parse_args()
    ours = Servestate(workers=chosen.workers, tokens=chosen.tokens, compiled=chosen.compiled)
    kinds = [traffic for traffic in TRAFFIC if chosen.traffic in (None, traffic.name)]
    with bench([Nginx(), ours, Bare()]) as on:
        for name, why in on.absent.items():
            print(f"{name}: {why}")
        for traffic in kinds:
            print(f"## One {traffic.unit}\n")
            print(counts(on, traffic, chosen.seconds))
            for target in on.targets:
                if target.name == ours.name:
                    print(system_calls(on, target, traffic, chosen.seconds))
                    print(libraries(on, target, traffic, chosen.seconds))
                    print(functions(on, target, traffic, chosen.seconds))


def counts(on: Bench, traffic: Traffic, seconds: float) -> str:
    """What each target executes for one unit."""
    if shutil.which("perf") is None:
        return "perf is not installed: no counts of instructions.\n"
    lines = [f"| target | CPU µs | {' | '.join(_EVENTS)} |", f"| --- |{' --- |' * (1 + len(_EVENTS))}"]
    for target in on.targets:
        if traffic.name == "chunk" and target.name == "bare prototype":
            continue  # knows no streams
        traffic.run(on, target, 1)
        measured = traffic.run(on, target, seconds)
        found = _counted(on, target, traffic, seconds)
        cells = " | ".join(f"{found[event]:,.0f}" for event in _EVENTS)
        lines.append(f"| {target.name} | {measured.cpu_us:.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def _counted(on: Bench, target: Target, traffic: Traffic, seconds: float) -> dict[str, float]:
    """Events of one unit. Counts of the window come with the time they were taken over, and that time's
    share of the processor with the units done in it."""
    command = ["perf", "stat", "-x,", "-e", ",".join((*_EVENTS, "task-clock")), *_pids(target)]
    with _during(command) as process:
        measured = traffic.run(on, target, seconds)
        process.send_signal(signal.SIGINT)
        text = process.communicate()[1].decode()
    rows = (line.split(",") for line in text.splitlines() if line.count(",") > 3)
    found = {row[2]: float(row[0]) for row in rows if row[0].replace(".", "").isdigit()}
    units = found.pop("task-clock") * 1e3 / measured.cpu_us  # milliseconds on the processor
    return {event: found[event] / units for event in _EVENTS}


def system_calls(on: Bench, target: Target, traffic: Traffic, seconds: float) -> str:
    """How often each call is made for one unit. Being traced slows the target several times, so that more
    events are handled in a turn of the loop: calls of the loop itself come out too low."""
    if shutil.which("strace") is None:
        return "strace is not installed: no system calls.\n"
    command = ["strace", "-f", "-c", "-U", "name,calls,errors", *_pids(target)]
    with _during(command) as process:
        measured = traffic.run(on, target, seconds)
        process.send_signal(signal.SIGINT)
        text = process.communicate()[1].decode()
    lines = ["System calls:", "", "| call | per unit | failed |", "| --- | --- | --- |"]
    for name, calls, errors in re.findall(r"^(\w+) +(\d+) *(\d*)$", text, re.MULTILINE):
        each, failed = int(calls) / measured.count, int(errors or 0) / measured.count
        if name != "total" and each > 0.005:
            lines.append(f"| {name} | {each:.2f} | {failed:.2f} |")
    return "\n".join(lines) + "\n"


def libraries(on: Bench, target: Target, traffic: Traffic, seconds: float) -> str:
    """Shares of the processor's time by where the instructions stand."""
    if shutil.which("perf") is None:
        return ""
    data = Path(target.process.log.parent / "perf.data")
    command = ["perf", "record", "-q", "-F", "2000", "-o", str(data), *_pids(target)]
    with _during(command) as process:
        cost = traffic.run(on, target, seconds).cpu_us
        process.send_signal(signal.SIGINT)
        process.communicate()
    lines = ["By library, then the dearest symbols:", "", "| µs | where |", "| --- | --- |"]
    for keys, most in (("dso", 12), ("dso,symbol", _ROWS)):
        done = subprocess.run(
            ["perf", "report", "-q", "--stdio", "-i", str(data), "--sort", keys, "-g", "none"],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.findall(r"^ +([\d.]+)% +(.+?)[ -]*$", done.stdout, re.MULTILINE)
        named = [(share, what) for share, what in found if " 0x" not in what]  # a library without symbols
        lines += [
            f"| {float(share) / 100 * cost:.2f} | {re.sub(' +', ' ', what)} |" for share, what in named[:most]
        ]
    return "\n".join(lines) + "\n"


def functions(on: Bench, target: Target, traffic: Traffic, seconds: float) -> str:
    """Time in each Python function: in itself with the C that it calls, and with all that it calls. Threads
    count while they hold the interpreter's lock; of several workers one is looked at."""
    spy = installed_in() / "py-spy" / "bin" / "py-spy"
    if not spy.exists():
        return "py-spy is not installed: no functions.\n"
    raw = target.process.log.parent / "stacks"
    lasts = max(int(seconds), 1)
    command = [str(spy), "record", "-f", "raw", "-r", str(_SAMPLES_PER_S), "-d", str(lasts), "-o", str(raw)]
    with _during([*command, "--gil", "-F", "-p", str(target.process.tree()[-1])]) as process:
        cost = traffic.run(on, target, lasts + 1).cpu_us
        process.communicate()
    own: Counter[str] = Counter()
    all_in: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, times = line.rpartition(" ")
        frames = [frame.strip() for frame in stack.split(";")]
        own[frames[-1]] += int(times)
        for frame in set(frames):
            all_in[frame] += int(times)
    total = sum(own.values())
    lines = ["By Python function:", "", "| own µs | with callees µs | function |", "| --- | --- | --- |"]
    for frame, alone in own.most_common(_ROWS):
        lines.append(f"| {alone / total * cost:.2f} | {all_in[frame] / total * cost:.2f} | {_short(frame)} |")
    return "\n".join(lines) + "\n"


def _pids(target: Target) -> tuple[str, str]:
    return "-p", ",".join(map(str, target.process.tree()))


@contextmanager
def _during(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The tool at work, attached before the load begins."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.5)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _short(frame: str) -> str:
    return re.sub(r"\(.*/([^/]+/[^/]+)\)", r"(\1)", frame)


if __name__ == "__main__":
    main()
