"""Which process: pid, start time and boot, and signals that reach that very process or nobody.

A pid alone is reused by strangers. The three together never are, so they are the handle of an instance.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from servestate.providers import proc

_TEXT = re.compile(r"(?P<pid>\d+)\.(?P<start>\d+)\.(?P<boot>[0-9a-f]{8})\Z")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process in the whole life of this machine. Prints as the handle `PID.START.BOOT`."""

    pid: int
    start: int
    boot: str

    def __str__(self) -> str:
        return f"{self.pid}.{self.start}.{self.boot}"


def parse(text: str) -> Identity | None:
    """The identity that prints as `text`; None for anything else."""
    match = _TEXT.match(text)
    if match is None or int(match["pid"]) == 0:
        return None
    return Identity(int(match["pid"]), int(match["start"]), match["boot"])


def boot_id() -> str:
    """Eight digits that change at every boot."""
    return _BOOT_ID.read_text()[:8]


def identify(pid: int) -> Identity | None:
    """The identity of the process that has this pid now."""
    stat = proc.stat(pid)
    return None if stat is None else Identity(pid, stat.start, boot_id())


def matches(identity: Identity) -> bool:
    """Whether the pid still belongs to that process, ended but uncollected included."""
    return identify(identity.pid) == identity


def alive(identity: Identity) -> bool:
    """Whether that process still runs (or is paused). Collects it when it is a dead child of ours."""
    stat = proc.stat(identity.pid)
    if stat is None or not matches(identity):
        return False
    if stat.dead:
        collect(identity.pid)
    return not stat.dead


def collect(pid: int) -> None:
    """Take a dead child of ours off the process table. A no-op for anything else."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@contextmanager
def opened(identity: Identity) -> Iterator[int | None]:
    """A pidfd of exactly that process, or None when it is gone.

    Opened first and checked second: if the process is still the one meant after the pidfd exists, then the
    pidfd cannot be of a later one.
    """
    try:
        fd = os.pidfd_open(identity.pid)
    except (ProcessLookupError, OverflowError):
        yield None
        return
    try:
        yield fd if matches(identity) else None
    finally:
        os.close(fd)


def send(identity: Identity, *signals: signal.Signals) -> bool:
    """Signal that process and no other. False when it is gone or not ours to signal."""
    with opened(identity) as fd:
        if fd is None:
            return False
        try:
            for number in signals:
                signal.pidfd_send_signal(fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


async def ended(identity: Identity, timeout_s: float) -> bool:
    """Wait until that process has ended, at most `timeout_s` seconds; whether it has."""
    with opened(identity) as fd:
        if fd is None:
            return True
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, _settle, readable)
        try:
            await asyncio.wait([readable], timeout=timeout_s)
        finally:
            loop.remove_reader(fd)
    return not alive(identity)


def _settle(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
