"""Why an engine ended, in words a person can act on. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

# The first pattern that matches wins, so the more particular ones come first.
_CAUSES = (
    (r"address already in use|couldn't bind|failed to bind|EADDRINUSE", "the port is taken"),
    (r"out of memory|bad_alloc|cannot allocate memory|MemoryError|failed to allocate", "out of memory"),
    (r"No space left on device", "the disk is full"),
    (r"No module named '?([\w.]+)'?", "the Python module {0} is missing"),
    (r"unrecognized arguments: (.+)", "the engine does not know these arguments: {0}"),
    (
        r"failed to load model|error loading model|failed to open GGUF|no such model",
        "the model could not be loaded",
    ),
    (r"command not found", "a command is missing"),
    (r"No such file or directory", "a file is missing"),
    (r"Permission denied", "a file or port may not be used"),
)
_BY_SIGNAL = {
    signal.SIGKILL: "killed from outside, often for want of memory",
    signal.SIGSEGV: "it crashed",
    signal.SIGABRT: "it gave up",
    signal.SIGILL: "built for another kind of CPU",
}


def how_it_ended(code: int | None, number: int | None) -> str:
    """`exit code 3`, or `signal 9 (SIGKILL)`. A code over 128 is a shell's way to say signal."""
    if number is not None:
        return f"signal {number} ({_signal_name(number)})"
    if code is not None and code > 128:
        return f"exit code {code} (a child died of {_signal_name(code - 128)})"
    return f"exit code {code}"


def likely_cause(code: int | None, number: int | None, log: Sequence[str]) -> str:
    """The likely cause by the last log lines, newest first, then by the signal; "" where neither tells."""
    for line in reversed(log):
        for pattern, cause in _CAUSES:
            if match := re.search(pattern, line, re.IGNORECASE):
                return cause.format(*match.groups())
    if number is None and code is not None and code > 128:
        number = code - 128
    return next((cause for known, cause in _BY_SIGNAL.items() if known == number), "")


def with_log(headline: str, log: Sequence[str], lines: int) -> str:
    """The headline, and under it the last `lines` log lines."""
    shown = [line.rstrip() for line in log if line.strip()][-lines:]
    return "\n".join([headline, *(f"| {line}" for line in shown)])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
