"""What goes wrong during a run: when, by a seed, and what is done to the site for it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.cli.harness import until
from tests.load.clients import Mood
from tests.load.place import ENTITIES, SPARE, TOKEN, Clock, Place

QUIET_AT_FIRST_S, QUIET_AT_LAST_S = 8.0, 14.0
_BACK_S = 120.0
_SPOILT = 10
"""How many answers the upstream breaks off, each time that it does."""
_WEIGHTS = ((40, 30, 20, 10), (10, 20, 30, 40), (97, 1, 1, 1), (25, 25, 25, 25))


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault, `at` seconds after the start."""

    at: float
    kind: str


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault as it came, on the monotonic clock."""

    kind: str
    start: float
    end: float


def plan(seconds: float, rounds: int, seed: object) -> list[Planned]:
    """Every kind once in each round, evenly over the time between a quiet beginning and a quiet end."""
    source = random.Random(str(seed))
    kinds = [kind for _ in range(rounds) for kind in source.sample(sorted(KINDS), len(KINDS))]
    step = (seconds - QUIET_AT_FIRST_S - QUIET_AT_LAST_S) / len(kinds)
    return [Planned(QUIET_AT_FIRST_S + index * step, kind) for index, kind in enumerate(kinds)]


@dataclass
class World:
    """What faults are done to. `revoked` are the times in which the spare token did not count, from two
    seconds after it was taken away."""

    place: Place
    clock: Clock
    mood: Mood
    source: random.Random
    happened: list[Happened] = field(default_factory=list)
    revoked: list[tuple[float, float]] = field(default_factory=list)

    def do(self, kind: str) -> None:
        """Have it happen. Blocks until it is over."""
        fault = KINDS[kind]
        if fault.before is not None:
            fault.before(self)
        start = time.monotonic()
        fault.effect(self)
        self.happened.append(Happened(kind, start, time.monotonic()))

    def recovered(self) -> None:
        """Return once everything is there again."""
        _all_upstreams(self)
        _a_controller(self)


@dataclass(frozen=True, slots=True)
class Fault:
    """`effect` has it happen. `before` is waited for first and is no part of it; `alone`: not together with
    others that are, such as an apply and the absence of its store. `harmful`: it may cost requests, those
    under way at what it hits."""

    effect: Callable[[World], None]
    harmful: bool = False
    alone: bool = True
    before: Callable[[World], None] | None = None


def _all_upstreams(world: World) -> None:
    until(lambda: len(world.place.upstreams()) == len(ENTITIES), "all upstreams are there", _BACK_S)


def _a_controller(world: World) -> None:
    until(lambda: world.place.controller() is not None, "there is a controller", _BACK_S)


def _kill(world: World) -> None:
    os.kill(min(world.place.upstreams()), signal.SIGKILL)  # the oldest: each in its turn


def _stop(world: World) -> None:
    victim = world.source.choice(world.place.upstreams())
    os.kill(victim, signal.SIGSTOP)
    time.sleep(5)
    os.kill(victim, signal.SIGCONT)


def _spoil(order: str) -> Callable[[World], None]:
    def effect(world: World) -> None:
        world.mood.orders += [order] * _SPOILT
        until(lambda: not world.mood.orders, "the answers have been asked for")

    return effect


def _reload(world: World) -> None:
    wanted = world.place.wanted
    wanted.stall_s = 45 - wanted.stall_s
    world.place.apply()


def _split(world: World) -> None:
    wanted = world.place.wanted
    wanted.weights = _WEIGHTS[(_WEIGHTS.index(wanted.weights) + 1) % len(_WEIGHTS)]
    world.place.apply()


def _controller(world: World) -> None:
    pid = world.place.controller()
    assert pid is not None, "it was there a moment ago"
    os.kill(pid, signal.SIGKILL)


def _store(world: World) -> None:
    folder = world.place.site.database.parent
    away = folder / "away"
    away.mkdir()
    files = [path for path in folder.iterdir() if path.name.startswith("state.db")]
    for path in files:
        path.rename(away / path.name)
    time.sleep(10)
    for path in folder.iterdir():
        if path.name.startswith("state.db"):  # made by somebody who missed it
            path.unlink()
    for path in files:
        (away / path.name).rename(path)
    away.rmdir()


def _ready(world: World) -> None:
    until(
        lambda: all(w["state"] == "ready" for w in world.place.status().get("workers", [{"state": ""}])),
        "all workers are ready",
        _BACK_S,
    )


def _worker(world: World) -> None:
    victim = world.source.choice(world.place.processes()["workers"])
    world.place.scrape()
    os.kill(victim, signal.SIGKILL)


def _leave(world: World) -> None:
    world.mood.leaving = 0.2
    time.sleep(5)
    world.mood.leaving = 0.0


def _clock(world: World) -> None:
    for seconds in (3600.0, -3600.0, 0.0):
        world.clock.step(seconds)
        time.sleep(1)


def _disk(world: World) -> None:
    """A file that takes nothing in the place of each log, and then none: the next line makes a new one."""
    folder = world.place.logs
    logs = [path for path in folder.iterdir() if path.suffix == ".log" and not path.is_symlink()]
    for path in logs:
        path.rename(path.with_name(f"{path.name}.{time.monotonic_ns()}"))
        path.symlink_to("/dev/full")
    time.sleep(3)
    for path in logs:
        path.unlink()


def _revoke(world: World) -> None:
    place = world.place
    place.wanted.tokens = (TOKEN,)
    place.write()
    gone = time.monotonic()
    time.sleep(3.5)
    world.revoked.append((gone + 2, time.monotonic()))
    place.wanted.tokens = (TOKEN, SPARE)
    place.write()
    time.sleep(2)  # until it counts again


def _replace(world: World) -> None:
    world.place.scrape()
    world.place.serve("--replace")


KINDS: dict[str, Fault] = {
    "upstream killed": Fault(_kill, harmful=True, alone=False, before=_all_upstreams),
    "upstream stopped for 5 s": Fault(_stop, harmful=True, alone=False, before=_all_upstreams),
    "answers reset": Fault(_spoil("reset"), harmful=True, alone=False),
    "answers truncated": Fault(_spoil("truncate"), harmful=True, alone=False),
    "configuration applied": Fault(_reload),
    "split changed": Fault(_split),
    "controller killed": Fault(_controller, before=_a_controller),
    "store away for 10 s": Fault(_store),
    "worker killed": Fault(_worker, harmful=True, before=_ready),
    "a fifth of the clients leave": Fault(_leave, alone=False),
    "wall clock stepped": Fault(_clock, alone=False),
    "log disk full": Fault(_disk),
    "token revoked": Fault(_revoke, harmful=True),
    "router replaced": Fault(_replace, before=_ready),
}


def harmful(happened: list[Happened]) -> Iterator[Happened]:
    """Those that may cost requests."""
    return (fault for fault in happened if KINDS[fault.kind].harmful)
