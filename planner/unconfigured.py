"""An endpoint whose block has no `config` keeps the models that it has (N12), read off its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from servestate.planner.address import EntityAddress
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.policies import policy_of
from servestate.planner.resolve import ResolvedEndpoint, ResolvedEntity
from servestate.planner.revision import canonical_json
from servestate.planner.rollout import timings_at_launch
from servestate.planner.spec.traffic_rules import mirror_problem
from servestate.planner.state import EndpointRecord, Instance, Target


def with_recorded_config(
    desired: ResolvedEndpoint,
    record: EndpointRecord | None,
    groups: Mapping[EntityAddress, list[Instance]],
) -> ResolvedEndpoint:
    """`desired`, with the config and the entities of `record` where it has no config of its own.

    The entities are complete, so that one that died is repaired as any other. Raises InvalidInput where an
    entity has no instance left that tells what it runs, and where the site mirrors to one that is not there.
    """
    if desired.entities or record is None or not record.targets:
        return desired
    block = json.loads(desired.block)
    if "config" in block:
        return desired
    block["config"] = _config(block, record)
    _check_mirror(desired, block["config"])
    entities = tuple(_entity(desired.name, target, groups) for target in record.targets)
    return replace(desired, block=canonical_json(block), entities=entities)


def _config(block: dict[str, Any], record: EndpointRecord) -> dict[str, Any]:
    """The recorded config, its entities as the normal form of `block` orders them (N4)."""
    config: dict[str, Any] = json.loads(record.block)["config"]
    place = {target.entity: index for index, target in enumerate(record.targets)}
    fallback = block.get("ai_gateway", {}).get("fallback_config", {}).get("enabled", False)
    entities = config["served_entities"]
    entities.sort(key=lambda e: place.get(e["name"], len(place)) if fallback else e["name"])
    return config


def _check_mirror(desired: ResolvedEndpoint, config: dict[str, Any]) -> None:
    mirror = policy_of(desired.traffic).mirror
    if mirror is None:
        return
    external = {e["name"]: "external_model" in e for e in config["served_entities"]}
    if problem := mirror_problem(desired.name, mirror, external):
        raise InvalidInput([Diagnostic("SS211", *problem)])


def _entity(endpoint: str, target: Target, groups: Mapping[EntityAddress, list[Instance]]) -> ResolvedEntity:
    address = EntityAddress(endpoint, target.entity)
    recorded = groups.get(address, [])
    # None is routed to where a replacement that stops the old one first was interrupted.
    instance = next((i for i in recorded if i.address in target.instances), next(iter(recorded), None))
    if instance is None:
        what = f'"{address}" has neither a config nor an instance to take it from: an apply was interrupted'
        raise InvalidInput([Diagnostic("SS306", what, f'add the config of "{endpoint}" again, then apply')])
    timings = timings_at_launch(instance)
    # Where it may run is not recorded: it stays where it is.
    hosts = (instance.placement.host,)
    return ResolvedEntity(
        target.entity, target.weight, instance.spec, instance.address.revision, timings, hosts
    )
