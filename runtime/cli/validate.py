"""`servestate validate`: everything wrong in the configuration, in one run."""

from __future__ import annotations

import argparse

from servestate.planner.resolve import resolve
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import desired_of
from servestate.runtime.cli.output import say
from servestate.runtime.workspace import SUPPORTED_PROVIDERS


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    desired = desired_of(arguments)
    resolved = resolve(desired, SUPPORTED_PROVIDERS)
    warnings = len(desired.warnings)
    noun = "endpoint" if len(resolved.endpoints) == 1 else "endpoints"
    say(f"Success! The configuration is valid: {len(resolved.endpoints)} {noun}, {warnings} warnings.")
    return exit_codes.ERROR if arguments.strict and warnings else exit_codes.OK
