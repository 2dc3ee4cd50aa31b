"""Keeps the controller and the API running beside the router, each in a process of its own.

The router parses strangers' bytes; they hold the store and the Docker socket. They share no memory, and the
router waits for nothing here: the threads that watch them mostly sleep.

The controller keeps the site that it was started with, so that one that is being edited does not end
supervision. Once somebody has applied another one, the controller is started anew with that. The API reads
the configuration by itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.site import Site
from servestate.runtime.backoff import HEALTHY_S, Backoff
from servestate.runtime.configuration import Options
from servestate.runtime.file_stamps import stamp_of
from servestate.runtime.order import Order
from servestate.runtime.supervision import HEARTBEAT_S, supervision_path
from servestate.runtime.workspace import Workspace

HUNG_AFTER_S = 30 * HEARTBEAT_S
"""Seconds; without a sign of life for so long the child is killed. Its intents cover what it was doing."""

_POLL_S = 0.5
_STOP_S = 60.0
"""How long a child may take to finish what is in flight."""


@dataclass(frozen=True, slots=True)
class Child:
    """What is kept running. `sign` is the file that it touches as a sign of life, where it gives one;
    `follows_site` where it has to be started anew for another site."""

    name: str
    module: str
    sign: Callable[[Workspace], Path] | None = None
    follows_site: bool = False


CONTROLLER = Child("controller", "servestate.runtime.controller", supervision_path, follows_site=True)
API = Child("API", "servestate.runtime.api.process")


class Guard:
    """Starts a child of one site, and starts it again whenever it ends or hangs, until told to stop. `tell`
    hears a line for people about each time. `reread` gives the site as it is configured now, or raises
    InvalidInput; `configuration` is where that is; `clock` is seconds of one that nobody sets."""

    def __init__(
        self,
        child: Child,
        workspace: Workspace,
        tell: Callable[[str], None],
        reread: Callable[[], Site],
        configuration: Options | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._child = child
        self._clock = clock
        self._configuration = configuration
        self._workspace = workspace
        self._tell = tell
        self._reread = reread
        self._site = workspace.site
        self._table = stamp_of(workspace.table_path)
        self._ending = threading.Event()
        # A daemon: a second signal ends serve at once, and the kernel then tells the child.
        self._thread = threading.Thread(target=self._run, name=f"guard of {child.name}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Return once the child has finished what is in flight and is gone."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._ending.is_set():
            began = self._clock()
            how = self._one_life()
            if self._ending.is_set():
                return
            if how is None:
                continue
            now = self._clock()
            backoff = (Backoff() if now - began >= HEALTHY_S else backoff).failed(now, random.random)
            delay = (backoff.next_try or now) - now
            self._tell(
                f"servestate: the {self._child.name} {how}; the router serves on without for {delay:.1f} s"
            )
            self._ending.wait(delay)
            backoff = backoff.restarted()

    def _one_life(self) -> str | None:
        """Run the child to its end; how that came, None where it was ended for another site's sake."""
        try:
            process = self._start()
        except OSError as error:
            return f"could not be started: {error}"
        sign = self._child.sign
        silence = _Silence(sign(self._workspace), self._clock) if sign is not None else None
        while process.poll() is None:
            if self._ending.wait(_POLL_S):
                _end(process)
            elif self._child.follows_site and self._has_another_site():
                self._tell(
                    f"servestate: another site has been applied; the {self._child.name} starts anew with it"
                )
                _end(process)
                return None
            elif silence is not None and silence.lasts_s() > HUNG_AFTER_S:
                process.kill()
                process.wait()
                return f"gave no sign of life for {HUNG_AFTER_S:.0f} s and was killed"
        return (
            f"was ended by signal {-process.returncode}"
            if process.returncode < 0
            else (f"ended with code {process.returncode}")
        )

    def _start(self) -> subprocess.Popen[bytes]:
        order = Order(self._site, os.getpid(), self._configuration)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._child.module, str(self._workspace.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for serve, which ends the child in its turn
        )
        assert process.stdin is not None
        # One that has ended already does not read; its exit code says how that came.
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(order.encode())
        return process

    def _has_another_site(self) -> bool:
        """Whether the site that is configured is another one since routes were last moved; it is the
        child's from then on. What is only being edited moves no route. A site with another state is
        another site's business: its router would be another one too."""
        stamp = stamp_of(self._workspace.table_path)
        if stamp == self._table:
            return False
        self._table = stamp
        try:
            site = self._reread()
        except (
            InvalidInput
        ):  # it is being edited again; the next apply cannot be carried out before it is right
            return False
        if site == self._site or site.state != self._site.state:
            return False
        self._site = site
        return True


class _Silence:
    """How long a child has given no sign of life, seen from outside. The time that its file bears counts for
    nothing: it is of a clock that people and NTP set, by hours at the first contact after a boot."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._seen = stamp_of(path)
        self._since = self._looked = clock()

    def lasts_s(self) -> float:
        """Seconds since the last sign that was seen, or since this began. Whoever was paused for long was so
        together with the child, most likely, and begins anew."""
        now, stamp = self._clock(), stamp_of(self._path)
        if stamp != self._seen or now - self._looked > HEARTBEAT_S:
            self._since = now
        self._seen, self._looked = stamp, now
        return now - self._since


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)  # a paused one could not hear it
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
