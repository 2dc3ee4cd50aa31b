"""What a bundle wants, as something to plan for."""

from __future__ import annotations

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.owners import API_OWNER
from servestate.planner.resolve import Resolved, resolve
from servestate.planner.spec.bundle import Desired
from servestate.planner.state import State
from servestate.runtime.catalogue import foundation_models
from servestate.runtime.extras import check_extras
from servestate.runtime.workspace import SUPPORTED_PROVIDERS


def wanted(desired: Desired, *, destroy: bool) -> Resolved:
    """Everything that is configured, or with `destroy` nothing of this bundle. Raises InvalidInput."""
    if destroy:
        return nothing_of(desired.bundle)
    found = resolve(desired, SUPPORTED_PROVIDERS, foundation_models())
    check_extras(found, desired)
    return found


def nothing_of(owner: str) -> Resolved:
    """No endpoint of that owner."""
    return Resolved(owner, (), "destroy")


def sole_owner(state: State | None) -> str:
    """Whose endpoints to destroy where the configuration is gone: the one bundle in the state, "" where there
    is none. What was made through the API is no bundle's. Raises InvalidInput when there are several."""
    records = state.endpoints.values() if state is not None else ()
    owners = sorted({record.owner for record in records} - {API_OWNER})
    if len(owners) > 1:
        what = f"there is no configuration here, and the state has endpoints of {', '.join(owners)}"
        raise InvalidInput([Diagnostic("SS305", what, "write `bundle: {name: …}` of the one to destroy")])
    return owners[0] if owners else ""
