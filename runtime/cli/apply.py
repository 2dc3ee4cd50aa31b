"""`servestate apply` and `servestate destroy`: show, ask, carry out, say what came of it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from servestate.planner.diagnostics import Diagnostic
from servestate.planner.plan import Plan
from servestate.planner.plural import counted
from servestate.planner.render import counts, render_plan
from servestate.runtime import exit_codes
from servestate.runtime.apply import Finished, Stale
from servestate.runtime.causes import LOST_LOCK, diagnostics_of
from servestate.runtime.cli.output import (
    Exit,
    Usage,
    complain,
    palette,
    say,
    say_json_diagnostics,
    show_diagnostics,
)
from servestate.runtime.cli.places import Here, There, planned, saved
from servestate.runtime.cli.reporters import reporter_for
from servestate.runtime.json_lines import line, plan_lines
from servestate.runtime.remote import Left


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    check_approvable(arguments)
    if arguments.plan is not None:
        prepared = saved(arguments)
    else:
        prepared = planned(arguments, destroy=arguments.verb == "destroy", patience_s=arguments.lock_timeout)
        _show(prepared.plan, arguments)
        # An empty plan may still rest on what a crash left unrecorded: carrying it out records that.
        if prepared.plan.is_empty and prepared.settled:
            prepared.see_routed()
            _say_complete(prepared.plan, arguments)
            return exit_codes.OK
    plan = prepared.plan
    if plan.blocked:
        return _refuse_blocked(plan, arguments)
    if not (arguments.auto_approve or arguments.plan is not None or plan.is_empty):
        ask(plan, "Destroy" if plan.destroy else "Apply")
    return _carry_out(prepared, arguments)


def _carry_out(prepared: Here | There, arguments: argparse.Namespace) -> int:
    reporter = reporter_for(arguments)
    try:
        result = prepared.carry_out(arguments.verb, reporter, arguments.lock_timeout)
    except Left as error:
        complain(f"servestate: {error}")
        return 128 + error.signal
    finally:
        reporter.close()
    if isinstance(result, Stale):
        return refuse_stale(result, arguments)
    if result.outcome.complete:
        _say_complete(prepared.plan, arguments)
        return exit_codes.OK
    return not_complete(result, prepared.plan, arguments)


def check_approvable(arguments: argparse.Namespace) -> None:
    """Fail before looking at anything when nobody could approve."""
    if arguments.auto_approve or arguments.plan is not None:
        return
    if arguments.json or not sys.stdin.isatty():
        raise Usage("nobody is here to approve: pass --auto-approve, or a plan file")


def _show(plan: Plan, arguments: argparse.Namespace) -> None:
    if arguments.json:
        for text in plan_lines(plan):
            say(text)
    else:
        sys.stdout.write(render_plan(plan, palette(arguments, sys.stdout)))
        sys.stdout.flush()


def ask(plan: Plan, doing: str) -> None:
    """Return when approved. Raises Exit otherwise."""
    if plan.destroy:
        say("\nDo you really want to destroy all resources?")
        say("  servestate will stop and forget everything shown above.")
        say("  There is no undo. Only 'yes' will be accepted to confirm.")
    else:
        say("\nDo you want to perform these actions?")
        say("  servestate will perform the actions described above.")
        say("  Only 'yes' will be accepted to approve.")
    try:
        answer = input("\n  Enter a value: ")
    except EOFError:
        answer = ""
    say("")
    if answer.strip() != "yes":
        say(f"{doing} cancelled.")
        raise Exit(exit_codes.REFUSED)


def _refuse_blocked(plan: Plan, arguments: argparse.Namespace) -> int:
    blocked = [f"{c.address}: {c.action} is blocked by {c.blocked}" for c in plan.blocked]
    what = "the plan holds steps that are blocked; nothing was changed"
    fix = "remove lifecycle.prevent_destroy, apply that, then try again"
    found = Diagnostic("SS304", what, fix, detail="\n".join(blocked))
    show_diagnostics([found])
    if arguments.json:
        say_json_diagnostics([found])
    return exit_codes.REFUSED


def refuse_stale(stale: Stale, arguments: argparse.Namespace) -> int:
    """Say what has moved; the exit code."""
    saved = arguments.plan is not None
    complain(
        "Error: Saved plan is stale\n" if saved else "Error: the world has changed since it was planned\n"
    )
    for reason in stale.moved:
        complain(f"  {reason}")
    for entry in stale.journal:
        complain(f"  {entry.serial}  {entry.address}  {entry.event}  by {entry.by}")
    again = f"servestate plan {_where(arguments)}--out=FILE" if saved else _again(arguments)
    complain(f"\nNothing was changed. Plan anew with: {again}")
    if arguments.json:
        writes = [{"serial": e.serial, "address": e.address, "by": e.by} for e in stale.journal]
        say(line("stale", "the plan is stale", level="error", moved=list(stale.moved), writes=writes))
    return exit_codes.REFUSED


def not_complete(result: Finished, plan: Plan, arguments: argparse.Namespace) -> int:
    """Say what was done, what was not and why; the exit code."""
    outcome = result.outcome
    for id, why in outcome.failed.items():
        complain(f"\nError: {id}\n")
        complain("\n".join(f"  {line}" for line in why.splitlines()))
    if outcome.lost is not None:
        complain(f"\nError: {str(outcome.lost) or LOST_LOCK}")
    if arguments.json:
        say_json_diagnostics(Diagnostic("SS412", id, detail=why) for id, why in outcome.failed.items())
        say_json_diagnostics(diagnostics_of(outcome.lost) if outcome.lost is not None else ())
    total = counted(len(plan.nodes), "step")
    complain(f"\n{_ending(result)} {len(outcome.done)} of {total} done, the state holds what was done.")
    complain(f"To go on, run again: {_again(arguments)}")
    return 128 + result.signal if result.signal else exit_codes.PARTIAL


def _ending(result: Finished) -> str:
    if result.signal:
        return "Interrupted:"
    failed = counted(len(result.outcome.failed), "step")
    return f"Not complete: {failed} failed, {len(result.outcome.skipped)} skipped,"


def _where(arguments: argparse.Namespace) -> str:
    return f"--server {shlex.quote(arguments.server)} " if arguments.server else ""


def _again(arguments: argparse.Namespace) -> str:
    """The verb with the configuration that was named, to paste."""
    words = ["servestate", arguments.verb]
    words += ["--server", arguments.server] if arguments.server else []
    words += ["-f", str(arguments.file)] if arguments.file != Path(".") else []
    words += ["--env", arguments.env] if arguments.env else []
    words += [word for pair in arguments.var for word in ("--var", pair)]
    words += arguments.endpoints if arguments.verb == "import" else []
    return shlex.join(words)


def _say_complete(plan: Plan, arguments: argparse.Namespace) -> None:
    add, change, remove = counts(plan.changes)
    if plan.destroy:
        message = f"Destroy complete! Resources: {remove} destroyed."
    else:
        message = f"Apply complete! Resources: {add} added, {change} changed, {remove} destroyed."
    if arguments.json:
        totals = {"add": add, "change": change, "import": 0, "remove": remove}
        operation = "destroy" if plan.destroy else "apply"
        say(line("change_summary", message, changes={**totals, "operation": operation}))
    else:
        say(f"\n{message}")
