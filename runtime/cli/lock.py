"""`servestate lock list|break`: who holds the lock, and taking it away by its exact id."""

from __future__ import annotations

import argparse

from servestate.runtime import exit_codes
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import Usage, complain, describe_lock, say
from servestate.runtime.store.protocol import LockHeld
from servestate.runtime.workspace import is_gone


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if (arguments.what == "break") != (arguments.id is not None):
        raise Usage("lock break takes an ID, lock list takes none")
    store = workspace_of(arguments).store
    held = store.held()
    if arguments.what == "list":
        say(describe_lock(LockHeld(held)) if held else "no lock is held")
        if held is not None and is_gone(held.owner):
            say("  its process has ended: the next apply breaks it by itself")
        return exit_codes.OK
    if held is None:
        complain("SS408 no lock is held")
        return exit_codes.ERROR
    if held.id != arguments.id or not (arguments.force or is_gone(held.owner)):
        complain(describe_lock(LockHeld(held)))
        complain("  not broken: it takes the exact id, and --force while the holder may be alive")
        return exit_codes.REFUSED
    store.break_lock(held.id)
    store.close()
    say(f"broke lock {held.id}")
    return exit_codes.OK
