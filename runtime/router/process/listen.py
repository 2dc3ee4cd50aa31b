"""Sockets that the router listens on: opened, taken over from a router that runs, dealt to the workers.

The first socket of an address is bound for itself and shared only afterwards: so the start still finds out
that the port is somebody else's, and workers, or a router that replaces this one, can add sockets of theirs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.spec.access_rules import is_loopback

BACKLOG = 1024

_SOCKET_PATH_BYTES = 107  # sockaddr_un of Linux, less the closing NUL
_TRIES = 8
"""A free port of one address may be taken at the next one of the same name."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """The listening sockets of one router, or of one worker of it."""

    router: tuple[socket.socket, ...] = ()
    management: tuple[socket.socket, ...] = ()

    def dealt(self, workers: int) -> list[Sockets]:
        """A share for each worker; every socket is in one of them, since connections queue at each."""
        return [Sockets(self.router[i::workers], self.management[i::workers]) for i in range(workers)]

    def duplicate(self) -> Sockets:
        """The same sockets under descriptors of their own."""
        return Sockets(tuple(s.dup() for s in self.router), tuple(s.dup() for s in self.management))

    def without(self, others: Sockets) -> Sockets:
        """Those of them that are not among the others."""
        return Sockets(
            tuple(s for s in self.router if s not in others.router),
            tuple(s for s in self.management if s not in others.management),
        )

    def close(self) -> None:
        """Give back the descriptors. What waits in a queue that nobody else holds is refused."""
        for sock in (*self.router, *self.management):
            sock.close()


Address = tuple[str, int]


def open_all(
    router: Address, management: Address | None, count: int = 1, kept: Sockets | None = None
) -> Sockets:
    """The sockets of both listeners, `count` of each at least. Raises InvalidInput SS603."""
    kept = kept or Sockets()
    with contextlib.ExitStack() as opened:
        first = open_listener(*router, count, kept.router)
        opened.callback(Sockets(first).close)
        second = () if management is None else open_listener(*management, count, kept.management)
        opened.pop_all()
    return Sockets(first, second)


def open_listener(
    host: str, port: int, count: int = 1, kept: Sequence[socket.socket] = ()
) -> tuple[socket.socket, ...]:
    """At least `count` sockets for each address of `host`; port 0 is any free one, the same for all of them.
    Those of `kept` that listen there already are among them. Raises InvalidInput SS603."""
    with contextlib.ExitStack() as opened:
        try:
            found = _open(host, port, count, kept, opened)
        except OSError as error:
            raise _invalid(
                "SS603",
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "stop what uses the port, choose another, or 0 for any free one",
            ) from None
        opened.pop_all()
    return found


def url_of(sockets: Sequence[socket.socket], scheme: str) -> str:
    """The URL of the first of them."""
    host, port = sockets[0].getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def control_socket(path: Path, *, replacing: bool = False) -> socket.socket:
    """A listening unix socket for this user only. A file left by a router that died is replaced; with
    `replacing`, the socket of one that runs as well. Raises InvalidInput SS604."""
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise _invalid(
            "SS604",
            f"the control socket's path is longer than {_SOCKET_PATH_BYTES} bytes: {path}",
            "shorten it",
        )
    if not replacing:
        check_alone(path)
    draft = path.with_suffix(".new")  # no longer than the path itself
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        draft.unlink(missing_ok=True)
        sock.bind(os.fspath(draft))
        sock.listen(BACKLOG)
        draft.replace(path)
    except OSError as error:
        sock.close()
        raise _invalid(
            "SS604", f"cannot open the control socket {path}: {error.strerror or error}", "check its folder"
        ) from None
    finally:
        os.umask(mask)
    return sock


def check_alone(path: Path) -> None:
    """Raises InvalidInput SS604 where a router answers on its control socket there."""
    if answers(path):
        fix = "stop it first, or replace it: servestate serve --replace"
        raise _invalid("SS604", f"another router answers on {path}", fix)


def answers(path: Path) -> bool:
    """Whether somebody listens on that unix socket: the file alone says nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def remove_control(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket's file, unless another router has put its own in that place."""
    if is_at(path, identity):
        path.unlink(missing_ok=True)


def is_at(path: Path, identity: tuple[int, int]) -> bool:
    """Whether the file at `path` is that one."""
    try:
        return identity_of(path) == identity
    except OSError:
        return False


def identity_of(path: Path) -> tuple[int, int]:
    """What tells a file from one that replaces it. Raises OSError."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _open(
    host: str, port: int, count: int, kept: Sequence[socket.socket], opened: contextlib.ExitStack
) -> tuple[socket.socket, ...]:
    addresses = _addresses(host, port)
    for last in (*[False] * (_TRIES - 1), True):
        with contextlib.ExitStack() as attempt:
            try:
                found = tuple(_all(addresses, port, count, kept, attempt))
            except OSError as error:
                if last or port or len(addresses) == 1 or error.errno != errno.EADDRINUSE:
                    raise
                continue
            opened.push(attempt.pop_all())
            return found
    raise AssertionError("the last try returns or raises")


def _all(
    addresses: Sequence[tuple[socket.AddressFamily, Any]],
    port: int,
    count: int,
    kept: Sequence[socket.socket],
    opened: contextlib.ExitStack,
) -> Iterator[socket.socket]:
    for family, (host, _, *more) in addresses:
        have = [sock for sock in kept if _listens_at(sock, family, host, port)]
        yield from have
        several = len(addresses) > 1
        if not have:
            first = opened.enter_context(_bound(family, (host, port, *more), several))
            have = [first]
            first.listen(BACKLOG)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            yield first
        port = have[0].getsockname()[1]
        for _ in range(count - len(have)):
            # It listens once its worker does: until then no connection can come to it and be lost with it.
            yield opened.enter_context(_bound(family, (host, port, *more), several, shared=True))


def _bound(
    family: socket.AddressFamily, address: Any, several: bool, *, shared: bool = False
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and several:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """What the name stands for here, IPv4 first. Raises OSError."""
    resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found = {(family, address) for family, _, _, _, address in resolved}
    if is_loopback(host):  # whatever a file of names says: `localhost` was allowed because it is this machine
        found = {(family, address) for family, address in found if is_loopback(str(address[0]))}
    usable = [one for one in found if len(found) == 1 or _is_here(*one)]
    if not usable:
        raise OSError(errno.EADDRNOTAVAIL, "no address of this machine has that name")
    return sorted(usable, key=lambda one: (one[0] != socket.AF_INET, one[1]))


def _is_here(family: socket.AddressFamily, address: Any) -> bool:
    """Whether this machine has the address: one without IPv6 may still have a name for it."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def _listens_at(sock: socket.socket, family: socket.AddressFamily, host: str, port: int) -> bool:
    own, its_port = sock.getsockname()[:2]
    return sock.family == family and own == host and port in (0, its_port)


def _invalid(code: str, what: str, fix: str) -> InvalidInput:
    return InvalidInput([Diagnostic(code, what, fix)])
