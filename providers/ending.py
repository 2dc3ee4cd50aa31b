"""How a launch ends: killing all of it, and telling why it is over."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

from servestate.providers import cause, census, identity
from servestate.providers.protocol import TransientError
from servestate.providers.rundir import Exit, Run

KILL_TIMEOUT_S = 10.0
SHIM_ALONE_S = 1.0
"""How long a shim with nothing below it may take to end by itself."""


async def kill(nonce: str) -> None:
    """Kill every process of a launch and wait until there is none. The shim goes last: while it lives it
    reaps, and once alone it ends by itself. Raises TransientError when something does not end."""
    loop = asyncio.get_running_loop()
    start, alone_since, pause = loop.time(), None, 0.002
    while (tree := census.tree_of(nonce)) is not None:
        now = loop.time()
        if now - start > KILL_TIMEOUT_S:
            raise TransientError(f"pid {tree.head.pid} does not end although it was killed")
        for member in tree.members:
            identity.send(member, signal.SIGKILL)
        alone_since = None if tree.members else alone_since or now
        if not tree.started or (alone_since is not None and now - alone_since > SHIM_ALONE_S):
            identity.send(tree.head, signal.SIGKILL)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)


def why(run: Run, end: Exit | None, log: Sequence[str], lines: int) -> str:
    """How a launch ended and the likely cause. The exit record's own log lines win: they are of that very
    moment and masked."""
    if end is None:
        rebooted = run.shim.boot != identity.boot_id()
        headline = "the machine was restarted" if rebooted else "killed from outside, together with its shim"
        return cause.with_log(headline, log, lines)
    guess = cause.likely_cause(end.code, end.signal, end.tail)
    headline = cause.how_it_ended(end.code, end.signal) + (f": {guess}" if guess else "")
    return cause.with_log(headline, end.tail, lines)
