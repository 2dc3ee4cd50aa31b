"""`servestate state list|show`: the recorded state, as it is. Secrets are references in it."""

from __future__ import annotations

import argparse
import json

from servestate.planner.address import EndpointAddress, parse_address
from servestate.planner.codec import instance_to_json, record_to_json
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.state import State
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import Usage, say


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if (arguments.what == "show") != (arguments.address is not None):
        raise Usage("state show takes an ADDRESS, state list takes none")
    state = workspace_of(arguments).store.read() or State("")
    if arguments.what == "list":
        for text in sorted([*state.endpoints, *map(str, state.instances)]):
            say(text)
        return exit_codes.OK
    say(_show(state, arguments.address))
    return exit_codes.OK


def _show(state: State, text: str) -> str:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise Usage(str(error)) from error
    if isinstance(address, EndpointAddress) and address.endpoint in state.endpoints:
        found = record_to_json(state.endpoints[address.endpoint])
        return json.dumps({**found, "block": json.loads(found["block"])}, indent=2, ensure_ascii=False)
    instances = [i for a, i in sorted(state.instances.items()) if address in (a, a.of)]
    if instances:
        return json.dumps([instance_to_json(i) for i in instances], indent=2, ensure_ascii=False)
    fix = "see what there is: servestate state list"
    raise InvalidInput([Diagnostic("SS407", f"{text} is not in the state", fix)])
