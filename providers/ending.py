"""How a launch ends: killing all of it, and telling why it is over."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

from servestate.providers import cause, census, identity
from servestate.providers.cause import Cause
from servestate.providers.census import Tree
from servestate.providers.identity import Identity
from servestate.providers.protocol import TransientError
from servestate.providers.rundir import Exit, Run

KILL_TIMEOUT_S = 10.0
SHIM_ALONE_S = 1.0
"""How long a shim with nothing below it may take to end by itself."""


async def kill(nonce: str) -> None:
    """Kill every process of a launch and wait until there is none. The shim goes last: while it lives it
    reaps, and once alone it ends by itself. Raises TransientError when something does not end."""
    loop = asyncio.get_running_loop()
    start, alone_since, pause, empty_looks = loop.time(), None, 0.001, 0
    seen: set[Identity] = set()
    # A process in the midst of exec or of its end shows no marks for a moment: hence a second look, and what
    # was seen once is waited for by identity.
    while empty_looks < 2:
        now = loop.time()
        tree = census.tree_of(nonce)
        if tree is not None:
            seen |= {tree.head, *tree.members}
            alone_since = None if tree.members else alone_since or now
            _kill_once(tree, patient=alone_since is None or now - alone_since < SHIM_ALONE_S)
        left = [one for one in seen if identity.alive(one)]
        empty_looks = 0 if tree or left else empty_looks + 1
        if left and now - start > KILL_TIMEOUT_S:
            raise TransientError(f"pid {left[0].pid} does not end although it was killed")
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill_once(tree: Tree, patient: bool) -> None:
    """Kill the tree, but not a shim that may still end by itself."""
    for member in tree.members:
        identity.send(member, signal.SIGKILL)
    if not tree.started or not patient:
        identity.send(tree.head, signal.SIGKILL)


def why(run: Run, end: Exit | None, log: Sequence[str], lines: int) -> Cause:
    """How a launch ended and the likely cause, with the last log lines. The exit record's own lines win: they
    are of that very moment and masked."""
    if end is None:
        rebooted = run.shim.boot != identity.boot_id()
        headline = "the machine was restarted" if rebooted else "killed from outside, together with its shim"
        return Cause(cause.ENDED, cause.with_log(headline, log, lines))
    found = cause.ended(end.code, end.signal, (*log, *end.tail))
    return Cause(found.code, cause.with_log(found.text, end.tail, lines))
