"""`servestate cancel ENDPOINT`: an update of the API is given up; what serves goes on serving."""

from __future__ import annotations

import argparse

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import server_of, token, workspace_of
from servestate.runtime.cli.output import say
from servestate.runtime.remote import Server


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    server = server_of(arguments) or _here(arguments)
    server.cancel_update(arguments.endpoint)
    say(f'The update of "{arguments.endpoint}" is cancelled; what served before goes on serving.')
    return exit_codes.OK


def _here(arguments: argparse.Namespace) -> Server:
    """The API of this site, past the router. Raises InvalidInput."""
    path = workspace_of(arguments).api_path
    if not path.exists():
        what = "the API of this site is not running"
        raise InvalidInput([Diagnostic("SS627", what, "start it: servestate serve")])
    return Server("http://api", token(), str(path))
