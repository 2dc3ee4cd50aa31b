"""The command line: a verb is a file; here are the parser and the way from a verb to its file.

Verbs are imported only when they are run: `servestate plan` must answer before a person wonders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from servestate.planner.version import VERSION
from servestate.runtime import exit_codes
from servestate.runtime.cli.streams import open_streams


class _Mistake(SystemExit):
    """The end of a command line that makes no sense; everything has been said to people."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(exit_codes.USAGE)


class _Parser(argparse.ArgumentParser):
    """argparse, but a usage error exits with 64: its own 2 means "there are changes" to a pipeline.
    Nor does it guess what an abbreviated flag means: `--auto` must not approve."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        raise _Mistake(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code (see `exit_codes`)."""
    open_streams()
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    verb = import_module(f"servestate.runtime.cli.{arguments.module}")
    from servestate.runtime.cli.output import guarded

    lines = arguments.verb in _JSON_LINES and arguments.json
    return guarded(lambda: int(verb.run(arguments)), as_json_lines=lines)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    try:
        return parser().parse_args(argv)
    except _Mistake as mistake:
        if "--json" in argv and _JSON_LINES.intersection(argv[:1]):
            from servestate.runtime.cli.output import say_json_diagnostics, usage_diagnostic

            say_json_diagnostics([usage_diagnostic(mistake.message)])
        raise


_JSON_LINES = frozenset({"plan", "apply", "destroy"})
"""The verbs whose --json is a stream of lines, not one document."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="servestate",
        description="Terraform for model serving: plan, apply and route models declared in YAML.",
        epilog=exit_codes.TABLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"servestate {VERSION}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    _add_planning(verbs)
    _add_applying(verbs)
    _add_serving(verbs)
    _add_looking(verbs)
    _add_moving(verbs)
    _add_access(verbs)
    return top


_Verbs = argparse._SubParsersAction  # the type has no public name


def _verb(verbs: _Verbs[_Parser], name: str, module: str, help: str) -> _Parser:
    found = verbs.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=exit_codes.TABLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.set_defaults(module=module)
    found.add_argument(
        "-f",
        "--file",
        type=Path,
        default=Path("."),
        metavar="FILE|DIR",
        help="the configuration: a file or a folder of YAML files (default: the current folder)",
    )
    found.add_argument("-t", "--env", metavar="NAME", help="the bundle target to use")
    found.add_argument(
        "--var", action="append", default=[], metavar="KEY=VALUE", help="set a bundle variable (repeatable)"
    )
    found.set_defaults(server=None, insecure=False)
    return found


def _server(verb: _Parser) -> None:
    verb.add_argument(
        "--server",
        metavar="URL",
        help="do it there, by the management listener of a running `servestate serve`; the token is that of "
        "SERVESTATE_TOKEN, else DATABRICKS_TOKEN. Models, workload types, overrides and traffic of the "
        "configuration count, all else of its site and every path is the server's",
    )
    verb.add_argument(
        "--insecure", action="store_true", help="send the token over http to another machine all the same"
    )


def _seconds(text: str) -> float:
    """A wait that ends: not `nan`, which no clock ever reaches. Raises ValueError."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _positive(text: str) -> int:
    """A count of something that is wanted. Raises ValueError."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive number"
_seconds.__name__ = "seconds"  # argparse says: invalid seconds value: 'nan'


def _colour(verb: _Parser) -> None:
    verb.add_argument("--no-color", action="store_true", help="never colour the output")
    verb.add_argument("--color", choices=("auto", "always", "never"), default="auto")


def _pull(verb: _Parser) -> None:
    verb.add_argument(
        "--pull",
        choices=("never", "missing", "always"),
        help="when images are fetched (default: as the site says, else missing)",
    )


def _add_planning(verbs: _Verbs[_Parser]) -> None:
    validate = _verb(
        verbs, "validate", "validate", "check the configuration and report everything wrong in it"
    )
    validate.add_argument("--strict", action="store_true", help="warnings count as errors")
    plan = _verb(verbs, "plan", "plan", "show what apply would change; changes nothing, takes no lock")
    _colour(plan)
    plan.add_argument("--out", type=Path, metavar="FILE", help="save the plan, for `servestate apply FILE`")
    plan.add_argument("--json", action="store_true", help="one JSON object per line instead of text")
    plan.add_argument("--detailed-exitcode", action="store_true", help="exit with 2 when there are changes")
    plan.add_argument(
        "--destroy", action="store_true", help="plan the removal of everything this bundle owns"
    )
    _pull(plan)
    _server(plan)
    show = _verb(verbs, "show", "show", "show a saved plan")
    _colour(show)
    show.add_argument("plan", type=Path, metavar="PLAN", help="a file that plan --out wrote")
    show.add_argument("--json", action="store_true", help="the plan document itself")


def _add_applying(verbs: _Verbs[_Parser]) -> None:
    apply = _verb(verbs, "apply", "apply", "make the world as configured, or carry out a saved plan")
    apply.add_argument("plan", nargs="?", type=Path, metavar="PLAN", help="a file that plan --out wrote")
    destroy = _verb(verbs, "destroy", "apply", "stop and forget everything this bundle owns")
    destroy.set_defaults(plan=None)
    up = _verb(verbs, "up", "up", "apply, then serve in the foreground")
    up.set_defaults(plan=None)
    for verb in (apply, destroy, up):
        _colour(verb)
        verb.add_argument("--auto-approve", action="store_true", help="do not ask")
        verb.add_argument(
            "--lock-timeout", type=_seconds, default=0.0, metavar="SECONDS", help="wait so long for the lock"
        )
        if verb is not up:
            verb.add_argument("--json", action="store_true", help="one JSON object per line instead of text")
    _pull(apply)
    _pull(up)
    _server(apply)
    _server(destroy)
    destroy.set_defaults(pull=None)
    up.set_defaults(json=False)


def _add_serving(verbs: _Verbs[_Parser]) -> None:
    serve = _verb(verbs, "serve", "serve", "route requests by the applied table, and supervise what serves")
    up = verbs.choices["up"]
    for verb in (serve, up):
        verb.add_argument("--no-controller", action="store_true", help="what dies is not started again")
        verb.add_argument("--no-api", action="store_true", help="no management API and no listener for it")
        verb.add_argument(
            "--replace",
            action="store_true",
            help="take over from the router that runs here, if one does; no connection is refused. Limits "
            "and splits of one with a single worker (servestate.router.workers) begin anew",
        )
    status = _verb(verbs, "status", "status", "endpoints, split desired and observed, instances, health")
    status.add_argument("--json", action="store_true", help="as one JSON document")
    _server(status)
    logs = _verb(verbs, "logs", "logs", "the last lines that an instance wrote")
    logs.add_argument("address", metavar="ADDRESS", help="ENDPOINT/ENTITY, or an instance as status shows it")
    logs.add_argument("--tail", type=_positive, default=50, metavar="N", help="how many lines (default: 50)")
    query = _verb(verbs, "query", "query", "ask an endpoint, through the running router")
    query.add_argument(
        "endpoint",
        metavar="ENDPOINT",
        help="an endpoint, or ENDPOINT/ENTITY past the split; where the site declares tokens, the one of "
        "SERVESTATE_TOKEN, else DATABRICKS_TOKEN, has to allow it",
    )
    query.add_argument("text", metavar="TEXT", help="the user's message, the prompt or the input")
    query.add_argument("--max-tokens", type=int, default=64, metavar="N", help="default: 64")
    query.add_argument("--stream", action="store_true", help="print the answer as it comes")


def _add_looking(verbs: _Verbs[_Parser]) -> None:
    state = _verb(verbs, "state", "state", "look into the recorded state")
    state.add_argument("what", choices=("list", "show"), help="all addresses, or one record")
    state.add_argument("address", nargs="?", metavar="ADDRESS", help="of `state show`")
    lock = _verb(verbs, "lock", "lock", "look at the lock, or break it")
    lock.add_argument("what", choices=("list", "break"), help="who holds it, or take it away")
    lock.add_argument("id", nargs="?", metavar="ID", help="of `lock break`: the exact id")
    lock.add_argument("--force", action="store_true", help="break it although its holder is alive")


def _add_moving(verbs: _Verbs[_Parser]) -> None:
    export = _verb(verbs, "export", "export", "write endpoints that are applied as YAML of a bundle")
    export.add_argument("endpoints", nargs="*", metavar="ENDPOINT", help="which")
    export.add_argument("--all", action="store_true", help="every one, whosever it is")
    export.add_argument("-o", "--out", type=Path, metavar="FILE", help="write there, not to standard output")
    take = _verb(verbs, "import", "take_over", "make endpoints that somebody else has made this bundle's own")
    take.add_argument("endpoints", nargs="+", metavar="ENDPOINT", help="which; they must stand in the YAML")
    take.add_argument(
        "--from", dest="source", metavar="OWNER", help="the bundle that has them (default: those of the API)"
    )
    take.add_argument("--auto-approve", action="store_true", help="do not ask")
    take.add_argument(
        "--lock-timeout", type=_seconds, default=0.0, metavar="SECONDS", help="wait so long for the lock"
    )
    _colour(take)
    take.set_defaults(json=False, plan=None)
    cancel = _verb(verbs, "cancel", "cancel", "cancel an update that somebody made through the API")
    cancel.add_argument("endpoint", metavar="ENDPOINT", help="the endpoint that is being updated")
    _server(cancel)


def _add_access(verbs: _Verbs[_Parser]) -> None:
    token = verbs.add_parser(
        "token",
        help="make an access token",
        description="Make an access token, and the YAML by which servestate knows it. Nothing is stored.",
        epilog=exit_codes.TABLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    token.set_defaults(module="token")
    whose = token.add_mutually_exclusive_group()
    whose.add_argument("--user", metavar="NAME", help="whose it is (default: the user who asks)")
    whose.add_argument("--service-principal", metavar="NAME", help="the program whose it is")
    token.add_argument("--group", action="append", default=[], metavar="NAME", help="a group (repeatable)")
    token.add_argument(
        "--right",
        action="append",
        default=[],
        choices=("view", "query", "manage", "create", "apply", "admin"),
        help="what it gives beyond the grants on single endpoints (repeatable)",
    )
