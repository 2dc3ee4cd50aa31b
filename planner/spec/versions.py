"""The versions of the site's catalogue, and which workload types the endpoints run them with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from servestate.planner.spec.characters import shorten
from servestate.planner.spec.endpoint import Endpoint, ServedEntity
from servestate.planner.spec.site import ModelVersion, Site, WorkloadType


@dataclass(frozen=True, slots=True)
class Listed:
    """A version as the catalogue lists it. `kinds` are the workload types it is run with, by name."""

    model: str
    number: str
    version: ModelVersion
    kinds: tuple[tuple[str, WorkloadType], ...]

    @property
    def path(self) -> tuple[str, ...]:
        """Where it stands in the site block."""
        return ("models", self.model, "versions", self.number)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"version {shorten(self.number)} of {shorten(self.model)}"

    @property
    def in_docker(self) -> bool:
        """Whether any endpoint runs it in a container."""
        return any(kind.provider == "docker" for _, kind in self.kinds)


def listed(site: Site, endpoints: Sequence[Endpoint]) -> Iterator[Listed]:
    """Every version of the catalogue."""
    if not site.models:
        return
    used: dict[tuple[str, str], set[str]] = {}
    for entity in (entity for endpoint in endpoints for entity in endpoint.entities):
        if entity.external_model is None:
            used.setdefault((entity.entity_name, entity.entity_version), set()).add(entity.workload_type)
    for name, model in site.models.items():
        for number, version in model.versions.items():
            kinds = sorted(used.get((name, number), ()))
            yield Listed(name, number, version, tuple((kind, site.workload_types[kind]) for kind in kinds))


def engine_of(site: Site, entity: ServedEntity) -> str:
    """The engine that runs an entity, "" where that cannot be told."""
    if entity.entity_name.startswith("file://"):
        return "llamacpp"
    model = site.models.get(entity.entity_name)
    version = model.versions.get(entity.entity_version) if model is not None else None
    return version.engine if version is not None else ""
