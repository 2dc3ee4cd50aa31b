"""What an endpoint shall be, as something to plan for: a config that is wanted, what is recorded, or nothing.

Pure, but for the site, which comes in as it is now.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from servestate.planner.owners import API_OWNER, API_VERB
from servestate.planner.policies import policy_of
from servestate.planner.resolve import Resolved, ResolvedEndpoint, resolve
from servestate.planner.revision import canonical_json, digest
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Site
from servestate.planner.spec.written import written_form
from servestate.planner.state import EndpointRecord, State
from servestate.runtime.api.ledger import Update
from servestate.runtime.catalogue import foundation_models
from servestate.runtime.extras import check_extras
from servestate.runtime.workspace import SUPPORTED_PROVIDERS


def wanted(update: Update, record: EndpointRecord | None, site: Site) -> Resolved:
    """The endpoint with the config of the update; all else of it as recorded, since that may have changed
    meanwhile. Raises InvalidInput."""
    block = dict(update.block) if record is None else {**written_block(record), "config": update.config}
    return resolved(block, record, site, units=update.units)


def resolved(
    block: Mapping[str, Any], record: EndpointRecord | None, site: Site, *, units: bool = False
) -> Resolved:
    """An endpoint that a request describes, as its owner's. Raises InvalidInput with all that is wrong.

    A bundle's endpoint keeps the traffic policy that its bundle applied, perhaps from elsewhere; one of the
    API's has what the site says now.
    """
    owner = record.owner if record is not None else API_OWNER
    key = record.key if record is not None else str(block.get("name", ""))
    if record is not None and owner != API_OWNER:
        traffic = {**site.traffic, record.name: policy_of(record.traffic)}
        site = site.model_copy(update={"traffic": traffic})
    desired = load_request(block, site, owner, key, units=units)
    found = resolve(desired, SUPPORTED_PROVIDERS, foundation_models())
    check_extras(found, desired)
    return found


def as_judged(found: Resolved) -> dict[str, Any]:
    """The one endpoint of `found` as a request would describe it, with all that was left open filled in."""
    (endpoint,) = found.endpoints
    return written_form(json.loads(endpoint.block), [entity.name for entity in endpoint.entities])


def as_recorded(record: EndpointRecord, site: Site) -> Resolved:
    """The endpoint as it is. Its entities are those that it has, whatever the site says of their models by
    now; only where one has nothing left that tells what it ran is the site asked."""
    block = json.loads(record.block)
    if "config" in block and not all(target.instances for target in record.targets):
        return resolved(written_block(record), record, site, units=True)
    kept = canonical_json({key: value for key, value in block.items() if key != "config"})
    endpoint = ResolvedEndpoint(record.name, record.key, kept, (), record.protected, record.traffic)
    return Resolved(record.owner, (endpoint,), digest([record.owner, kept]))


def nothing(owner: str) -> Resolved:
    """No endpoint."""
    return Resolved(owner, (), "nothing")


def left_over(state: State, changed: Collection[str]) -> set[str]:
    """The endpoints with instances that serve nothing, of those in `changed` and those that the API has last
    written. What others have left, an apply that was cut short for instance, is for their next one."""
    routed = {a for record in state.endpoints.values() for t in record.targets for a in t.instances}
    idle = {address.endpoint for address in state.instances if address not in routed}
    return {name for name in idle if name in changed or _is_ours(state.endpoints.get(name))}


def _is_ours(record: EndpointRecord | None) -> bool:
    if record is None:
        return False
    changed = record.history.changed.through if record.history is not None else ""
    return record.owner == API_OWNER or changed == API_VERB


def written_block(record: EndpointRecord) -> dict[str, Any]:
    """The endpoint as a request would describe it."""
    return written_form(json.loads(record.block), [target.entity for target in record.targets])


def has_config(record: EndpointRecord, update: Update) -> bool:
    """Whether the config that the update wants is the endpoint's, and answers."""
    return bool(record.targets) and written_block(record).get("config") == update.config


def config_digest(record: EndpointRecord | None) -> str:
    """What the config is known by, to notice that somebody has applied another; "" where there is none."""
    config = json.loads(record.block).get("config") if record is not None else None
    return digest(config) if config is not None else ""
