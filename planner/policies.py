"""What an endpoint's block and its site say of its traffic -> what the router obeys.

Pure reading: `block` is the canonical JSON of an endpoint's normal form, `traffic` that of its policy in the
site block ("" where there is none). The rules have refused what contradicts itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servestate.planner.revision import canonical_json
from servestate.planner.spec.traffic import MirrorPolicy, TrafficPolicy
from servestate.planner.table import Guard, Limit, Mirror, Payloads, Sticky, Traffic

Json = Mapping[str, Any]

_EXACT = Traffic()


@dataclass(frozen=True, slots=True)
class Policies:
    """All of an endpoint's routes but who serves them."""

    limits: tuple[Limit, ...] = ()
    traffic: Traffic = _EXACT
    guard_input: Guard | None = None
    guard_output: Guard | None = None
    usage: bool = False
    payloads: Payloads | None = None


_NONE = Policies()
_TOLD_BY = ('"ai_gateway"', '"rate_limits"', '"auto_capture_config"')


def written_policy(policy: TrafficPolicy | None) -> str:
    """A policy as it is recorded: canonical JSON of what differs from the defaults; "" where nothing does."""
    told = policy.model_dump(mode="json", exclude_defaults=True) if policy is not None else {}
    return canonical_json(told) if told else ""


def policies_of(name: str, block: str, traffic: str) -> Policies:
    """The policies of the endpoint `name`."""
    if not traffic and not any(key in block for key in _TOLD_BY):  # most have none, and parsing costs
        return _NONE
    form = json.loads(block)
    policy = policy_of(traffic)
    gateway: Json = form.get("ai_gateway", {})
    guards: Json = gateway.get("guardrails", {})
    return Policies(
        _limits(gateway, form),
        _traffic(policy, bool(gateway.get("fallback_config", {}).get("enabled"))),
        _guard(guards.get("input")),
        _guard(guards.get("output")),
        bool(gateway.get("usage_tracking_config", {}).get("enabled")),
        _payloads(name, gateway, form, policy),
    )


def policy_of(traffic: str) -> TrafficPolicy:
    """The policy that was recorded so."""
    return TrafficPolicy.model_validate_json(traffic) if traffic else TrafficPolicy()


def _limits(gateway: Json, form: Json) -> tuple[Limit, ...]:
    """In either spelling; all of them hold."""
    written = (*gateway.get("rate_limits", {}).values(), *form.get("rate_limits", {}).values())
    return tuple(
        Limit(x.get("key", "endpoint"), x.get("principal", ""), x.get("calls", 0), x.get("tokens", 0))
        for x in written
    )


def _traffic(policy: TrafficPolicy, fallback: bool) -> Traffic:
    return Traffic(
        split=policy.split,
        sticky=_sticky(policy),
        replicas=policy.replicas,
        fallback=fallback,
        after_send=policy.fallback.after_send,
        deadline_s=policy.deadline_s,
        stall_s=policy.stall_s,
        concurrency=policy.concurrency,
        shadow=policy.limits == "shadow",
        named_by_header=policy.entity_header,
        mirror=_mirror(policy.mirror),
    )


def _sticky(policy: TrafficPolicy) -> Sticky | None:
    if policy.sticky is None:
        return None
    source, _, name = policy.sticky.source.partition(":")
    # Names of headers have no case; members of a body do.
    return Sticky(source, name.lower() if source == "header" else name, policy.sticky.salt)


def _mirror(mirror: MirrorPolicy | None) -> Mirror | None:
    return None if mirror is None else Mirror(mirror.entity, mirror.percent, mirror.max_inflight)


def _guard(side: Json | None) -> Guard | None:
    if side is None:
        return None
    behavior = side.get("pii", {}).get("behavior", "NONE")
    guard = Guard(tuple(side.get("invalid_keywords", ())), "" if behavior == "NONE" else behavior)
    return guard if guard != Guard() else None


def _payloads(name: str, gateway: Json, form: Json, policy: TrafficPolicy) -> Payloads | None:
    """The inference table, in either spelling. Without a prefix it is called after the endpoint, as in the
    serving API."""
    table = gateway.get("inference_table_config") or form.get("config", {}).get("auto_capture_config")
    if not table:
        return None
    prefix = table.get("table_name_prefix") or name
    full = f"{table['catalog_name']}.{table['schema_name']}.{prefix}_payload"
    kept = policy.inference_table
    return Payloads(full, kept.format, kept.percent, kept.max_body_bytes)
