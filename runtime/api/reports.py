"""What endpoints say of themselves: logs, metrics, the shape of their queries; and what a model can do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

from servestate.planner.spec.endpoint import WorkloadSize
from servestate.planner.state import EndpointRecord, Instance, State
from servestate.planner.throughput import optimization_of
from servestate.providers.protocol import TransientError
from servestate.runtime.api import goals
from servestate.runtime.api.call import Call, Text, absent, unavailable
from servestate.runtime.api.desk import Desk
from servestate.runtime.catalogue import foundation_models
from servestate.runtime.router_link import router_status

LOG_LINES = 500
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_CONCURRENCY: dict[WorkloadSize, int] = {"Small": 4, "Medium": 16, "Large": 64}
"""Requests at a time that a size stands for at most."""

_COUNTED = {
    "request_count_total": "Requests.",
    "request_4xx_count_total": "Requests answered with 4xx.",
    "request_5xx_count_total": "Requests answered with 5xx.",
}

# Logs.


async def logs(desk: Desk, call: Call) -> Any:
    """GET /{name}/served-models/{entity}/logs: the last lines that its engines wrote, secrets masked."""
    name, entity = call.path["name"], call.path["entity"]
    state = desk.view.state()
    _check_entity(desk, name, entity)
    instances = [
        one for a, one in sorted(state.instances.items()) if (a.endpoint, a.entity) == (name, entity)
    ]
    text = await desk.run(lambda: asyncio.run(_logs(desk, state, instances)))
    update = desk.ledger.get(name)
    if not text and update is not None and entity in update.entities:
        text = update.entities[entity].message
    return {"logs": text}


async def build_logs(desk: Desk, call: Call) -> Any:
    """GET /{name}/served-models/{entity}/build-logs: nothing is built here, so there is nothing to tell."""
    _check_entity(desk, call.path["name"], call.path["entity"])
    return {"logs": ""}


def _check_entity(desk: Desk, name: str, entity: str) -> None:
    """Raises Refusal 404 for an entity that is neither in the active config nor in one that is wanted."""
    update = desk.ledger.get(name)
    record = desk.view.state().endpoints.get(name) if update is not None else desk.record(name)
    active = {target.entity for target in record.targets} if record is not None else set()
    wanted = update.config.get("served_entities", []) if update is not None else []
    if entity not in active | {one.get("name", "") for one in wanted}:
        raise absent(f"the endpoint {name!r} has no served entity {entity!r}")


async def _logs(desk: Desk, state: State, instances: list[Instance]) -> str:
    providers = desk.source.workspace().providers(state)
    found = [await providers[one.spec.provider].logs(one.handle, LOG_LINES) for one in instances]
    if len(instances) == 1:
        return found[0]
    return "".join(f"==> {one.address}\n{text}" for one, text in zip(instances, found, strict=True) if text)


# Metrics.


async def metrics(desk: Desk, call: Call) -> Any:
    """GET /{name}/metrics: what the running router has counted since it started, as Prometheus text."""
    record = desk.record(call.path["name"])
    try:
        status = await router_status(desk.source.workspace().control_path)
    except TransientError as error:
        raise unavailable(str(error)) from None
    seen = (status or {}).get("endpoints", {}).get(record.name, {})
    lines = _metrics(record, seen.get("entities", {}), seen.get("limited", 0))
    return Text("".join(f"{line}\n" for line in lines), _PROMETHEUS)


def _metrics(record: EndpointRecord, seen: Mapping[str, Any], limited: int) -> Iterator[str]:
    yield from _head("rate_limited_count_total", "counter", "Requests over a limit; no entity was asked.")
    yield f'rate_limited_count_total{{endpoint_name="{record.name}"}} {limited}'
    served = {e["name"]: e for e in goals.written_block(record).get("config", {}).get("served_entities", [])}
    labels = {name: f'endpoint_name="{record.name}",served_entity_name="{name}"' for name in seen}
    counts = {
        "request_count_total": {name: one["requests"] for name, one in seen.items()},
        "request_4xx_count_total": {name: one["statuses"]["4xx"] for name, one in seen.items()},
        "request_5xx_count_total": {name: one["statuses"]["5xx"] for name, one in seen.items()},
    }
    for metric, by_entity in counts.items():
        yield from _head(metric, "counter", _COUNTED[metric])
        yield from (f"{metric}{{{labels[name]}}} {count}" for name, count in by_entity.items())
    yield from _head("provisioned_concurrent_requests_total", "gauge", "Requests at a time that it is for.")
    for name in seen:
        yield f"provisioned_concurrent_requests_total{{{labels[name]}}} {_concurrency(served.get(name, {}))}"
    yield from _head("request_latency_ms", "histogram", "From the request to the end of its answer.")
    for name, one in seen.items():
        yield from _histogram("request_latency_ms", labels[name], one["latency_ms"])


def _head(metric: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {metric} {text}"
    yield f"# TYPE {metric} {kind}"


def _histogram(metric: str, labels: str, found: Mapping[str, Any]) -> Iterator[str]:
    total = 0
    for bound, count in zip([*map(str, found["bounds"]), "+Inf"], found["counts"], strict=True):
        total += count
        yield f'{metric}_bucket{{{labels},le="{bound}"}} {total}'
    yield f"{metric}_sum{{{labels}}} {found['sum']}"
    yield f"{metric}_count{{{labels}}} {total}"


def _concurrency(entity: Mapping[str, Any]) -> int:
    given = entity.get("max_provisioned_concurrency")
    return int(given) if given is not None else _CONCURRENCY.get(entity.get("workload_size", "Small"), 0)


# The shape of queries.

_TEXT = {"type": "string"}
_TEXTS = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_MESSAGES = {
    "type": "array",
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT, "content": {}}},
}
_QUERIES: dict[str, dict[str, Any]] = {
    "llm/v1/chat": {"required": ["messages"], "properties": {"messages": _MESSAGES}},
    "llm/v1/completions": {"required": ["prompt"], "properties": {"prompt": _TEXTS}},
    "llm/v1/embeddings": {"required": ["input"], "properties": {"input": _TEXTS}},
}
_CUSTOM = {
    "properties": {
        "dataframe_split": {"type": "object"},
        "dataframe_records": {"type": "array"},
        "instances": {"type": "array"},
        "inputs": {},
    }
}


async def openapi(desk: Desk, call: Call) -> Any:
    """GET /{name}/openapi: how the endpoint is queried, as an OpenAPI document."""
    record, state = desk.record(call.path["name"]), desk.view.state()
    entities = {target.entity: _task_of(state, list(target.instances)) for target in record.targets}
    paths = {f"/serving-endpoints/{record.name}/invocations": _query("", set(entities.values()))}
    for entity, task in entities.items():
        paths[f"/serving-endpoints/{record.name}/served-models/{entity}/invocations"] = _query(entity, {task})
    document = {
        "openapi": "3.1.0",
        "info": {"title": record.name, "version": str(record.config_version)},
        "paths": paths,
    }
    return Text(json.dumps(document), "application/json")


def _task_of(state: State, addresses: list[Any]) -> str:
    return next((state.instances[a].spec.task for a in addresses if a in state.instances), "")


def _query(entity: str, tasks: set[str]) -> dict[str, Any]:
    task = tasks.pop() if len(tasks) == 1 else ""
    schema = {"type": "object", **_QUERIES.get(task, _CUSTOM)}
    name = f"Query {entity}" if entity else "Query the endpoint by its split"
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    answers = {"200": {"description": "The model's answer", "content": {"application/json": {}}}}
    return {"post": {"summary": name, "requestBody": body, "responses": answers}}


# Models.


async def optimization(desk: Desk, call: Call) -> Any:
    """GET /get-model-optimization-info/{model}/{version}: in which steps its throughput is provisioned."""
    model, version, site = call.path["model"], call.path["version"], desk.source.site()
    declared = site.models.get(model)
    known = optimization_of(model, site, foundation_models())
    if (declared is None and known is None) or (declared is not None and version not in declared.versions):
        raise absent(f"there is no model {model!r} with a version {version!r} here")
    steps = known.model_dump(exclude_none=True, exclude_defaults=True) if known is not None else {}
    if not steps.keys() & {"throughput_chunk_size", "model_unit_chunk_size"}:
        return {"optimizable": False}
    return {"optimizable": True, **steps}


async def discovery(desk: Desk, call: Call) -> Any:
    """GET /.well-known/databricks-config: nothing that a client would have to do otherwise."""
    return {}


async def document(desk: Desk, call: Call) -> Any:
    """GET /api/servestate/v1/openapi.json: this API itself, as an OpenAPI document."""
    return desk.document()
