"""`servestate up`: apply, say where everything is, then serve in the foreground, supervised."""

from __future__ import annotations

import argparse
import json
import sys

from servestate.planner.launch import ExternalSpec
from servestate.planner.state import EndpointRecord, State
from servestate.runtime import exit_codes
from servestate.runtime.cli import apply
from servestate.runtime.cli.common import workspace_of
from servestate.runtime.cli.output import complain, say
from servestate.runtime.cli.query import body_for
from servestate.runtime.cli.serve import announce, beside, serve


def run(arguments: argparse.Namespace) -> int:
    """The exit code: apply's when it does not succeed, then serve's."""
    code = apply.run(arguments)
    if code != exit_codes.OK:
        return code
    workspace = workspace_of(arguments)
    state = workspace.store.read() or State("")

    def on_ready(url: str) -> None:
        say(summary(state, url, asks_token=bool(workspace.site.access.tokens)))
        sys.stdout.flush()
        announce(url)

    code = serve(workspace, beside(arguments), on_ready)
    complain("servestate: the router has stopped; model servers keep running (servestate destroy stops them)")
    return code


def summary(state: State, url: str, *, asks_token: bool = False) -> str:
    """The URLs of a router at `url`, and a curl line to paste; `asks_token` where it wants a token."""
    lines = ["", f"OpenAI clients:  base_url={url}/v1, model=ENDPOINT (or ENDPOINT/ENTITY past the split)"]
    for name, record in state.endpoints.items():
        split = ", ".join(f"{target.entity} {target.weight} %" for target in record.targets)
        lines.append(f"  {name}: {url}/serving-endpoints/{name}/invocations   ({split})")
    if example := _example(state):
        name, record = example
        task = next((state.instances[a].spec.task for t in record.targets for a in t.instances), "")
        body = json.dumps(body_for(task, "The sky is blue because", 32))
        lines += ["", "Try it:"]
        lines += [f"  curl -s {url}/serving-endpoints/{name}/invocations \\"]
        if asks_token:
            lines += ['    -H "authorization: Bearer $SERVESTATE_TOKEN" \\']
        lines += [f"    -H 'content-type: application/json' -d '{body}'", ""]
    return "\n".join(lines)


def _example(state: State) -> tuple[str, EndpointRecord] | None:
    """An endpoint to ask, rather one that runs here: it answers, and costs nobody anything."""

    def elsewhere(one: tuple[str, EndpointRecord]) -> bool:
        addresses = (address for target in one[1].targets for address in target.instances)
        return all(isinstance(state.instances[address].spec, ExternalSpec) for address in addresses)

    return min(((n, r) for n, r in state.endpoints.items() if r.targets), key=elsewhere, default=None)
