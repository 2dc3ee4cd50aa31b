"""Resolved endpoints and bundles in a line each."""

from __future__ import annotations

from servestate.planner.launch import ExternalSpec, LaunchSpec
from servestate.planner.resolve import Resolved, ResolvedEndpoint, ResolvedEntity
from servestate.planner.revision import canonical_json, digest, revision
from servestate.planner.timings import Timings


def local(name: str, weight: int, version: str = "A", **timings: object) -> ResolvedEntity:
    """An entity that a provider starts; `version` decides its revision."""
    spec = LaunchSpec("process", "command", f"model-{name}", args=("serve", "{port}", version))
    return ResolvedEntity(name, weight, spec, revision(spec), Timings(**timings))  # type: ignore[arg-type]


def external(name: str, weight: int, host: str = "one.example") -> ResolvedEntity:
    """An entity that somebody else runs."""
    spec = ExternalSpec("openai", f"https://{host}/v1/chat/completions", "gpt", "llm/v1/chat")
    return ResolvedEntity(name, weight, spec, revision(spec), Timings())


def endpoint(name: str, *entities: ResolvedEntity, **extra: object) -> ResolvedEndpoint:
    """An endpoint whose block agrees with its entities."""
    served = [{"name": e.name, "entity_name": e.spec.model} for e in sorted(entities, key=lambda e: e.name)]
    config = {"served_entities": served, "routes": {e.name: e.weight for e in entities}}
    protected, traffic = bool(extra.pop("protected", False)), str(extra.pop("traffic", ""))
    block = canonical_json({"name": name, "config": config, **extra})
    return ResolvedEndpoint(name, name.replace("-", "_"), block, entities, protected, traffic)


def bundle(*endpoints: ResolvedEndpoint, name: str = "demo") -> Resolved:
    """A bundle of these endpoints."""
    ordered = tuple(sorted(endpoints, key=lambda e: e.name))
    facts = [[e.block, [[x.revision, x.weight] for x in e.entities], e.protected, e.traffic] for e in ordered]
    return Resolved(name, ordered, digest([name, facts]))


NOTHING = bundle()
