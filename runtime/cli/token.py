"""`servestate token`: a new access token, and the lines of YAML by which servestate knows it."""

from __future__ import annotations

import argparse
import hashlib
import secrets as random

from servestate.runtime import exit_codes
from servestate.runtime.cli.output import Usage, say
from servestate.runtime.export import quoted
from servestate.runtime.workspace import owner_of_this_process

_PREFIX = "ss_"
_BYTES = 32


def run(arguments: argparse.Namespace) -> int:
    """The exit code."""
    names = [arguments.user, arguments.service_principal, *arguments.group]
    if any(name is not None and not (name.strip() and name.isprintable()) for name in names):
        raise Usage("a name must be printable, and not empty")
    token = _PREFIX + random.token_urlsafe(_BYTES)
    say(token)
    say("")
    say("\n".join(_yaml(arguments, hashlib.sha256(token.encode()).hexdigest())))
    return exit_codes.OK


def _yaml(arguments: argparse.Namespace, sha256: str) -> list[str]:
    if arguments.service_principal is not None:
        whose = f"service_principal_name: {quoted(arguments.service_principal)}"
    else:
        whose = f"user_name: {quoted(arguments.user or owner_of_this_process('token').person)}"
    lines = [
        "# The token stands above and nowhere else. It counts where these lines do:",
        "servestate:",
        "  access:",
        "    tokens:",
        f"      - {whose}",
    ]
    if arguments.group:
        lines.append(f"        groups: [{', '.join(quoted(name) for name in arguments.group)}]")
    if arguments.right:
        lines.append(f"        rights: [{', '.join(dict.fromkeys(arguments.right))}]")
    return [*lines, f'        sha256: "{sha256}"']
