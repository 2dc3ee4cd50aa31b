"""Desired x State x Live -> changes, with every field that differs and the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from servestate.planner.address import EndpointAddress, EntityAddress
from servestate.planner.change import Action, Category, Change, FieldDiff, Reason
from servestate.planner.fields import FORCES_REPLACEMENT
from servestate.planner.grants import grants
from servestate.planner.handles import shown
from servestate.planner.launch import Container, LaunchSpec, Spec
from servestate.planner.live import Live
from servestate.planner.match import Match, Need, changed_fields, is_alive, is_intact
from servestate.planner.resolve import ResolvedEndpoint
from servestate.planner.revision import spec_to_json
from servestate.planner.rollout import recreates
from servestate.planner.sizes import sized
from servestate.planner.state import EndpointRecord, Instance, Phase
from servestate.planner.traffic_words import in_words

_PROTECTED = "lifecycle.prevent_destroy"


def diff_endpoint(
    desired: ResolvedEndpoint,
    record: EndpointRecord | None,
    matches: Sequence[Match],
    removed: Sequence[list[Instance]],
    live: Live,
) -> Iterator[Change]:
    """The changes of one desired endpoint: its own, then those of its entities in declared order, then the
    entities that are no longer in it (`removed`, the instances of each)."""
    block, was = json.loads(desired.block), json.loads(record.block) if record else None
    own = _endpoint_change(desired, was, block, record)
    if own is not None:
        yield own
    before, after = _entities(was), _entities(block)
    for match in matches:
        name = match.entity.name
        change = _entity_change(desired.name, match, before.get(name), after[name], record, live)
        if change is not None:
            yield replace(change, remarks=tuple(_remarks(match)))
    vacated = {address for match in matches for address in match.placed.vacates}
    for instances in removed:
        change = _entity_removed(instances, before, Reason.NOT_CONFIGURED)
        first = any(i.address in vacated for i in instances)
        yield replace(change, category=Category.RECREATE) if first else change


def _remarks(match: Match) -> Iterator[str]:
    """Where a launch goes and what it is granted."""
    yield from match.placed.remarks
    if match.need is Need.LAUNCH and isinstance(match.entity.spec, LaunchSpec):
        yield from grants(match.entity.spec)


def delete_endpoint(
    record: EndpointRecord, groups: Sequence[list[Instance]], reason: Reason
) -> Iterator[Change]:
    """The changes that take an endpoint away with all its entities. A protected one is blocked."""
    block = json.loads(record.block)
    blocked = _PROTECTED if record.protected else ""
    yield Change(
        EndpointAddress(record.name),
        Action.DELETE,
        reason,
        Category.ROUTE_ONLY,
        _endpoint_attributes(block, record.traffic),
        None,
        blocked=blocked,
    )
    entities = _entities(block)
    for instances in groups:
        yield _entity_removed(instances, entities, reason, blocked)


def _endpoint_change(
    desired: ResolvedEndpoint,
    was: dict[str, Any] | None,
    block: dict[str, Any],
    record: EndpointRecord | None,
) -> Change | None:
    after = _endpoint_attributes(block, desired.traffic)
    address = EndpointAddress(desired.name)
    told = tuple(in_words(desired.name, desired.block, desired.traffic))
    if was is None or record is None:
        return Change(address, Action.CREATE, Reason.NONE, Category.ROUTE_ONLY, None, after, remarks=told)
    before = _endpoint_attributes(was, record.traffic)
    fields = field_diffs(before, after)
    if not fields:
        return None
    forced = any(f.forces for f in fields)
    action = Action.CREATE_THEN_DELETE if forced else Action.UPDATE
    reason = Reason.CANNOT_UPDATE if forced else Reason.NONE
    blocked = _PROTECTED if forced and record.protected else ""
    note = "nothing restarts" if not forced else "its served entities keep running"
    known = set(in_words(record.name, record.block, record.traffic))
    new = tuple(line for line in told if line not in known)
    return Change(address, action, reason, Category.ROUTE_ONLY, before, after, fields, note, blocked, new)


def _entity_change(
    endpoint: str,
    match: Match,
    before_block: dict[str, Any] | None,
    after_block: dict[str, Any],
    record: EndpointRecord | None,
    live: Live,
) -> Change | None:
    address = EntityAddress(endpoint, match.entity.name)
    after = _entity_attributes(after_block, match.entity.spec)
    previous = _previous(match, record)
    if match.need is Need.NOTHING and before_block is None:  # it got ready and was never published
        return _resumed(address, Category.ROUTE_ONLY, after)
    if match.need is Need.NOTHING:
        before = _entity_attributes(before_block or {}, match.entity.spec)
        fields = field_diffs(before, after)
        if not fields:
            return None
        return Change(
            address,
            Action.UPDATE,
            Reason.NONE,
            Category.ROUTE_ONLY,
            before,
            after,
            fields,
            "nothing restarts",
        )
    if previous is None and match.need is Need.AWAIT:
        return _resumed(address, _category(match), after)
    if previous is None:
        note = _adoption(match, live)
        return Change(address, Action.CREATE, Reason.NONE, _category(match), None, after, note=note)
    before = _entity_attributes(before_block or {}, previous.spec)
    return _replacement(address, match, previous, before, after, live)


def _resumed(address: EntityAddress, category: Category, after: dict[str, Any]) -> Change:
    note = "continues an interrupted apply"
    return Change(address, Action.CREATE, Reason.RESUMED, category, None, after, note=note)


def _adoption(match: Match, live: Live) -> str:
    return "it runs already and is taken over" if match.use in live.instances else ""


def _last_failure(match: Match) -> str:
    """What became of an earlier try to launch the same revision."""
    tries = [i for i in match.old if i.phase is Phase.FAILED and i.address.revision == match.entity.revision]
    return f"the last try failed: {tries[-1].why.splitlines()[0]}" if tries and tries[-1].why else ""


def _replacement(
    address: EntityAddress,
    match: Match,
    previous: Instance,
    before: dict[str, Any],
    after: dict[str, Any],
    live: Live,
) -> Change:
    fields = tuple(
        FieldDiff(f.path, f.old, f.new, forces=f.path.split(".")[0] in _LAUNCH_FIELDS)
        for f in field_diffs(before, after)
    )
    if previous.phase is Phase.FAILED:
        reason, note = Reason.TAINTED, previous.why.splitlines()[0] if previous.why else ""
    elif not is_alive(previous, live):
        seen = live.instances.get(previous.address)
        gone = Change(address, Action.CREATE, Reason.DRIFT, _category(match), None, after)
        if seen is None:
            return replace(gone, note="it is gone")
        if seen.status == "exited":
            return replace(gone, note=f"it exited: {seen.why.splitlines()[0]}" if seen.why else "it exited")
        reason, note = Reason.DRIFT, f"it is {seen.status} as {shown(seen.handle)}"
    elif not is_intact(previous, live):
        told = ", ".join(f"{n} {was} -> {now or 'none'}" for n, was, now in changed_fields(previous, live))
        reason, note = Reason.DRIFT, f"somebody changed it: {told}"
    elif [f.path for f in fields] == ["container.digest"]:
        reason, note = Reason.IMAGE_MOVED, "the name of its image means another image now"
    elif not any(f.forces for f in fields) and previous.placement.host not in match.entity.hosts:
        reason, note = Reason.CANNOT_UPDATE, f"it may not run on {previous.placement.host} any more"
    else:
        reason, note = Reason.CANNOT_UPDATE, _last_failure(match)
    category = _category(match)
    action = Action.DELETE_THEN_CREATE if category is Category.RECREATE else Action.CREATE_THEN_DELETE
    return Change(address, action, reason, category, before, after, fields, note)


def _category(match: Match) -> Category:
    if match.need is Need.REGISTER:
        return Category.ROUTE_ONLY
    return Category.RECREATE if recreates(match) else Category.ROLLING


def _previous(match: Match, record: EndpointRecord | None) -> Instance | None:
    """The instance whose place is taken: the one that has the entity's traffic, else a failed one."""
    routed = (
        {a for t in record.targets if t.entity == match.entity.name for a in t.instances} if record else {}
    )
    serving = [i for i in match.old if i.address in routed]
    failed = [i for i in match.old if i.phase is Phase.FAILED]
    candidates = serving or failed
    return candidates[0] if candidates else None


def _entity_removed(
    instances: list[Instance], before: dict[str, dict[str, Any]], reason: Reason, blocked: str = ""
) -> Change:
    address = instances[0].address.of
    attributes = _entity_attributes(before.get(address.entity, {}), instances[0].spec)
    external = not isinstance(instances[0].spec, LaunchSpec)
    category = Category.ROUTE_ONLY if external else Category.ROLLING
    return Change(address, Action.DELETE, reason, category, attributes, None, blocked=blocked)


# The fields of a launch spec, as they stand among the attributes of an entity.
_LAUNCH_FIELDS = frozenset(
    {"provider", "engine", "source", "args", "env", "health_path", "task", "kind", "url"}
    | {"options", "gpus", "gpu_fraction", "python", "container"}
)
_LAUNCH_FIELDS |= {"model", "auth_header", "auth_prefix", "secret", "headers"}


def _endpoint_attributes(block: dict[str, Any], traffic: str) -> dict[str, Any]:
    """What the block says, and under `traffic` what the site does. The order of entities is an attribute
    where it has a meaning."""
    config = {k: v for k, v in block.get("config", {}).items() if k != "served_entities"}
    own = {k: v for k, v in block.items() if k != "config"}
    if "routes" in config:
        config["traffic_config"] = config.pop("routes")
    if block.get("ai_gateway", {}).get("fallback_config", {}).get("enabled"):
        own["fallback_order"] = list(_entities(block))
    policy = {"traffic": json.loads(traffic)} if traffic else {}
    return {**own, **config, **policy}


def _entities(block: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    config = (block or {}).get("config", {})
    return {entity["name"]: entity for entity in config.get("served_entities", [])}


def _entity_attributes(block: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """What the user wrote and what it was resolved to. Lists of pairs become maps for reading."""
    facts = {k: v for k, v in spec_to_json(spec).items() if k != "type" and v not in ("", (), [])}
    for pairs in ("env", "headers", "options"):
        if pairs in facts:
            facts[pairs] = dict(facts[pairs])
    if "args" in facts:
        facts["args"] = list(facts["args"])
    if "container" in facts:
        facts["container"] = _container_attributes(facts["container"])
    written = {k: v for k, v in block.items() if k not in ("environment_vars", "external_model")}
    return {**written, **facts}


_CONTAINER_DEFAULTS = asdict(Container(""))


def _container_attributes(container: dict[str, Any]) -> dict[str, Any]:
    """What is not as for every container; mounts by target, read-only ones marked."""
    told = {k: v for k, v in container.items() if v != _CONTAINER_DEFAULTS[k]}
    told |= {k: sized(told[k]) for k in ("memory", "shm") if k in told}
    if "mounts" in told:
        told["mounts"] = {
            m["target"]: m["source"] + (" (read-only)" if m["read_only"] else "") for m in told["mounts"]
        }
    return told


def field_diffs(before: dict[str, Any], after: dict[str, Any]) -> tuple[FieldDiff, ...]:
    """Every leaf that differs, by path. Lists are compared whole: an argument list has no keys."""
    if before == after:
        return ()
    from deepdiff import DeepDiff  # slow to import, and needed only where something differs

    # The threshold is 0 because DeepDiff reports maps that share few keys as one change of the whole map.
    tree = DeepDiff(before, after, view="tree", ignore_order=False, threshold_to_diff_deeper=0)
    found: dict[str, FieldDiff] = {}
    for group in tree.values():
        for leaf in group:
            path = _path_to_map_key(leaf)
            old, new = _at(before, path), _at(after, path)
            dotted = ".".join(path)
            found[dotted] = FieldDiff(dotted, old, new, forces=path[0] in FORCES_REPLACEMENT)
    return tuple(found[path] for path in sorted(found))


def _path_to_map_key(leaf: Any) -> tuple[str, ...]:
    """The path down to the last map key; what lies inside a list belongs to the list."""
    path: list[str] = []
    for part in leaf.path(output_format="list"):
        if not isinstance(part, str):
            break
        path.append(part)
    return tuple(path)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value
