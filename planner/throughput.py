"""Provisioned throughput: in which steps a model's is given, and what of a request for it does not fit them.

Rules R18 to R20 of the serving API. They need the site's catalogue of models, so they are looked at when
entities are resolved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from servestate.planner.spec.endpoint import Endpoint, ServedEntity
from servestate.planner.spec.site import Optimization, Site

Catalogue = Mapping[str, Optimization]
"""Foundation models: a pattern of the last part of a model's dotted name -> what is known of it."""

NOTHING_KNOWN: Catalogue = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding at a path of the endpoint."""

    code: str
    what: str
    fix: str
    path: tuple[str | int, ...]


def optimization_of(model: str, site: Site, catalogue: Catalogue) -> Optimization | None:
    """What is known of a model by its dotted name: what the site says, else the catalogue. None where its
    throughput cannot be provisioned."""
    declared = site.models.get(model)
    if declared is not None and declared.optimization is not None:
        return declared.optimization
    short = model.rpartition(".")[2].lower()
    return next((known for pattern, known in catalogue.items() if re.fullmatch(pattern, short)), None)


def throughput_problems(endpoint: Endpoint, site: Site, catalogue: Catalogue) -> Iterator[Problem]:
    """R18, R19, R20 of every entity."""
    for index, entity in enumerate(endpoint.entities):
        yield from _problems(entity, index, site, catalogue)


def _problems(entity: ServedEntity, index: int, site: Site, catalogue: Catalogue) -> Iterator[Problem]:
    asked = _asked(entity)
    if not asked:
        return
    known = optimization_of(entity.entity_name, site, catalogue)
    for field, amount in asked.items():
        at = ("config", "served_entities", index, field)
        step = _step(known, field)
        if step is None:
            what = f'Model is not eligible for provisioned throughput: {field} of "{entity.name}"'
            fix = f"remove {field}, or declare servestate.models.{entity.entity_name}.optimization"
            yield Problem("SS206", what, fix, at)
        elif amount % step:
            what = f'{field} of "{entity.name}" is {amount}, not a multiple of {step}'
            near = max(step, amount - amount % step)
            yield Problem("SS205", what, f"use {near} or {near + step}", at)


def _asked(entity: ServedEntity) -> dict[str, int]:
    fields = ("min_provisioned_throughput", "max_provisioned_throughput", "provisioned_model_units")
    return {field: value for field in fields if (value := getattr(entity, field)) is not None}


def _step(known: Optimization | None, field: str) -> int | None:
    """The step of a field. Units of a model whose step nobody knows are taken as they are."""
    if known is None:
        return None
    if field == "provisioned_model_units":
        return known.model_unit_chunk_size or 1
    return known.throughput_chunk_size
