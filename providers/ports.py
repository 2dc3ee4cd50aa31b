"""Ports, each reserved for one instance for as long as it lives.

A reservation is a lock on a file of its own. The kernel drops it when the last process that holds the file
ends, however it ends, so there is nothing to clean up and nothing to go stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from servestate.providers.protocol import PermanentError


def registry_dir() -> Path:
    """Where every servestate of this user keeps its reservations, whatever folder it works in."""
    runtime = Path(f"/run/user/{os.getuid()}")
    if runtime.is_dir() and os.access(runtime, os.W_OK):
        return runtime / "servestate" / "ports"
    # Not tempfile's choice, which writes a file to find out: even a plan would.
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"servestate-{os.getuid()}" / "ports"  # noqa: S108


def bindable(port: int) -> bool:
    """Whether nobody has the port on any address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))  # never listens: the wildcard conflicts with every other holder
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Ports:
    """The range to hand out, which must lie outside the kernel's own range for outgoing connections: a port
    of that one may be taken by any client between our look and the engine's bind."""

    first: int = 21000
    last: int = 28999
    registry: Path = field(default_factory=registry_dir)
    free: Callable[[int], bool] = bindable

    def reserve(self, seed: int) -> tuple[int, int]:
        """A free port and the open, locked file that reserves it. The search starts at a place given by
        `seed`, so an instance tends to keep its port. Raises PermanentError SS510 when none is free."""
        self._make_registry()
        size = self.last - self.first + 1
        for step in range(size):
            port = self.first + (seed + step) % size
            held = self._lock(port)
            if held is None:
                continue
            if self.free(port):
                return port, held
            os.close(held)
        raise PermanentError(
            "SS510",
            f"every port from {self.first} to {self.last} is taken",
            "stop what holds them, or give the provider a wider range",
        )

    def _lock(self, port: int) -> int | None:
        fd = os.open(self.registry / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise
        return fd

    def _make_registry(self) -> None:
        self.registry.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.registry.parent, self.registry):
            _refuse_foreign(folder)


def _refuse_foreign(folder: Path) -> None:
    # In a shared temporary folder anybody may have made this name first and so own what happens in it.
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermanentError(
            "SS504",
            f"{folder} is not a folder of this user only, so ports cannot be reserved in it",
            f"remove {folder}, or set TMPDIR to a folder of your own",
        )
