"""Rules of capacity: by size, by concurrency, by throughput or by model units, and bounds in order."""

from __future__ import annotations

from servestate.planner.spec.endpoint import Endpoint, ServedEntity
from servestate.planner.spec.report import Report

_ENTITIES = ("config", "served_entities")


def size_or_concurrency(endpoint: Endpoint, report: Report) -> None:
    """R16: capacity is given by size or by concurrency, and the bounds are in order."""
    for index, entity in enumerate(endpoint.entities):
        low, high = entity.min_provisioned_concurrency, entity.max_provisioned_concurrency
        if low is None and high is None:
            continue
        at = (*_ENTITIES, index)
        if entity.workload_size is not None:
            what = f'"{entity.name}" has workload_size and provisioned concurrency'
            report.error("SS112", what, "keep one of them", *at, "workload_size")
        _in_order(entity, low, high, "provisioned_concurrency", "SS112", report, index)


def throughput(endpoint: Endpoint, report: Report) -> None:
    """R17, R18: a maximum above 0, and a minimum not above it. Chunk sizes are the catalogue's matter."""
    for index, entity in enumerate(endpoint.entities):
        low, high = entity.min_provisioned_throughput, entity.max_provisioned_throughput
        if low is None and high is None:
            continue
        if high is None:
            what = f'"{entity.name}" has min_provisioned_throughput without a maximum'
            fix = "add max_provisioned_throughput"
            report.error("SS113", what, fix, *_ENTITIES, index, "min_provisioned_throughput")
        elif high <= 0:
            what = f'max_provisioned_throughput of "{entity.name}" is {high}'
            report.error(
                "SS113", what, "make it more than 0", *_ENTITIES, index, "max_provisioned_throughput"
            )
        else:
            _in_order(entity, low, high, "provisioned_throughput", "SS113", report, index)


def _in_order(
    entity: ServedEntity, low: int | None, high: int | None, what: str, code: str, report: Report, index: int
) -> None:
    if low is not None and low < 0:
        report.error(
            code, f'min_{what} of "{entity.name}" is {low}', "use 0 or more", *_ENTITIES, index, f"min_{what}"
        )
    if high is not None and high < (low or 0):
        found = f'max_{what} of "{entity.name}" is {high}, below the minimum of {low or 0}'
        report.error(code, found, "make the maximum at least the minimum", *_ENTITIES, index, f"max_{what}")


def model_units(endpoint: Endpoint, report: Report) -> None:
    """R20: positive, and not beside throughput."""
    for index, entity in enumerate(endpoint.entities):
        units = entity.provisioned_model_units
        if units is None:
            continue
        at = (*_ENTITIES, index, "provisioned_model_units")
        if units <= 0:
            report.error(
                "SS125", f'provisioned_model_units of "{entity.name}" is {units}', "make it more than 0", *at
            )
        if entity.min_provisioned_throughput is not None or entity.max_provisioned_throughput is not None:
            what = f'"{entity.name}" has provisioned_model_units and provisioned throughput'
            report.error("SS125", what, "keep one of them", *at)
