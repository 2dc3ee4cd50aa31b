"""`servestate validate`: everything wrong in the configuration, in one run."""

from __future__ import annotations

import argparse

from servestate.planner.plural import counted
from servestate.planner.resolve import resolve
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import desired_of
from servestate.runtime.cli.output import complain, say
from servestate.runtime.workspace import SUPPORTED_PROVIDERS


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    desired = desired_of(arguments)
    resolved = resolve(desired, SUPPORTED_PROVIDERS)
    warnings = len(desired.warnings)
    found = f"{counted(len(resolved.endpoints), 'endpoint')}, {counted(warnings, 'warning')}"
    if arguments.strict and warnings:
        complain(f"Failed: --strict counts warnings as errors: {found}.")
        return exit_codes.ERROR
    say(f"Success! The configuration is valid: {found}.")
    return exit_codes.OK
