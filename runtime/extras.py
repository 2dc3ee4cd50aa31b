"""What a configuration asks for and only an optional dependency can do.

The router refuses a table with such a wish where the packages are missing, and with it what everybody else
wants: so it is found before anything is applied, on the machine where the router runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.policies import Policies, policies_of
from servestate.planner.resolve import Resolved
from servestate.planner.spec.bundle import Desired

_PACKAGES = {"pii": ("phonenumbers", "stdnum"), "parquet": ("pyarrow",)}
"""The packages of an extra, as they are imported."""


def check_extras(found: Resolved, desired: Desired) -> None:
    """Raises InvalidInput, with all that cannot be done; `desired` is what `found` was resolved from."""
    missing = [
        Diagnostic("SS207", f'"{endpoint.name}" {wish}', fix, desired.where(endpoint.name))
        for endpoint in found.endpoints
        for wish, fix in _missing(policies_of(endpoint.name, endpoint.block, endpoint.traffic))
    ]
    if missing:
        raise InvalidInput(missing)


def _missing(policies: Policies) -> Iterator[tuple[str, str]]:
    guards = (policies.guard_input, policies.guard_output)
    if any(guard is not None and guard.pii for guard in guards) and not _is_there("pii"):
        yield "guards personal data, which the extra pii finds", "pip install 'servestate[pii]'"
    payloads = policies.payloads
    if payloads is not None and payloads.format == "parquet" and not _is_there("parquet"):
        fix = "pip install 'servestate[parquet]', or set inference_table.format: jsonl in servestate.traffic"
        yield "has an inference table in Parquet, which the extra parquet writes", fix


def _is_there(extra: str) -> bool:
    return all(find_spec(package) is not None for package in _PACKAGES[extra])
