"""`servestate plan`: what apply would change. Writes nothing but the file asked for."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from servestate.planner.codec import encode_plan
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.plan import Plan
from servestate.planner.render import RULE, render_plan
from servestate.runtime import exit_codes
from servestate.runtime.cli.output import in_automation, palette, say
from servestate.runtime.cli.places import planned
from servestate.runtime.json_lines import plan_lines
from servestate.runtime.table_file import write_durably


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    plan = planned(arguments, destroy=arguments.destroy).plan
    if arguments.json:
        for line in plan_lines(plan):
            say(line)
    else:
        sys.stdout.write(render_plan(plan, palette(arguments, sys.stdout)))
    if arguments.out is not None:
        save(encode_plan(plan), arguments.out, "the plan")
    if not arguments.json:
        _hint(plan, arguments)
    return exit_codes.CHANGES if arguments.detailed_exitcode and not plan.is_empty else exit_codes.OK


def save(text: str, path: Path, what: str) -> None:
    """Put the text into that file, whole or not at all. Raises InvalidInput."""
    try:
        # The file is put in its place by rename: that would do away with a device such as /dev/null.
        if path.exists() and not path.is_file():
            raise OSError("it is there already and no plain file")
        write_durably(path.resolve() if path.is_symlink() else path, text)
    except OSError as error:
        problem = f"cannot save {what} to {path}: {error}"
        raise InvalidInput(
            [Diagnostic("SS302", problem, "name a file in a folder that can be written")]
        ) from error


def _hint(plan: Plan, arguments: argparse.Namespace) -> None:
    if in_automation() or plan.is_empty:
        return
    out = arguments.out
    where = f" --server {shlex.quote(arguments.server)}" if arguments.server else ""
    if out is None:
        say(f"\n{RULE}\n\nNote: You didn't use the --out option to save this plan, so servestate can't")
        say(f"guarantee to take exactly these actions if you run `servestate apply{where}` now.")
    else:
        say(f"\n{RULE}\n\nSaved the plan to: {out}\n")
        say("To perform exactly these actions, run the following command to apply:")
        say(f'    servestate apply{where} "{out}"')
