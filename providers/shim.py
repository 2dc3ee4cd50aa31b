"""The process above each engine: it starts it, sees it end, writes down how, and leaves nothing behind.

Run as a script with `-I -S`, so it imports the standard library only and stays small; it outlives the
command that launched it. Order of things:

1. It waits on its control socket. Until the whole message is there nothing has been started, so a launcher
   that is killed leaves no engine: the socket closes and the shim ends.
2. It becomes the reaper of every descendant, then starts the engine in a process group of its own. The
   kernel kills the engine should the shim itself be killed.
3. When the engine ends, or after SIGTERM made it end, it writes the exit record and kills what the engine
   started, what called setsid or forked twice included: orphans become its children.

Arguments: the instance folder and the nonce of this launch. Message: one line of JSON with argv, env, cwd and
the secret values to mask in what it writes down.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

LOG_FD = 1
CONTROL_FD = 3
RESERVATION_FD = 4
"""Holds the lock on the port's file; closed by the kernel when the shim ends."""
COMM_RUNNING = "servestate-run"
"""The shim's process name once the word to start was given; it has another one before."""
LOG_BOUND = 64 * 1024 * 1024
LOG_CHECK_EVERY_S = 10.0
TAIL_LINES = 20
TAIL_BYTES = 16 * 1024

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = (signal.SIGCHLD, signal.SIGTERM)
_libc = ctypes.CDLL(None, use_errno=True)


def main(folder: str, nonce: str) -> int:
    """Supervise one launch from the word to start to the last descendant's end."""
    _detach(folder)
    control = socket.socket(fileno=CONTROL_FD)
    message = _word_to_start(control)
    if message is None:
        _write_exit(nonce, started=False, status=None, tail=[])
        return 0
    signal.pthread_sigmask(signal.SIG_SETMASK, _WATCHED)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _libc.prctl(_PR_SET_NAME, COMM_RUNNING.encode())
    engine, error = _start(message)
    _answer(control, {"pid": engine, **error})
    status = _wait_for(engine)
    _write_exit(nonce, started=True, status=status, tail=_tail(message["mask"]))
    _kill_descendants()
    return 0


def _detach(folder: str) -> None:
    os.setsid()
    os.chdir(folder)  # records are written relative to it, so a folder that is moved keeps its engine
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > RESERVATION_FD:
            with suppress(OSError):  # the listing's own descriptor is closed already
                os.close(int(name))
    for fd in (CONTROL_FD, RESERVATION_FD):
        os.set_inheritable(fd, False)


def _word_to_start(control: socket.socket) -> Any:
    """The launcher's message, or None when the launcher is gone before it was complete."""
    received = b""
    while not received.endswith(b"\n"):
        try:
            chunk = control.recv(65536)
        except OSError:
            return None
        if not chunk:
            return None
        received += chunk
    return json.loads(received)


def _answer(control: socket.socket, reply: dict[str, Any]) -> None:
    with suppress(OSError):  # the launcher may be gone; the instance is found by its marks then
        control.sendall(json.dumps(reply).encode() + b"\n")
    control.close()


def _start(message: Any) -> tuple[int, dict[str, Any]]:
    """Start the engine; its pid, and what went wrong when it could not be executed."""
    failed, report = os.pipe()
    shim = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_engine(message, report, shim)
    os.close(report)
    with os.fdopen(failed, "rb") as pipe:
        text = pipe.read()  # ends empty when exec closes the other end
    if not text:
        return pid, {}
    step, number = text.decode().split()
    return pid, {"failed": step, "errno": int(number)}


def _become_engine(message: Any, report: int, shim: int) -> NoReturn:
    step = "start"
    try:
        os.setpgid(0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != shim:  # the shim died before the kernel was asked to tell us
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "cwd"
        os.chdir(message["cwd"])
        step = "exec"
        os.execvpe(message["argv"][0], message["argv"], message["env"])  # noqa: S606 - no shell is the point
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument, "=" in a variable's name
        os.write(report, f"{step} {getattr(error, 'errno', errno.EINVAL)}".encode())
    finally:
        os._exit(127)


def _wait_for(engine: int) -> int:
    """The engine's wait status. Passes SIGTERM on and keeps the log in bounds meanwhile."""
    while True:
        status = _reap(engine)
        if status is not None:
            return status
        info = signal.sigtimedwait(_WATCHED, LOG_CHECK_EVERY_S)
        if info is None:
            _bound_log()
        elif info.si_signo == signal.SIGTERM:
            _signal_group(engine, signal.SIGTERM)
            _signal_group(engine, signal.SIGCONT)  # a paused one could not answer


def _reap(engine: int) -> int | None:
    """Collect every child that has ended; the engine's status if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == engine:
            found = status


def _signal_group(engine: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(engine, number)


def _kill_descendants() -> None:
    """Kill children until there are none. Only direct children are killed: until they are collected here
    their pids cannot be reused, and what they leave behind becomes a direct child in turn."""
    pause = 0.001
    while True:
        for pid in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap(0)
        if not _has_children():
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.2)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    me = str(os.getpid())
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == me]


def _parent(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[1]
    except (OSError, IndexError):
        return ""


def _write_exit(nonce: str, *, started: bool, status: int | None, tail: list[str]) -> None:
    signalled = status is not None and os.WIFSIGNALED(status)
    record = {
        "started": started,
        "code": os.WEXITSTATUS(status) if status is not None and not signalled else None,
        "signal": os.WTERMSIG(status) if status is not None and signalled else None,
        "time": time.time(),
        "tail": tail,
    }
    with suppress(OSError):  # a full disk or a removed folder: that it is gone can still be seen
        _replace(f"exit.{nonce}.json", json.dumps(record).encode())


def _replace(name: str, content: bytes) -> None:
    fd = os.open(f"{name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(f"{name}.tmp", name)
    folder = os.open(".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _tail(mask: list[str]) -> list[str]:
    try:
        with open("log", "rb") as log:
            start = max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES)
            log.seek(start)
            if start:
                log.readline()  # the rest of a line that was cut, maybe inside a secret
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    for secret in mask:
        text = text.replace(secret, "***")
    return text.splitlines()[-TAIL_LINES:]


def _bound_log() -> None:
    """Move a log that has grown too long to log.1. The engine appends to the open file, so it is copied and
    cut, not renamed; lines written between the two are lost."""
    with suppress(OSError):
        if os.fstat(LOG_FD).st_size > LOG_BOUND:
            shutil.copyfile("log", "log.1")
            os.ftruncate(LOG_FD, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
