"""How verbs talk: colour, diagnostics, and the one place where errors become exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TextIO

from servestate.planner.diagnostics import Diagnostic, Severity
from servestate.planner.render import COLOURS, PLAIN, Palette
from servestate.runtime import exit_codes
from servestate.runtime.causes import EXPECTED, diagnostics_of
from servestate.runtime.store.protocol import LockHeld


class Usage(Exception):
    """The command line makes no sense as given; exit code 64."""


class Exit(Exception):
    """The verb ends here with this code; everything has been said."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(str(code))


def palette(arguments: argparse.Namespace, stream: TextIO) -> Palette:
    """Colours for `stream`: --no-color wins over all, then --color, FORCE_COLOR, NO_COLOR, then whether it
    is a terminal."""
    if arguments.no_color or arguments.color == "never":
        return PLAIN
    if arguments.color == "always" or os.environ.get("FORCE_COLOR"):
        return COLOURS
    return COLOURS if stream.isatty() and not os.environ.get("NO_COLOR") else PLAIN


def in_automation() -> bool:
    """Whether hints for people would only be noise."""
    return bool(os.environ.get("CI") or os.environ.get("SERVESTATE_IN_AUTOMATION"))


def say(text: str) -> None:
    """A line of result on standard output."""
    print(text)


def complain(text: str) -> None:
    """A line on standard error, if there is still anybody who reads it: a router outlives its terminal."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def show_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Print every finding, warnings marked as such."""
    for found in diagnostics:
        prefix = "warning: " if found.severity is Severity.WARNING else ""
        complain(f"{prefix}{found}")


def guarded(verb: Callable[[], int], as_json_lines: bool) -> int:
    """Run a verb; every expected error becomes its message and exit code, never a traceback. With
    `as_json_lines`, findings go to standard output as diagnostic objects too, beside the text for people."""
    try:
        code = verb()
        sys.stdout.flush()  # here, where a failure still becomes a message
        return code
    except EXPECTED as error:
        found = diagnostics_of(error)
        show_diagnostics(found)
        if as_json_lines:
            say_json_diagnostics(found)
        return exit_codes.ERROR
    except Exit as end:
        return end.code
    except Usage as error:
        complain(f"servestate: error: {error}")
        if as_json_lines:
            say_json_diagnostics([usage_diagnostic(str(error))])
        return exit_codes.USAGE
    except LockHeld as error:
        complain(describe_lock(error))
        if as_json_lines:
            _say_json_lock(error)
        return exit_codes.LOCKED
    except KeyboardInterrupt:
        complain("interrupted")
        return exit_codes.INTERRUPTED
    except OSError as error:
        # Mostly our own output: its reader has gone (`| head`), its disk is full. What is left of it goes to
        # /dev/null, or the interpreter's own last flush would fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"SS411 cannot go on: {error}\n  fix: correct that, then run the same command again")
        return exit_codes.ERROR


def usage_diagnostic(what: str) -> Diagnostic:
    """The finding of a command line that makes no sense."""
    return Diagnostic("SS001", what, "see --help")


def _say_json_lock(error: LockHeld) -> None:
    from servestate.runtime.json_lines import lock_line

    say(lock_line(error.lock, describe_lock(error).splitlines()[0]))


def say_json_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """One `diagnostic` object per finding on standard output."""
    from servestate.runtime.json_lines import diagnostic_line

    for found in diagnostics:
        say(diagnostic_line(found))


def describe_lock(error: LockHeld) -> str:
    """Who holds the lock, since when, and what to do."""
    from datetime import UTC, datetime

    lock, owner = error.lock, error.lock.owner
    since = datetime.fromtimestamp(lock.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    pid = owner.process.partition(".")[0]
    lines = [
        f"SS406 the state is locked by {owner.person}@{owner.host} ({owner.verb}, pid {pid}) since {since}",
        f"    lock {lock.id}" + (f", {owner.ci_url}" if owner.ci_url else ""),
        "  fix: wait for it (--lock-timeout=60), or if it is certainly dead:",
        f"       servestate lock break {lock.id}",
    ]
    return "\n".join(lines)
