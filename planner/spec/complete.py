"""What the serving API fills in when it takes an endpoint: N1, R6 and R11 of its rules.

Works in place on models that nobody else has seen yet: copying ten thousand frozen models to fill in a name
costs more than validating them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from servestate.planner.spec.endpoint import (
    Endpoint,
    EndpointConfig,
    Route,
    ServedEntity,
    ServedModel,
    TrafficConfig,
)

_SHARED = [name for name in ServedModel.model_fields if name in ServedEntity.model_fields]


def complete(endpoint: Endpoint) -> Endpoint:
    """The same endpoint with served models converted, entities named and the route of a single entity given.

    If both spellings of the entities are given the deprecated one is kept, for the rule against that to find.
    """
    config = endpoint.config
    if config is None:
        return endpoint
    if config.served_models and not config.served_entities:
        _set(config, served_entities=tuple(_converted(m) for m in config.served_models), served_models=())
    for entity in config.served_entities:
        if not entity.name:
            _set(entity, name=default_name(entity))
    if config.traffic_config is not None and not config.traffic_config.routes:
        _set(config, traffic_config=None)
    if config.traffic_config is None and len(config.served_entities) == 1:
        _set(config, traffic_config=_everything_to(config.served_entities[0].name))
    return endpoint


def _set(model: Endpoint | EndpointConfig | ServedEntity, **values: Any) -> None:
    model.__dict__.update(values)
    model.__pydantic_fields_set__.update(values)


def _converted(served: ServedModel) -> ServedEntity:
    given: dict[str, Any] = {
        name: getattr(served, name) for name in _SHARED if name in served.model_fields_set
    }
    return ServedEntity.model_construct(
        **given, entity_name=served.model_name, entity_version=served.model_version
    )


def default_name(entity: ServedEntity) -> str:
    """R6: the external model's name, or the model's short name and version: `a.b.llama`, 2 gives `llama-2`.

    A model that is named by its source (`file://…/x.gguf`) is called after the last part of the path.
    """
    if entity.external_model is not None:
        return re.sub("[.:]", "-", entity.external_model.name)
    if "/" in entity.entity_name:
        return re.sub("[^A-Za-z0-9_-]+", "-", entity.entity_name.rstrip("/").rpartition("/")[2])[:63]
    short = entity.entity_name.rpartition(".")[2]
    return f"{short}-{entity.entity_version}" if entity.entity_version else short


@lru_cache(maxsize=1024)
def _everything_to(entity: str) -> TrafficConfig:
    """R11. Shared by all endpoints that have a single entity of that name."""
    route = Route(traffic_percentage=100, served_entity_name=entity, served_model_name=entity)
    return TrafficConfig(routes=(route,))
