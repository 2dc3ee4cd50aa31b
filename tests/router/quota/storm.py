"""A worker that does nothing but ask: a process of its own on a memory that it shares with others.

    python -P storm.py '{"fd": 7, "worker": 1, ...}'

Writes a line for each number that it drew, or for each request that was admitted: the time that the limits
went by, and who asked. It ends by itself after `seconds`, or when it has drawn `draws` numbers. `yielding`
lets others run between the look at a limit and the count; `unlocked` takes the lock away, to show that the
checks would notice.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from servestate.planner.access import Caller
from servestate.planner.table import Limit
from servestate.runtime.router.quota.memory import Memory
from servestate.runtime.router.quota.mutex import Mutex, Uncountable
from servestate.runtime.router.quota.rates import Admission, Rates
from servestate.runtime.router.quota.windows import Window


def main(asked: dict[str, Any]) -> None:
    memory = Memory.attach(asked["fd"], asked["worker"])
    if asked.get("unlocked"):
        Mutex.take = Mutex.give = lambda _: None  # type: ignore[method-assign]
    if asked.get("yielding"):
        add = Window.add

        def yielding(window: Window, amount: int, now: float) -> int:
            os.sched_yield()
            return add(window, amount, now)

        Window.add = yielding  # type: ignore[method-assign]
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    sys.stdin.readline()
    if "draws" in asked:
        draw(memory, asked["draws"])
    else:
        storm(memory, asked)


def draw(memory: Memory, draws: int) -> None:
    numbers, sequence = [], memory.sequence("endpoint")
    while len(numbers) < draws:
        try:
            numbers.append(sequence.next())
        except Uncountable:
            time.sleep(0.001)
    print("\n".join(map(str, numbers)), flush=True)


def storm(memory: Memory, asked: dict[str, Any]) -> None:
    at, enter = [0.0], memory.enter

    def noting(now: float) -> float:
        at[0] = enter(now)
        return at[0]

    memory.enter = noting  # type: ignore[method-assign]
    limits = [Limit(*limit) for limit in asked["limits"]]
    rates = Rates("endpoint", limits, asked.get("concurrency", 0), False, memory, None)
    callers = [Caller(name) for name in asked["callers"]]
    speed, until = asked["speed"], time.monotonic() + asked["seconds"]
    while (now := time.monotonic()) < until:
        for caller in callers:
            got = rates.admit(caller, asked.get("tokens", 0), now * speed)
            if isinstance(got, Admission):
                sys.stdout.write(f"{at[0]!r} {caller.name}\n")
                sys.stdout.flush()  # a kill must not take what was admitted along
                got.ended(asked.get("used"), time.monotonic() * speed)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
