"""`servestate plan`: what apply would change. Writes nothing but the file asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from servestate.planner.codec import encode_plan
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.plan import Plan
from servestate.planner.render import RULE, render_plan
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import situation
from servestate.runtime.cli.output import in_automation, palette, say
from servestate.runtime.json_lines import plan_lines
from servestate.runtime.table_file import write_durably


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    plan = situation(arguments, destroy=arguments.destroy).plan
    if arguments.json:
        for line in plan_lines(plan):
            say(line)
    else:
        sys.stdout.write(render_plan(plan, palette(arguments, sys.stdout)))
    if arguments.out is not None:
        _save(plan, arguments.out)
    if not arguments.json:
        _hint(plan, arguments.out)
    return exit_codes.CHANGES if arguments.detailed_exitcode and not plan.is_empty else exit_codes.OK


def _save(plan: Plan, path: Path) -> None:
    try:
        # The file is put in its place by rename: that would do away with a device such as /dev/null.
        if path.exists() and not path.is_file():
            raise OSError("it is there already and no plain file")
        write_durably(path.resolve() if path.is_symlink() else path, encode_plan(plan))
    except OSError as error:
        what = f"cannot save the plan to {path}: {error}"
        raise InvalidInput(
            [Diagnostic("SS302", what, "name a file in a folder that can be written")]
        ) from error


def _hint(plan: Plan, out: Path | None) -> None:
    if in_automation() or plan.is_empty:
        return
    if out is None:
        say(f"\n{RULE}\n\nNote: You didn't use the --out option to save this plan, so servestate can't")
        say("guarantee to take exactly these actions if you run `servestate apply` now.")
    else:
        say(f"\n{RULE}\n\nSaved the plan to: {out}\n")
        say("To perform exactly these actions, run the following command to apply:")
        say(f'    servestate apply "{out}"')
