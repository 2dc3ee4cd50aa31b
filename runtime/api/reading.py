"""The serving endpoints as their callers see them: one, or all that a caller may see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from servestate.planner.access import Caller, Level
from servestate.planner.owners import API_OWNER
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Site
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord, History, State
from servestate.runtime.api import goals
from servestate.runtime.api.call import Call, invalid
from servestate.runtime.api.desk import Desk, no_endpoint
from servestate.runtime.api.echo import detailed, listed
from servestate.runtime.api.ledger import Status, Update
from servestate.runtime.api.view import endpoint_id

MAX_PAGE = 1000


async def get(desk: Desk, call: Call) -> Any:
    """GET /{name}."""
    return show(desk, call.path["name"], call.caller)


async def list_all(desk: Desk, call: Call) -> Any:
    """GET: every endpoint that the caller may see, by name; in pages where `page_size` is given."""
    updates, state, supervised = desk.ledger.updates(), desk.view.state(), desk.view.supervised()
    records = [r for r in _records(state, updates) if desk.level(call.caller, r) >= Level.CAN_VIEW]
    records.sort(key=lambda r: r.name)
    page, token = _page(records, call.query)
    found = [
        listed(endpoint_id(state, r), r, state, _standing(updates.get(r.name), r), supervised) for r in page
    ]
    return {"endpoints": found} | ({"next_page_token": token} if token else {})


def _page(records: list[EndpointRecord], query: Mapping[str, str]) -> tuple[list[EndpointRecord], str]:
    """The records of the page that is asked for, and the token of the next one, "" for the last."""
    size, after = query.get("page_size", ""), query.get("page_token", "")
    if size and not (size.isascii() and size.isdigit() and len(size) < 10 and int(size)):
        raise invalid("page_size must be a whole number from 1")
    left = [record for record in records if record.name > after] if after else records
    if not size:
        return left, ""
    page = left[: min(int(size), MAX_PAGE)]
    return page, page[-1].name if len(page) < len(left) else ""


def _records(state: State, updates: Mapping[str, Update]) -> Iterator[EndpointRecord]:
    """What is recorded, and what is promised and not recorded yet."""
    yield from state.endpoints.values()
    for name, update in updates.items():
        if name not in state.endpoints:
            yield _promised(update)


def _promised(update: Update) -> EndpointRecord:
    """An endpoint of which nothing is recorded yet: another command holds the lock."""
    made = Stamp(update.by, update.started, "")
    bare = {key: value for key, value in update.block.items() if key != "config"}
    desired = load_request(bare, Site(), API_OWNER, update.endpoint)
    block = json.dumps(normal_form(desired.endpoints[0].spec))
    return EndpointRecord(
        update.endpoint, update.endpoint, API_OWNER, block, 0, history=History(0, made, made)
    )


def show(desk: Desk, name: str, caller: Caller) -> dict[str, Any]:
    """The reply about one endpoint. Raises Refusal 404."""
    # In this order: the state is read anew before an update leaves the ledger, so that what has left it is in
    # the state.
    update = desk.ledger.get(name)
    state = desk.view.state()
    record = state.endpoints.get(name)
    if record is None and update is not None:
        record = _promised(update)
    if record is None:
        raise no_endpoint(name)
    update = _standing(update, record)
    level = desk.level(caller, record)
    return detailed(endpoint_id(state, record), record, state, update, desk.view.supervised(), level)


def _standing(update: Update | None, record: EndpointRecord) -> Update | None:
    """The update, as long as it says something of the config that there is: one that has ended says nothing
    once another config was applied."""
    ended = update is not None and update.status is not Status.IN_PROGRESS
    return None if update is not None and ended and goals.config_digest(record) != update.before else update
