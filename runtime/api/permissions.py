"""Who may do what with an endpoint, by its id. Grants are part of the endpoint's block, so a bundle's
`permissions` and these calls change the same thing."""

from __future__ import annotations

from typing import Any

from servestate.planner.access import Grant, Kind, Level, grants_in
from servestate.planner.state import EndpointRecord
from servestate.runtime.api.call import Call, invalid
from servestate.runtime.api.desk import Desk, no_endpoint

_DESCRIPTIONS = {
    Level.CAN_VIEW: "Can see the endpoint and its state",
    Level.CAN_QUERY: "Can see and query the endpoint",
    Level.CAN_MANAGE: "Can see, query, change and delete the endpoint and its permissions",
}


async def get(desk: Desk, call: Call) -> Any:
    """GET /permissions/serving-endpoints/{id}."""
    return _reply(call.path["id"], _record(desk, call))


async def replace(desk: Desk, call: Call) -> Any:
    """PUT: the list takes the place of all that was granted; without a list, nothing is granted."""
    return await _change(desk, call, keep=False)


async def merge(desk: Desk, call: Call) -> Any:
    """PATCH: each line of the list takes the place of what its principal was granted."""
    return await _change(desk, call, keep=True)


async def levels(desk: Desk, call: Call) -> Any:
    """GET /permissions/serving-endpoints/{id}/permissionLevels."""
    _record(desk, call)
    found = [{"permission_level": level.name, "description": text} for level, text in _DESCRIPTIONS.items()]
    return {"permission_levels": found}


def _record(desk: Desk, call: Call) -> EndpointRecord:
    name = desk.view.name_of(call.path["id"])
    if name is None:
        raise no_endpoint(call.path["id"])
    return desk.record(name)


async def _change(desk: Desk, call: Call, *, keep: bool) -> Any:
    record = _record(desk, call)
    wanted = _grants(call.object().get("access_control_list"))

    def change(block: dict[str, Any]) -> None:
        before = block.get("permissions", []) if keep else []
        named = {(grant.kind, grant.name) for grant in wanted}
        kept = [one for one in before if not any((kind, one.get(kind)) in named for kind in Kind)]
        block["permissions"] = kept + [_written(grant) for grant in wanted]

    await desk.edit(record.name, change, call.caller.name)
    return _reply(call.path["id"], desk.record(record.name))


def _grants(lines: Any) -> list[Grant]:
    """The lines of an access control list. Raises Refusal."""
    if lines is None:
        return []
    if not isinstance(lines, list):
        raise invalid("access_control_list must be a list")
    return list({(g.kind, g.name): g for g in map(_grant, lines)}.values())


def _grant(line: Any) -> Grant:
    if not isinstance(line, dict):
        raise invalid("access_control_list must be a list of objects")
    level = str(line.get("permission_level"))
    if level not in Level.__members__ or level == Level.NONE.name:
        raise invalid("permission_level must be CAN_VIEW, CAN_QUERY or CAN_MANAGE")
    given = [kind for kind in Kind if line.get(kind)]
    if len(given) != 1 or not isinstance(line[given[0]], str):
        raise invalid("each line needs exactly one of user_name, group_name and service_principal_name")
    return Grant(Level[level], given[0], line[given[0]])


def _written(grant: Grant) -> dict[str, Any]:
    return {"level": grant.level.name, str(grant.kind): grant.name}


def _reply(id: str, record: EndpointRecord) -> dict[str, Any]:
    return {
        "object_id": f"/serving-endpoints/{id}",
        "object_type": "serving-endpoint",
        "access_control_list": [_line(grant) for grant in grants_in(record.block)],
    }


def _line(grant: Grant) -> dict[str, Any]:
    direct = {"permission_level": grant.level.name, "inherited": False, "inherited_from_object": []}
    return {str(grant.kind): grant.name, "display_name": grant.name, "all_permissions": [direct]}
