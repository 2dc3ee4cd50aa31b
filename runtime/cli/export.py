"""`servestate export`: endpoints that are applied, as YAML of a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.state import EndpointRecord, State
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import Usage
from servestate.runtime.cli.plan import save
from servestate.runtime.export import exported


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if bool(arguments.endpoints) == arguments.all:
        raise Usage("name endpoints, or pass --all")
    state = workspace_of(arguments).store.read() or State("")
    names = sorted(state.endpoints) if arguments.all else arguments.endpoints
    text = exported(_records(state, names))
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        save(text, arguments.out, "the endpoints")
    return exit_codes.OK


def _records(state: State, names: Sequence[str]) -> list[EndpointRecord]:
    unknown = [name for name in names if name not in state.endpoints]
    if unknown:
        known = ", ".join(sorted(state.endpoints)) or "none"
        raise InvalidInput(
            Diagnostic("SS625", f'no endpoint "{name}" is applied here', f"those that are: {known}")
            for name in unknown
        )
    return [state.endpoints[name] for name in dict.fromkeys(names)]
