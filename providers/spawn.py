"""Starting one shim: the order of things in which no kill leaves an engine that nobody knows of.

The shim exists first and waits; then the record that names it is on disk; only then it gets the word to
start. A launcher that dies before the word leaves a shim that ends by itself, one that dies after it leaves
an instance that is on record and wears marks.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from servestate.providers import identity, shim
from servestate.providers.identity import Identity
from servestate.providers.protocol import PermanentError, TransientError

HANDSHAKE_TIMEOUT_S = 20.0

# What an engine may need of the environment servestate runs in. A list, because the rest of it decides
# nothing an engine should depend on, and may hold other people's secrets.
_KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "VIRTUAL_ENV", "TRANSFORMERS_CACHE", "TORCH_HOME",
}  # fmt: skip
_KEPT_PREFIXES = ("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "HF_", "OMP_", "ROCR_", "HIP_")


@dataclass(frozen=True, slots=True)
class Errand:
    """What a shim is told: the engine's argv, environment and working directory, and the secret values that
    it must not write down."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    mask: tuple[str, ...]

    def line(self) -> bytes:
        """The message to the shim."""
        body = {"argv": self.argv, "env": dict(self.env), "cwd": str(self.cwd), "mask": self.mask}
        return json.dumps(body).encode() + b"\n"


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of our environment that engines are given."""
    kept = {
        name: value for name, value in environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    return {"PYTHONUNBUFFERED": "1", **kept}


async def start(
    folder: Path,
    nonce: str,
    env: Mapping[str, str],
    reservation: int,
    record: Callable[[Identity], None],
    errand: Errand,
) -> None:
    """Start a shim in `folder` with the marks in `env`, have it put on record, and give it its errand.

    `reservation` stays open in the shim. Returns once the engine's program runs. Raises PermanentError SS505
    when it cannot be executed, and leaves nothing running whatever it raises.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pid = _spawn(folder, nonce, env, theirs.fileno(), reservation)
        with _killed_on_failure(pid) as shim_identity:
            record(shim_identity)
            ours.setblocking(False)
            reply = await _exchange(ours, errand.line())
            if "failed" in reply:
                raise _cannot_execute(errand, reply["failed"], reply["errno"])


def _spawn(folder: Path, nonce: str, env: Mapping[str, str], control: int, reservation: int) -> int:
    argv = [sys.executable, "-I", "-S", shim.__file__, str(folder), nonce]
    # Above the target numbers, or one dup2 could close what the next one copies.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (control, reservation)]
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
        (os.POSIX_SPAWN_DUP2, high[0], shim.CONTROL_FD),
        (os.POSIX_SPAWN_DUP2, high[1], shim.RESERVATION_FD),
    ]
    try:
        return os.posix_spawn(argv[0], argv, dict(env), file_actions=actions)
    finally:
        for fd in (*high, log):
            os.close(fd)


@contextmanager
def _killed_on_failure(pid: int) -> Iterator[Identity]:
    """The new shim's identity. It is our child and not collected, so its pid cannot be a stranger's."""
    try:
        found = identity.identify(pid)
        if found is None:
            raise TransientError("the new process vanished at once")
        yield found
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the kernel kills the engine with it
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise


async def _exchange(control: socket.socket, line: bytes) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    received = b""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await loop.sock_sendall(control, line)
            while not received.endswith(b"\n"):
                chunk = await loop.sock_recv(control, 65536)
                if not chunk:
                    raise TransientError("the process above the engine ended before it started the engine")
                received += chunk
    except TimeoutError:
        raise TransientError(f"no engine was started within {HANDSHAKE_TIMEOUT_S:.0f} s") from None
    except ConnectionError as error:
        raise TransientError(f"the process above the engine ended: {error}") from error
    reply: dict[str, object] = json.loads(received)
    return reply


def _cannot_execute(errand: Errand, step: object, number: object) -> Exception:
    code = int(str(number))
    if code in (errno.ENOMEM, errno.EAGAIN):
        return TransientError(f"the engine could not be started: {os.strerror(code)}")
    subject = str(errand.cwd) if step == "cwd" else errand.argv[0]
    fix = (
        "install it, or write its full path" if code == errno.ENOENT else "check the file and its permissions"
    )
    if code == errno.E2BIG:
        fix = "its arguments and environment are too long"
    return PermanentError("SS505", f"cannot execute {subject}: {os.strerror(code)}", fix)
