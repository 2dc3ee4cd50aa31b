"""Numbers that several workers share: exact over processes, whatever becomes of one of them."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from servestate.planner.access import Caller
from servestate.planner.table import Limit
from servestate.runtime.router.quota import memory as memory_module
from servestate.runtime.router.quota.memory import (
    COLUMNS,
    ENTRIES,
    HEAD,
    MOST_ENTRIES,
    MOST_WORKERS,
    TAIL,
    TOTAL,
    Memory,
)
from servestate.runtime.router.quota.mutex import PATIENCE_S, Mutex, Uncountable
from servestate.runtime.router.quota.rates import UNCOUNTABLE, Admission, Denied, Rates
from servestate.runtime.router.quota.windows import Gauge, Window
from tests.router.quota.spans import most_in_a_span

STORM = Path(__file__).with_name("storm.py")
SPEED = 30.0
"""A minute of the limits takes two seconds."""
CALLERS = [f"caller-{i}" for i in range(16)]
ANN = Caller("ann")


class Worker:
    """A process of `storm.py`, its output in `out`."""

    def __init__(self, out: IO[str], memory: Memory, number: int, **asked: Any) -> None:
        assert memory.fd is not None
        self.number = number
        self.asked = asked
        self._out = out
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(STORM), json.dumps(asked | {"fd": memory.fd, "worker": number})],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.PIPE,
            pass_fds=[memory.fd],
            text=True,
        )

    def begin(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """As if it had been killed by the system, and reaped by its parent."""
        self.process.kill()
        self.process.communicate()

    def lines(self) -> list[list[str]]:
        """What was written, less what a kill cut off."""
        self._out.flush()
        whole, _, _ = Path(self._out.name).read_text().rpartition("\n")
        return [line.split() for line in whole.splitlines()]


@contextmanager
def shared(workers: int) -> Iterator[Memory]:
    memory = Memory.create(workers)
    try:
        yield memory
    finally:
        memory.close()


class Fleet:
    """Workers that share a memory, each in a process of its own."""

    def __init__(self, memory: Memory, folder: Path) -> None:
        self._memory = memory
        self._folder = folder
        self.workers: list[Worker] = []

    def start(self, number: int, **asked: Any) -> Worker:
        out = (self._folder / f"{len(self.workers)}.txt").open("w")
        self.workers.append(Worker(out, self._memory, number, **asked))
        return self.workers[-1]

    def storm(self, count: int, **asked: Any) -> None:
        """Let so many loose at once."""
        for number in range(count):
            self.start(number, **asked)
        for worker in self.workers:
            worker.begin()
        for worker in self.workers:
            worker.go()

    def wait(self) -> None:
        for worker in self.workers:
            worker.process.communicate(timeout=60)

    def admitted(self) -> dict[str, list[float]]:
        """When what was admitted, by caller."""
        times = defaultdict(list)
        for worker in self.workers:
            for at, caller in worker.lines():
                times[caller].append(float(at))
        return {caller: sorted(found) for caller, found in times.items()}


@contextmanager
def fleet(memory: Memory, folder: Path) -> Iterator[Fleet]:
    started = Fleet(memory, folder)
    try:
        yield started
    finally:
        for worker in started.workers:
            worker.kill()
            worker._out.close()


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("unlocked", [False, True])
def test_every_number_of_a_sequence_is_drawn_exactly_once(tmp_path: Path, unlocked: bool) -> None:
    with shared(4) as memory, fleet(memory, tmp_path) as workers:
        workers.storm(4, draws=100_000 if unlocked else 25_000, unlocked=unlocked)
        workers.wait()
        drawn = sorted(int(line[0]) for worker in workers.workers for line in worker.lines())
    assert len(drawn) >= 100_000
    assert (drawn == list(range(len(drawn)))) is not unlocked, "without the lock, the check would notice"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_limits_are_exact_over_workers_and_nobody_starves(tmp_path: Path, count: int) -> None:
    limits = [("endpoint", "", 2400, 0), ("user", "", 150, 150 * 10)]
    with shared(count) as memory, fleet(memory, tmp_path) as workers:
        workers.storm(
            count, limits=limits, callers=CALLERS, speed=SPEED, seconds=5.0, tokens=12, used=9, concurrency=99
        )
        workers.wait()
        admitted = workers.admitted()
    everybody = sorted(at for times in admitted.values() for at in times)
    assert most_in_a_span(everybody) <= 2400
    assert set(admitted) == set(CALLERS)
    for times in admitted.values():
        assert most_in_a_span(times) <= 150
        assert len(times) >= 0.99 * 3 * 150, "three spans began within 2.5"


@pytest.mark.slow
@pytest.mark.parametrize("unlocked", [False, True])
def test_a_look_and_a_count_are_one(tmp_path: Path, unlocked: bool) -> None:
    limits = [("endpoint", "", 200, 0)]
    with shared(4) as memory, fleet(memory, tmp_path) as workers:
        workers.storm(
            4, limits=limits, callers=["a"], speed=SPEED, seconds=4.0, yielding=True, unlocked=unlocked
        )
        workers.wait()
        most = most_in_a_span(workers.admitted()["a"])
    assert (most == 200) is not unlocked, "without the lock, the check would notice"


@pytest.mark.slow
def test_workers_that_are_killed_leave_limits_exact(tmp_path: Path) -> None:
    chance = random.Random(5)
    asked: dict[str, Any] = {
        "limits": [("endpoint", "", 3000, 30_000)],
        "callers": ["a"],
        "speed": SPEED,
        "seconds": 120.0,
        "concurrency": 50,
        "tokens": 12,
        "used": 9,
    }
    with shared(4) as memory, fleet(memory, tmp_path) as workers:
        workers.storm(4, **asked)
        running = list(workers.workers)
        began, kills = time.monotonic(), 0
        while kills < 12 or time.monotonic() < began + 6.0:
            kills += 1
            time.sleep(chance.uniform(0.05, 0.2))
            victim = running.pop(chance.randrange(len(running)))
            victim.kill()
            memory.forget_worker(victim.number)
            running.append(workers.start(victim.number, **asked))
            running[-1].begin()
            running[-1].go()
        for worker in running:
            worker.kill()
            memory.forget_worker(worker.number)
        spans = int((time.monotonic() - began) * SPEED / 60.0)
        times = workers.admitted()["a"]
        assert most_in_a_span(times) <= 3000
        assert len(times) >= 3000 * spans * 0.98, "what a kill left counted too much was put right"
        rates = Rates("endpoint", [], 50, False, memory, None)
        outcomes = Counter(type(rates.admit(ANN, 0, 1e6)) for _ in range(60))
        assert outcomes == {Admission: 50, Denied: 10}, "nothing is in flight any more"


@pytest.mark.slow
def test_a_worker_that_is_stopped_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    with shared(4) as memory, fleet(memory, tmp_path) as workers:
        workers.storm(4, limits=[("endpoint", "", 600, 0)], callers=["a"], speed=SPEED, seconds=7.0)
        time.sleep(1.0)
        stopped = workers.workers[0].process
        os.kill(stopped.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(stopped.pid, signal.SIGCONT)
        workers.wait()
        times = workers.admitted()["a"]
    assert most_in_a_span(times) <= 600
    assert len(times) >= 3 * 600


# One process that stands for another


class Killed(BaseException):
    """The process is no more."""


class Dying:
    """A view of numbers whose owner is killed before a certain store."""

    def __init__(self, view: memoryview, left: list[int]) -> None:
        self._view = view
        self._left = left

    def __getitem__(self, place: int | slice) -> Any:
        return self._view[place]

    def __setitem__(self, place: int, number: float) -> None:
        if self._left[0] == 0:
            raise Killed
        self._left[0] -= 1
        self._view[place] = number  # type: ignore[call-overload]


def entries_of(memory: Memory, digest: int) -> int:
    at = memory.windows.find(digest, 0.0)
    kept = range(memory.integers[at + TAIL], memory.integers[at + HEAD])
    return sum(memory.integers[at + ENTRIES + 2 * (number % MOST_ENTRIES) + 1] for number in kept)


Step = Callable[[Window], object]
STEPS: dict[str, tuple[float, Step]] = {
    "a new entry": (20.0, lambda w: w.add(7, 20.0)),
    "an entry that grows": (10.1, lambda w: w.add(7, 10.1)),
    "one that is over": (60.0, lambda w: None),
    "all are over": (90.0, lambda w: w.add(7, 90.0)),
    "less was used": (11.0, lambda w: w.settle(1, -3)),
    "more was used": (11.0, lambda w: w.settle(1, 30)),
}


class Careless(Window):
    """Lowers the sum before it forgets."""

    def left(self, now: float) -> int:
        at, integers = self._at, self._integers
        if integers[at] == self._digest and integers[at + TAIL] != integers[at + HEAD]:
            entry = at + ENTRIES + 2 * (integers[at + TAIL] % MOST_ENTRIES)
            if self._times[entry] + 60.0 <= now:
                integers[at + TOTAL] -= integers[entry + 1]
                integers[at + TAIL] += 1
        return super().left(now)


def check(memory: Memory, digest: int, whole: Window, moment: float) -> None:
    """Worker 1 was killed: what it left counts enough, and is exact once the worker is forgotten."""
    counted = 1000 - whole.left(moment)
    assert entries_of(memory, digest) <= counted, "more could be admitted than there is room for"
    memory.forget_worker(1)
    assert 1000 - whole.left(moment) == entries_of(memory, digest)


def stepped(kind: type[Window], moment: float, step: Step) -> int:
    """Have a process go one instruction of the machine at a time, and check at each what a kill would leave;
    how many states of the numbers that were. Compiled, stores may stand in another order than they were
    written in."""
    with closing(Memory.create(2)) as memory, closing(Memory.create(2)) as left:
        digest = memory.digest("a window")
        whole = kind(memory, digest, 1000, lasting=True)
        for at, amount in ((0.0, 5), (10.0, 4)):
            whole.left(at)
            whole.add(amount, at)
        place = memory.windows.find(digest, 0.0)
        row = slice(place, place + memory_module._WINDOW_WIDTH)
        states, seen = 0, bytes(memory.integers[row])
        for _ in single_steps(lambda: (whole.left(moment), step(whole))):
            now = bytes(memory.integers[row])
            if now != seen:
                states, seen = states + 1, now
                left.integers[row] = memory.integers[row]
                check(left, digest, kind(left, digest, 1000, lasting=True), moment)
        assert 1000 - whole.left(moment) == entries_of(memory, digest)
        return states


def single_steps(work: Callable[[], object]) -> Iterator[None]:
    """After each instruction of a process that does `work` (ptrace(2))."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    gc.disable()  # of the process to be: a collection would be a million steps
    pid = os.fork()
    if pid == 0:
        ptrace(0, 0, None, None)  # PTRACE_TRACEME
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os.kill(os.getpid(), signal.SIGKILL)
    gc.enable()
    try:
        os.waitpid(pid, 0)
        while ptrace(9, pid, None, None) == 0:  # PTRACE_SINGLESTEP
            _, status = os.waitpid(pid, 0)
            if not os.WIFSTOPPED(status):
                assert os.WTERMSIG(status) == signal.SIGKILL
                return
            if os.WSTOPSIG(status) != signal.SIGTRAP:
                return  # about to end
            yield
        raise OSError(ctypes.get_errno(), "ptrace")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.mark.parametrize("name", STEPS)
def test_a_kill_at_any_instruction_leaves_too_much_counted_and_never_too_little(name: str) -> None:
    moment, step = STEPS[name]
    assert stepped(Window, moment, step) >= 2, "the step does something"


def test_the_check_notices_a_wrong_order() -> None:
    with pytest.raises(AssertionError, match="more could be admitted"):
        stepped(Careless, 60.0, lambda w: None)


@pytest.mark.parametrize("before_leaving", [False, True])
def test_a_kill_leaves_no_more_room_in_flight_and_is_put_right(before_leaving: bool) -> None:
    for stores in range(3):
        memory = Memory.private()
        digest = memory.digest("a gauge")
        whole, dying = Gauge(memory, digest, 9), Gauge(memory, digest, 9)
        dying._column = COLUMNS + 5
        for gauge in (whole, dying):
            gauge.full(0.0)
            gauge.enter(0.0)
        dying._integers = Dying(memory.integers, [stores])  # type: ignore[assignment]
        try:
            (dying.leave if before_leaving else dying.enter)(1.0)
        except Killed:
            columns = sum(memory.integers[whole._at + COLUMNS : whole._at + COLUMNS + MOST_WORKERS])
            assert memory.integers[whole._at + TOTAL] >= columns
        memory.forget_worker(5)
        assert not whole.full(2.0)
        assert memory.integers[whole._at + TOTAL] == 1


def test_a_row_that_was_changing_hands_is_found_by_neither() -> None:
    memory = Memory.private()
    mine, yours = 64, 64 + memory_module.WINDOWS  # the same first place
    at = memory.windows.find(mine, 1.0)
    memory.integers[at] = memory_module._FORMER
    assert memory.windows.find(yours, 1.0) == at
    assert memory.windows.find(mine, 1.0) != at
    assert memory.windows.find(yours, 1.0) == at


# A lock that is not given back


def stuck(memory: Memory) -> subprocess.Popen[str]:
    """A worker that took the lock and does not give it back."""
    assert memory.fd is not None
    source = (
        "import sys, time; from servestate.runtime.router.quota.memory import Memory; "
        f"Memory.attach({memory.fd}, 3).enter(time.monotonic()); print('taken', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", source], stdout=subprocess.PIPE, text=True, pass_fds=[memory.fd]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def test_what_cannot_be_counted_is_not_admitted_and_what_ends_meanwhile_is_counted_later() -> None:
    with shared(4) as memory:
        rates = Rates("ep", [Limit("endpoint", "", 5, 100)], 1, False, memory, None)
        shadow = Rates("ep", [Limit("endpoint", "", 5)], 0, True, memory, None)
        running = rates.admit(ANN, 100, 1.0)
        assert isinstance(running, Admission)
        holder = stuck(memory)
        try:
            began = time.monotonic()
            got = rates.admit(ANN, 1, 2.0)
            assert isinstance(got, Denied)
            assert (got.limit, got.wait_s) == (UNCOUNTABLE, 1)
            assert PATIENCE_S <= time.monotonic() - began < 0.5
            began = time.monotonic()
            assert isinstance(shadow.admit(ANN, 0, 2.0), Admission)
            for _ in range(50):
                assert isinstance(rates.admit(ANN, 1, 2.0), Denied)
            assert time.monotonic() - began < 25 * PATIENCE_S, "the loop waits once"
            running.ended(1, 2.0)
            assert [memory.sequence("ep").next() for _ in range(3)] == [0, 1, 2], "splits have their own"
        finally:
            holder.kill()
            holder.communicate()
        assert isinstance(rates.admit(ANN, 99, 3.0), Admission), "the dead give way, and the end was counted"
        assert rates.refused == {UNCOUNTABLE: 51}


def test_a_lock_that_is_lost_for_good_admits_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with shared(2) as memory:
        monkeypatch.setattr(Mutex, "take", lambda _: (_ for _ in ()).throw(Uncountable("lost")))
        rates = Rates("ep", [Limit("endpoint", "", 5)], 0, False, memory, None)
        assert isinstance(rates.admit(ANN, 0, 1.0), Denied)
        with pytest.raises(Uncountable):
            memory.sequence("ep").next()


# What is shared


def test_a_late_clock_does_not_turn_the_limits_time_back() -> None:
    with shared(2) as memory:
        assert memory.fd is not None
        other = Memory.attach(memory.fd, 1)
        for numbers, now, held in ((memory, 10.0, 10.0), (other, 9.0, 10.0), (other, 11.0, 11.0)):
            assert numbers.enter(now) == held
            numbers.leave()


def test_workers_see_one_anothers_numbers_and_an_attached_one_goes_on() -> None:
    with shared(2) as memory:
        assert memory.fd is not None
        one, other = Memory.attach(memory.fd, 0), Memory.attach(memory.fd, 1)
        draws = [numbers.sequence("ep").next for numbers in (one, other, one)]
        assert [draw() for draw in draws * 2] == [0, 1, 2, 3, 4, 5]
        assert one.sequence("else").next() == 0
        limits = [Limit("endpoint", "", 3)]
        rates = [Rates("ep", limits, 0, False, numbers, None) for numbers in (one, other)]
        got = [rates[i % 2].admit(ANN, 0, float(i)) for i in range(4)]
        assert [type(one) for one in got] == [Admission, Admission, Admission, Denied]
    successor = Rates("ep", limits, 0, False, one, None)
    assert isinstance(successor.admit(ANN, 0, 5.0), Denied), "it outlives the descriptor, too"


def test_a_private_sequence_counts_and_keeps_its_place() -> None:
    memory = Memory.private()
    assert [memory.sequence("a").next() for _ in range(3)] == [0, 1, 2]
    assert memory.sequence("b").next() == 0


def test_what_is_not_a_routers_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "short").open("w+b") as short, pytest.raises(ValueError, match="another version"):
        Memory.attach(short.fileno(), 0)
    with shared(1) as memory:
        assert memory.fd is not None
        with pytest.raises(ValueError, match="numbered"):
            Memory.attach(memory.fd, MOST_WORKERS)
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, 8)
        memory.integers[0] += 1
        with pytest.raises(ValueError, match="another version"):
            Memory.attach(memory.fd, 0)
    with pytest.raises(ValueError, match="1 to"):
        Memory.create(0)
