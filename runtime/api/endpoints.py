"""The serving endpoints: made, read, changed and deleted as the serving API does it.

A write is judged first, without any effect; then it is promised in the ledger, and carried out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from servestate.planner.access import Caller, Level, Right
from servestate.planner.engine_keys import SCOPE as ENGINE_SCOPE
from servestate.planner.owners import API_OWNER
from servestate.planner.spec.normal import normal_form
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Site
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord, History, State
from servestate.providers.kept_secrets import refers, taken_out
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import references
from servestate.runtime.api import goals
from servestate.runtime.api.call import Call, conflict, invalid
from servestate.runtime.api.desk import Desk, no_endpoint
from servestate.runtime.api.echo import detailed, listed
from servestate.runtime.api.ledger import Status, Update
from servestate.runtime.api.reach import check_hosts
from servestate.runtime.api.view import endpoint_id

MAX_PAGE = 1000
_METADATA = (
    "description",
    "route_optimized",
    "tags",
    "ai_gateway",
    "rate_limits",
    "email_notifications",
    "budget_policy_id",
    "telemetry_config",
)
_CONFIG = ("served_entities", "served_models", "traffic_config", "auto_capture_config")
_CODE = (
    *("LD_", "GLIBC_", "GCONV_", "DYLD_", "PYTHON", "BASH_", "PERL", "RUBY", "NODE_", "JAVA_", "JDK_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "NVTX_", "OPENSSL_", "SSL_", "TRITON_", "TORCH", "LLVM_", "XLA_"),
)
"""Variables beginning so decide which code a program runs. They are for whoever writes the site."""
_OURS = ("SERVESTATE_", "PATH", "HF_ENDPOINT", "HF_HOME", "XDG_", "VLLM_PLUGINS", "VLLM_ALLOW", "VLLM_SERVER")
"""The marks of instances, and names that decide where programs and weights come from."""
_WHOLE = frozenset({"CC", "CXX", "HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"})

# Reading.


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
    if not size.isascii() or not (size.isdigit() or not size) or len(size) > 9 or size == "0":
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


# Making.


async def create(desk: Desk, call: Call) -> Any:
    """POST."""
    return await _create(desk, call, call.object(), units=False)


async def create_units(desk: Desk, call: Call) -> Any:
    """POST /pt: an endpoint of provisioned model units."""
    body = call.object()
    _check_units(body.get("config"))
    return await _create(desk, call, body, units=True)


async def _create(desk: Desk, call: Call, body: Mapping[str, Any], *, units: bool) -> Any:
    name = body.get("name")
    if not isinstance(name, str):
        raise invalid("the body needs a name, which is text")
    block, secrets = _accepted(desk, {k: v for k, v in body.items() if k in ("name", "config", *_METADATA)})
    block = _owned(block, call.caller, desk)
    found = goals.resolved(block, None, desk.source.site(), units=units)
    judged = goals.as_judged(found)
    _check_secrets(desk, call.caller, body.get("config"))
    check_hosts(desk, call.caller, found, None)
    with desk.reserved(name):
        if "config" not in judged:
            await desk.make_bare(judged, call.caller.name)
        else:
            await desk.promise(Update(name, judged, "", time.time(), call.caller.name, units), secrets)
    return show(desk, name, call.caller)


def _accepted(desk: Desk, body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The body without the secrets that it brings along, and these. Raises Refusal."""
    if refers(dict(body)):
        raise invalid("a secret that came with another request cannot be referred to")
    _check_entities(desk, body.get("config"))
    try:
        found, secrets = taken_out(dict(body))
    except ValueError as error:
        raise invalid(str(error)) from None
    return {key: value for key, value in found.items() if value is not None}, secrets


def _check_entities(desk: Desk, config: Any) -> None:
    """What a request may not say, though YAML may: which files of this machine are served, which code an
    engine runs, and secrets of other people's scopes. What has the wrong shape is left to the rules."""
    for entity in _entities(config):
        for model in (entity.get("entity_name"), entity.get("model_name")):
            if isinstance(model, str) and "://" in model:
                raise invalid("entity_name must be a model of this site's catalogue, not a place")
        variables = entity.get("environment_vars")
        for variable in variables if isinstance(variables, dict) else ():
            if variable.upper().startswith((*_CODE, *_OURS)) or variable.upper() in _WHOLE:
                raise invalid(
                    f"environment_vars: {variable[:60]!r} can only be set in the site's configuration"
                )


def _entities(config: Any) -> Iterator[dict[str, Any]]:
    """All that can become an entity, in either spelling: which one counts, the rules decide later."""
    if isinstance(config, dict):
        for key in ("served_entities", "served_models"):
            found = config.get(key)
            yield from (one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def _check_secrets(desk: Desk, caller: Caller, config: Any) -> None:
    """Secrets that a request may refer to, and that are there: the router refuses a table that names one that
    is not, and with it what everybody else wants.

    Who names a secret and the URL that it is sent to has it. So without `secret_scopes` only those may who
    can have any command run anyway, and a token is nobody's to send.
    """
    scopes, secrets = desk.source.site().access.secret_scopes, desk.source.workspace().secrets
    trusted = desk.keyring.open or caller.may(Right.APPLY)
    for scope, key in set(_references(config)):
        # Two underscores part scope and key in the name of a variable: a key with them is another scope's.
        if "__" in key or not (trusted if scopes is None else scope in scopes):
            raise invalid(
                f"the secret scope {scope[:60]!r} is not one that requests may refer to; "
                "fix: add it to servestate.access.secret_scopes"
            )
        try:
            value = secrets.get(scope, key).reveal()
        except PermanentError as error:
            raise invalid(f"{error.what}; fix: {error.fix}") from None
        # By value: several references can mean one secret.
        if scope == ENGINE_SCOPE or (not desk.keyring.open and desk.keyring.find(value.encode(), 0.0)):
            raise invalid("that secret is servestate's own")


def _references(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield from references(value)
    elif isinstance(value, dict):
        for below in value.values():
            yield from _references(below)
    elif isinstance(value, list):
        for below in value:
            yield from _references(below)


def _owned(block: dict[str, Any], caller: Caller, desk: Desk) -> dict[str, Any]:
    """The block, with its maker among those who may manage it; where no principals are known, nobody is."""
    if desk.keyring.open:
        return block
    return {**block, "permissions": [{"level": "CAN_MANAGE", str(caller.kind): caller.name}]}


def _check_units(config: Any) -> None:
    entities = config.get("served_entities") if isinstance(config, dict) else None
    if not isinstance(entities, list) or not entities:
        raise invalid("config.served_entities must be a list of entities")
    for entity in entities:
        if not isinstance(entity, dict) or entity.get("provisioned_model_units") is None:
            raise invalid("every served entity needs provisioned_model_units")


# Changing the config.


async def update_config(desk: Desk, call: Call) -> Any:
    """PUT /{name}/config."""
    return await _update(desk, call, call.object(), units=False)


async def update_units(desk: Desk, call: Call) -> Any:
    """PUT /pt/{name}/config."""
    config = call.object().get("config")
    _check_units(config)
    assert isinstance(config, dict), "checked"
    return await _update(desk, call, config, units=True)


async def _update(desk: Desk, call: Call, body: Mapping[str, Any], *, units: bool) -> Any:
    name = call.path["name"]
    given = {key: body[key] for key in _CONFIG if body.get(key) is not None}
    if not given:
        raise invalid(f"the body has none of {', '.join(_CONFIG)}")
    _check_idle(desk, name)
    record = desk.record(name)
    accepted, secrets = _accepted(desk, {"config": given})
    config = _merged(record, accepted["config"])
    block = {**goals.written_block(record), "config": config}
    _check_kind(record, config)
    judged = goals.resolved(block, record, desk.source.site(), units=units)
    _check_secrets(desk, call.caller, given)
    check_hosts(desk, call.caller, judged, record)
    _check_idle(desk, name)
    wanted = {"name": name, "config": goals.as_judged(judged)["config"]}
    before = goals.config_digest(record)
    await desk.promise(Update(name, wanted, before, time.time(), call.caller.name, units), secrets)
    return show(desk, name, call.caller)


def _check_idle(desk: Desk, name: str) -> None:
    """R13: one update at a time."""
    update = desk.ledger.get(name)
    if update is not None and update.status is Status.IN_PROGRESS:
        raise conflict(f"an update of {name!r} is in progress: wait for it, or cancel it")


def _merged(record: EndpointRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and of the config that is active what is not: absent entities stay, and so do the routes
    where the entities do."""
    active = goals.written_block(record).get("config", {})
    if "served_entities" in given or "served_models" in given:
        kept = (
            {"auto_capture_config": active["auto_capture_config"]} if "auto_capture_config" in active else {}
        )
        return {**kept, **given}
    if not active:
        raise invalid("the endpoint has no served entities yet: give served_entities")
    return {**active, **given}


def _check_kind(record: EndpointRecord, config: Mapping[str, Any]) -> None:
    """R5: an endpoint of external models stays one, and one of others never becomes one."""
    active = goals.written_block(record).get("config", {}).get("served_entities", [])
    wanted = config.get("served_entities")
    if not active or not isinstance(wanted, list) or not wanted:
        return
    if ("external_model" in active[0]) != any(
        isinstance(e, dict) and e.get("external_model") for e in wanted
    ):
        raise invalid(
            "an endpoint with external models cannot lose them, nor can one without get any: "
            "make another endpoint"
        )


async def cancel(desk: Desk, call: Call) -> Any:
    """POST /{name}/cancel-update: what is not active yet is given up; what serves goes on serving."""
    name = call.path["name"]
    update = desk.ledger.get(name)
    if update is None or update.status is not Status.IN_PROGRESS:
        desk.record(name)
        raise conflict(f"no update of {name!r} is in progress")
    message = f"canceled by {call.caller.name}"
    record = desk.view.state(now=True).endpoints.get(name)
    if record is not None and goals.has_config(record, update):
        raise conflict(f"the update of {name!r} is done: its config is active")
    if record is None:
        # It was not made yet, since somebody holds the lock, and now it never will be.
        reply = show(desk, name, call.caller)
        if desk.ledger.end(update, None):
            await desk.look_again(name)
            return {**reply, "state": {"ready": "NOT_READY", "config_update": str(Status.CANCELED)}}
        raise conflict(f"the update of {name!r} is over by now")
    if desk.ledger.end(update, update.ended(Status.CANCELED, message, {})):
        await desk.look_again(name)
    return show(desk, name, call.caller)


async def delete(desk: Desk, call: Call) -> Any:
    """DELETE /{name}; an update of it is given up."""
    name = call.path["name"]
    record = desk.view.state().endpoints.get(name)
    if record is not None and record.protected:
        raise invalid(f"{name!r} is protected by lifecycle.prevent_destroy of bundle {record.owner!r}")
    update = desk.ledger.get(name)
    if record is None and update is None:
        raise no_endpoint(name)
    if update is not None and update.status is Status.IN_PROGRESS:
        desk.ledger.end(update, update.ended(Status.CANCELED, "the endpoint is being deleted", {}))
    await desk.delete(name, call.caller.name)
    return {}


# Changing settings.


async def patch_tags(desk: Desk, call: Call) -> Any:
    """PATCH /{name}/tags."""
    body = call.object()
    added, deleted = _listed(body, "add_tags"), _listed(body, "delete_tags")
    if not all(isinstance(key, str) for key in deleted):
        raise invalid("delete_tags must be a list of keys")
    if not all(isinstance(tag, dict) and isinstance(tag.get("key"), str) for tag in added):
        raise invalid("add_tags must be a list of tags, each with a key")

    def change(block: dict[str, Any]) -> None:
        tags = {tag["key"]: tag for tag in block.get("tags", [])}
        for key in deleted:
            tags.pop(key, None)
        tags |= {tag["key"]: {"key": tag["key"], "value": tag.get("value") or ""} for tag in added}
        block["tags"] = list(tags.values())

    await desk.edit(call.path["name"], change, call.caller.name)
    return {"tags": show(desk, call.path["name"], call.caller)["tags"]}


def _listed(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(f"{key} must be a list")
    return value


async def put_rate_limits(desk: Desk, call: Call) -> Any:
    """PUT /{name}/rate-limits, the old spelling."""
    limits = _listed(call.object(), "rate_limits")

    def change(block: dict[str, Any]) -> None:
        block["rate_limits"] = limits

    await desk.edit(call.path["name"], change, call.caller.name)
    return {"rate_limits": goals.written_block(desk.record(call.path["name"])).get("rate_limits", [])}


async def put_gateway(desk: Desk, call: Call) -> Any:
    """PUT /{name}/ai-gateway: replaces all of it."""
    body = call.object()

    def change(block: dict[str, Any]) -> None:
        block["ai_gateway"] = body

    await desk.edit(call.path["name"], change, call.caller.name)
    return goals.written_block(desk.record(call.path["name"])).get("ai_gateway", {})


async def patch_notifications(desk: Desk, call: Call) -> Any:
    """PATCH /{name}/notifications."""
    wanted = call.object().get("email_notifications")

    def change(block: dict[str, Any]) -> None:
        block["email_notifications"] = wanted

    name = call.path["name"]
    await desk.edit(name, change, call.caller.name)
    return {"name": name, "email_notifications": show(desk, name, call.caller).get("email_notifications", {})}


async def patch_telemetry(desk: Desk, call: Call) -> Any:
    """PATCH /{name}/telemetry-config; without one it is removed."""
    name = call.path["name"]
    wanted = call.object().get("telemetry_config")
    _check_idle(desk, name)
    active = goals.written_block(desk.record(name)).get("config", {}).get("served_entities", [])
    if not active or "external_model" in active[0]:
        raise invalid("telemetry is for endpoints that serve models of their own")

    def change(block: dict[str, Any]) -> None:
        block["telemetry_config"] = wanted

    await desk.edit(name, change, call.caller.name)
    return show(desk, name, call.caller)
