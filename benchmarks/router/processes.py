"""Processes on cores of their own: started, timed, weighed and ended together with their children."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository: what is started runs there, so that `-m benchmarks...` is found."""
TARGET_CORE, LOAD_CORE = "0", "1"
_END_WITHIN_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Pinned:
    """A process that runs on given cores, with all that it starts."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self.log = log
        self._process = process

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def tree(self) -> list[int]:
        """Its id and those of its descendants."""
        found, i = [self.pid], 0
        while i < len(found):
            found += _children(found[i])
            i += 1
        return found

    def cpu_s(self) -> float:
        """Processor time of the whole tree, by the clocks of its processes; what a child that is gone took is
        lost."""
        return sum(_cpu_ns(pid) for pid in self.tree()) / 1e9

    def rss_mib(self) -> float:
        """Resident memory of the whole tree; what processes share counts for each."""
        return sum(_rss_kib(pid) for pid in self.tree()) / 1024

    def end(self) -> None:
        """SIGTERM to the tree, SIGKILL to what is left of it."""
        tree = self.tree()
        for pid in tree:
            _signal(pid, signal.SIGTERM)
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            for pid in tree:
                _signal(pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def started(
    cores: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Pinned]:
    """Run `command` on `cores`, its output in `log`, until the block ends. A session of its own keeps an
    interrupt of the benchmark from reaching it before its end is asked for. Where the benchmark is killed,
    the kernel ends it: some peers grow by gigabytes when they are forgotten."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", cores, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    pinned = Pinned(process, log)
    try:
        yield pinned
    finally:
        pinned.end()


def busy_s() -> float:
    """Processor time that anything took on this machine, interrupts and the host included."""
    user, nice, system, _, _, *others = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return sum((user, nice, system, *others)) / _TICKS


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: Pinned, within_s: float) -> None:
    """Until somebody listens. Raises TimeoutError, with the last that the process said."""
    end = time.monotonic() + within_s
    while time.monotonic() < end and not process.ended:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    said = process.log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    raise TimeoutError(f"does not listen after {within_s:g} s: {' / '.join(said)}")


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it ended between two looks
        return []


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns
    except OSError:
        return 0


def _rss_kib(pid: int) -> int:
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) if found else 0


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
