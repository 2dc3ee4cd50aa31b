"""`servestate show PLAN`: a saved plan, as text or as the document that it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from servestate.planner.codec import FormatError, decode_plan
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.plan import Plan
from servestate.planner.render import render_plan
from servestate.runtime import exit_codes
from servestate.runtime.cli.output import palette


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    plan = read_plan(arguments.plan)
    if arguments.json:
        sys.stdout.write(arguments.plan.read_text(encoding="utf-8"))
    else:
        sys.stdout.write(render_plan(plan, palette(arguments, sys.stdout)))
    return exit_codes.OK


def read_plan(path: Path) -> Plan:
    """The plan in the file. Raises InvalidInput."""
    try:
        return decode_plan(text_of(path))
    except FormatError as error:
        raise _unusable(path, error) from error


def text_of(path: Path) -> str:
    """The file's text. Raises InvalidInput."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> InvalidInput:
    what = f"cannot use {path} as a plan: {error}"
    return InvalidInput([Diagnostic("SS303", what, "make one with: servestate plan --out=FILE")])
