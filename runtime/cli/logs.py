"""`servestate logs ADDRESS`: the last lines that an instance wrote, also after it died."""

from __future__ import annotations

import argparse
import asyncio

from servestate.planner.address import EndpointAddress, EntityAddress, InstanceAddress, parse_address
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.state import Instance, State
from servestate.runtime import exit_codes
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import Usage, say


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    workspace = workspace_of(arguments)
    state = workspace.store.read() or State("")
    found = _instances(state, arguments.address)
    providers = workspace.providers(state)
    for instance in found:
        if len(found) > 1:
            say(f"==> {instance.address}")
        logs = asyncio.run(providers[instance.spec.provider].logs(instance.handle, arguments.tail))
        say(logs.rstrip("\n") or f"({instance.address} has written nothing)")
    return exit_codes.OK


def _instances(state: State, text: str) -> list[Instance]:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise Usage(str(error)) from error
    found = [i for a, i in sorted(state.instances.items()) if _covers(address, a)]
    if not found:
        known = ", ".join(sorted({str(a.of) for a in state.instances})) or "none"
        raise InvalidInput([Diagnostic("SS407", f"no instance of {text} in the state", f"known: {known}")])
    return found


def _covers(address: EndpointAddress | EntityAddress | InstanceAddress, instance: InstanceAddress) -> bool:
    match address:
        case EndpointAddress(endpoint):
            return instance.endpoint == endpoint
        case EntityAddress():
            return instance.of == address
        case _:
            return instance == address
