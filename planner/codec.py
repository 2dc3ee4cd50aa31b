"""Plans and state records to and from JSON. The storage format is here, the data elsewhere.

A reader refuses a format version it does not know and any field it does not know: what it would drop, it
must not act on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar, assert_never

from servestate.planner.address import (
    EndpointAddress,
    EntityAddress,
    InstanceAddress,
    parse_address,
    parse_instance,
)
from servestate.planner.capacity import HostUse
from servestate.planner.change import Action, Category, Change, FieldDiff, Reason
from servestate.planner.drift import Drift, DriftKind
from servestate.planner.graph import build
from servestate.planner.launch import Container, ExternalSpec, LaunchSpec, Mount, Placement, Spec
from servestate.planner.plan import PLAN_FORMAT, Plan
from servestate.planner.revision import canonical_json, digest, spec_to_json
from servestate.planner.stamp import Stamp
from servestate.planner.state import EndpointRecord, History, Instance, Phase, Target
from servestate.planner.steps import (
    AwaitReady,
    Drain,
    Forget,
    Launch,
    Node,
    PublishTable,
    Pull,
    Register,
    RewriteTable,
    Step,
    Stop,
    Withdraw,
)

Json = dict[str, Any]
T = TypeVar("T")


class FormatError(ValueError):
    """The text is not what this version of servestate writes; the message says in which way."""


def encode_plan(plan: Plan) -> str:
    """The plan file: canonical JSON, its digest first in `digest`. Holds no time, user, host or path."""
    body = _plan_body(plan)
    return canonical_json({"digest": digest(body), "plan": body}) + "\n"


def decode_plan(text: str) -> Plan:
    """The plan of a plan file. Raises FormatError: not JSON, edited by hand, or of another version."""
    document = _loads(text)
    try:
        body, written = document["plan"], document["digest"]
    except (KeyError, TypeError) as error:
        raise FormatError("this is not a servestate plan file") from error
    version = body.get("format_version") if isinstance(body, dict) else None
    if version != PLAN_FORMAT:
        raise FormatError(f"the plan has format version {version}, this servestate reads {PLAN_FORMAT}")
    if _decode(digest, body, "plan") != written:
        raise FormatError("the plan's digest does not match its content: it was edited or damaged")
    return _decode(lambda body: _plan_as_written(body, text), body, "plan")


def _plan_as_written(body: Json, text: str) -> Plan:
    plan = _plan_from(body)
    # Every field was understood exactly if writing it again gives the same bytes.
    if encode_plan(plan) != text:
        raise ValueError("it holds something that this servestate does not write")
    return plan


def encode_record(record: EndpointRecord) -> str:
    """An endpoint record as canonical JSON."""
    return canonical_json(record_to_json(record))


def decode_record(text: str) -> EndpointRecord:
    """The endpoint record of `text`. Raises FormatError."""
    return _decode(_record_from, _loads(text), "endpoint record")


def encode_instance(instance: Instance) -> str:
    """An instance as canonical JSON."""
    return canonical_json(instance_to_json(instance))


def decode_instance(text: str) -> Instance:
    """The instance of `text`. Raises FormatError."""
    return _decode(_instance_from, _loads(text), "instance")


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from error


def _decode(reader: Callable[..., T], value: Any, what: str) -> T:
    try:
        return reader(value)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"this {what} is damaged or of another version: {error}") from error


def record_to_json(record: EndpointRecord) -> Json:
    """An endpoint record as JSON values."""
    history = {} if record.history is None else {"history": asdict(record.history)}
    traffic = {"traffic": record.traffic} if record.traffic else {}
    return (
        history
        | traffic
        | {
            "name": record.name,
            "key": record.key,
            "owner": record.owner,
            "block": record.block,
            "config_version": record.config_version,
            "protected": record.protected,
            "targets": [[t.entity, t.weight, [str(a) for a in t.instances]] for t in record.targets],
        }
    )


def _record_from(value: Json) -> EndpointRecord:
    targets = tuple(Target(e, w, tuple(parse_instance(a) for a in found)) for e, w, found in value["targets"])
    history = _history_from(value["history"]) if "history" in value else None
    return EndpointRecord(**{**value, "targets": targets, "history": history})


def _history_from(value: Json) -> History:
    created, changed = Stamp(**value["created"]), Stamp(**value["changed"])
    return History(**{**value, "created": created, "changed": changed})


def instance_to_json(instance: Instance) -> Json:
    """An instance as JSON values; fields that are empty, or that mean nothing for its kind, are left out."""
    facts: Json = {
        "address": str(instance.address),
        "spec": spec_to_json(instance.spec),
        "phase": str(instance.phase),
        "handle": instance.handle,
        "url": instance.url,
        "why": instance.why,
        "op": instance.op,
    }
    if isinstance(instance.spec, LaunchSpec):
        facts |= {"drain_timeout_s": instance.drain_timeout_s, "stop_grace_s": instance.stop_grace_s}
    facts |= _placement_to_json(instance.placement)
    if instance.fields:
        facts["fields"] = dict(instance.fields)
    return {k: v for k, v in facts.items() if v != ""}


def _instance_from(value: Json) -> Instance:
    found = {**value, "address": parse_instance(value["address"]), "phase": Phase(value["phase"])}
    found["placement"] = _placement_from(value.get("placement"))
    found["fields"] = tuple(sorted(value.get("fields", {}).items()))
    return Instance(**{**found, "spec": _spec_from(value["spec"])})


def _placement_to_json(placement: Placement) -> Json:
    """Under its own key; nothing for what claims nothing on this very host."""
    if placement == Placement():
        return {}
    facts = {"host": placement.host, "gpus": list(placement.gpus), "fraction": placement.fraction}
    return {"placement": facts}


def _placement_from(value: Json | None) -> Placement:
    return Placement(**{**value, "gpus": tuple(value["gpus"])}) if value is not None else Placement()


def _spec_from(value: Json) -> Spec:
    fields = {k: v for k, v in value.items() if k != "type"}
    if value["type"] == "external":
        return ExternalSpec(**{**fields, "headers": _pairs(fields["headers"])})
    fields |= {"args": tuple(fields["args"]), "env": _pairs(fields["env"])}
    if "options" in fields:
        fields["options"] = tuple((name, given) for name, given in fields["options"])
    if "container" in fields:
        mounts = tuple(Mount(**mount) for mount in fields["container"]["mounts"])
        fields["container"] = Container(**{**fields["container"], "mounts": mounts})
    return LaunchSpec(**fields)


def _pairs(value: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, text) for name, text in value)


def _plan_body(plan: Plan) -> Json:
    return {
        "format_version": plan.format_version,
        "servestate_version": plan.servestate_version,
        "lineage": plan.lineage,
        "serial": plan.serial,
        "bundle": plan.bundle,
        "desired_digest": plan.desired_digest,
        "destroy": plan.destroy,
        "unchanged": plan.unchanged,
        "capacity": [use_to_json(use) for use in plan.capacity],
        "observed": {address: dict(facts) for address, facts in plan.observed},
        "drift": [[d.address, str(d.kind), d.recorded, d.live] for d in plan.drift],
        "changes": [_change_to_json(c) for c in plan.changes],
        "steps": [_node_to_json(n) for n in plan.nodes],
    }


def _plan_from(body: Json) -> Plan:
    found = {k: v for k, v in body.items() if k != "steps"}
    found["observed"] = tuple((a, tuple(sorted(f.items()))) for a, f in sorted(body["observed"].items()))
    found["drift"] = tuple(Drift(a, DriftKind(k), r, live) for a, k, r, live in body["drift"])
    found["changes"] = tuple(_change_from(c) for c in body["changes"])
    found["capacity"] = tuple(HostUse(**use) for use in body["capacity"])
    found["nodes"] = tuple(_node_from(n) for n in body["steps"])
    build(found["nodes"])  # raises where steps need each other in a circle
    return Plan(**found)


def use_to_json(use: HostUse) -> Json:
    """The use of one host's GPUs as JSON values."""
    return asdict(use)


def _change_to_json(change: Change) -> Json:
    return {
        "address": str(change.address),
        "action": str(change.action),
        "action_reason": str(change.reason),
        "category": str(change.category),
        "before": change.before,
        "after": change.after,
        "fields": [{"path": f.path, "old": f.old, "new": f.new, "forces": f.forces} for f in change.fields],
        "note": change.note,
        "blocked": change.blocked,
        "remarks": list(change.remarks),
    }


def _change_from(value: Json) -> Change:
    address = parse_address(value["address"])
    if isinstance(address, InstanceAddress):
        raise ValueError(f"{address} is not an endpoint or entity")
    return Change(
        address=address,
        action=Action(value["action"]),
        reason=Reason(value["action_reason"]),
        category=Category(value["category"]),
        before=value["before"],
        after=value["after"],
        fields=tuple(FieldDiff(**f) for f in value["fields"]),
        note=value["note"],
        blocked=value["blocked"],
        remarks=tuple(value["remarks"]),
    )


def _node_to_json(node: Node) -> Json:
    order: Json = {"after": list(node.after)} if node.after else {}
    return {"id": node.id, "needs": list(node.needs), **order, **step_to_json(node.step)}


def step_to_json(step: Step) -> Json:
    """A step as JSON values, its kind in `kind`."""
    match step:
        case Pull(provider, host, image, image_digest):
            return {
                "kind": "pull",
                "provider": provider,
                "host": host,
                "image": image,
                "digest": image_digest,
            }
        case Launch(address, launch_spec, drain_timeout_s, stop_grace_s, placement):
            recorded = {"drain_timeout_s": drain_timeout_s, "stop_grace_s": stop_grace_s}
            recorded |= _placement_to_json(placement)
            return {"kind": "launch", "address": str(address), "spec": spec_to_json(launch_spec), **recorded}
        case Register(address, external):
            return {"kind": "register", "address": str(address), "spec": spec_to_json(external)}
        case AwaitReady(address, timeout_s):
            return {"kind": "await_ready", "address": str(address), "timeout_s": timeout_s}
        case PublishTable(record):
            return {"kind": "publish_table", "record": record_to_json(record)}
        case Withdraw(endpoint):
            return {"kind": "withdraw", "address": str(endpoint)}
        case RewriteTable():
            return {"kind": "rewrite_table"}
        case Drain(address, timeout_s):
            return {"kind": "drain", "address": str(address), "timeout_s": timeout_s}
        case Stop(address, provider, handle, grace_s):
            facts = {"provider": provider, "handle": handle, "grace_s": grace_s}
            return {"kind": "stop", "address": str(address), **facts}
        case Forget(forgotten):
            return {"kind": "forget", "address": str(forgotten)}
        case _:
            assert_never(step)


def _node_from(value: Json) -> Node:
    fields = {k: v for k, v in value.items() if k not in ("id", "needs", "after", "kind")}
    step = _STEP_READERS[value["kind"]](**fields)
    return Node(value["id"], step, tuple(value["needs"]), tuple(value.get("after", ())))


def _launch_from(
    address: str, spec: Json, drain_timeout_s: float, stop_grace_s: float, placement: Json | None = None
) -> Step:
    found = _spec_from(spec)
    if not isinstance(found, LaunchSpec):
        raise ValueError(f"{address} cannot be launched: it is external")
    at = _placement_from(placement)
    return Launch(parse_instance(address), found, drain_timeout_s, stop_grace_s, at)


def _register_from(address: str, spec: Json) -> Step:
    found = _spec_from(spec)
    if not isinstance(found, ExternalSpec):
        raise ValueError(f"{address} cannot be registered: it is not external")
    return Register(parse_instance(address), found)


def _endpoint_from(address: str) -> EndpointAddress:
    found = parse_address(address)
    if not isinstance(found, EndpointAddress):
        raise ValueError(f"{address} is not an endpoint")
    return found


def _forget_from(address: str) -> Step:
    found = parse_address(address)
    if isinstance(found, EntityAddress):
        raise ValueError(f"{address} is neither endpoint nor instance")
    return Forget(found)


_STEP_READERS: dict[str, Callable[..., Step]] = {
    "pull": Pull,
    "launch": _launch_from,
    "register": _register_from,
    "await_ready": lambda address, timeout_s: AwaitReady(parse_instance(address), timeout_s),
    "publish_table": lambda record: PublishTable(_record_from(record)),
    "withdraw": lambda address: Withdraw(_endpoint_from(address)),
    "rewrite_table": lambda: RewriteTable(),
    "drain": lambda address, timeout_s: Drain(parse_instance(address), timeout_s),
    "stop": lambda address, provider, handle, grace_s: Stop(
        parse_instance(address), provider, handle, grace_s
    ),
    "forget": _forget_from,
}
